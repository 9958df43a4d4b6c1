//! Which web pages may talk to the server: `--cors` and `--host-whitelist`. gRPC, which no page speaks, is not asked.

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Response, StatusCode, Uri, header};

/// Beside a request, as an extension: it came over TLS.
#[derive(Clone, Copy, Debug)]
pub struct OverTls;

/// Who may ask over plain HTTP, and whose answers a browser shows to a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessControl {
    /// Origins whose pages may read answers; `*`: all.
    pub origins: Vec<String>,
    /// Hosts by which the server may be called without TLS; empty or `*`: any. A page whose name was made to resolve to
    /// this server calls it by another.
    pub hosts: Vec<String>,
}

impl Default for AccessControl {
    /// etcd's: everybody.
    fn default() -> Self {
        Self { origins: vec!["*".to_owned()], hosts: vec!["*".to_owned()] }
    }
}

impl AccessControl {
    /// Whether a request calls the server by a name that it goes by.
    pub(crate) fn admits(&self, headers: &HeaderMap, uri: &Uri) -> bool {
        let host = called(headers, uri);
        self.hosts.is_empty() || self.hosts.iter().any(|allowed| allowed == "*" || allowed == host)
    }

    /// The refusal of a request that calls the server by a name that it does not go by.
    pub(crate) fn refuse_host(&self, headers: &HeaderMap, uri: &Uri) -> Option<Response<Body>> {
        if self.admits(headers, uri) {
            return None;
        }
        let host = called(headers, uri);
        tracing::warn!(host, "rejecting HTTP request to prevent DNS rebinding attacks");
        let text = format!(
            "\netcd received your request, but the Host header was unrecognized.\n\n\
             To fix this, choose one of the following options:\n\
             - Enable TLS, then any HTTPS request will be allowed.\n\
             - Add the hostname you want to use to the whitelist in settings.\n  \
             - e.g. etcd --host-whitelist {host:?}\n\n\
             This requirement has been added to help prevent \"DNS Rebinding\" attacks (CVE-2018-5702).\n\n"
        );
        let mut response = Response::new(Body::from(text));
        *response.status_mut() = StatusCode::MISDIRECTED_REQUEST;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        Some(response)
    }

    /// Tells a browser whether the page that asked may read the answer.
    pub(crate) fn mark(&self, asked: &HeaderMap, response: &mut HeaderMap) {
        let origin = asked.get(header::ORIGIN);
        let allowed = if self.origins.iter().any(|allowed| allowed == "*") {
            HeaderValue::from_static("*")
        } else {
            match origin {
                Some(origin) if self.origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()) => {
                    origin.clone()
                }
                _ => return,
            }
        };
        for (name, value) in [
            (header::ACCESS_CONTROL_ALLOW_HEADERS, "accept, content-type, authorization"),
            (header::ACCESS_CONTROL_ALLOW_METHODS, "POST, GET, OPTIONS, PUT, DELETE"),
        ] {
            response.insert(name, HeaderValue::from_static(value));
        }
        response.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
    }
}

/// The host that a request names.
fn called<'a>(headers: &'a HeaderMap, uri: &'a Uri) -> &'a str {
    // HTTP/2 has the host in the request's target.
    let named = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    hostname(uri.authority().map_or(named.unwrap_or_default(), |authority| authority.as_str()))
}

/// Without the port.
fn hostname(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    authority.split(':').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn a_host_is_refused_unless_it_is_named() {
        let access = AccessControl { hosts: vec!["example.com".into(), "::1".into()], ..Default::default() };
        let status = |access: &AccessControl, host| {
            let refused = access.refuse_host(&headers(header::HOST, host), &Uri::from_static("/version"));
            refused.map(|response| response.status().as_u16())
        };
        assert_eq!(status(&access, "example.com:2379"), None);
        assert_eq!(status(&access, "[::1]:2379"), None);
        assert_eq!(status(&access, "evil.com:2379"), Some(421));
        assert_eq!(status(&AccessControl::default(), "evil.com"), None);
        let open = AccessControl { hosts: Vec::new(), ..Default::default() };
        assert_eq!(status(&open, "evil.com"), None);
        let by_target = access.refuse_host(&HeaderMap::new(), &Uri::from_static("http://evil.com:1/version"));
        assert!(by_target.is_some());
    }

    #[test]
    fn an_origin_is_told_what_it_may() {
        let allowed = |access: &AccessControl, origin| {
            let mut response = HeaderMap::new();
            access.mark(&headers(header::ORIGIN, origin), &mut response);
            response.get(header::ACCESS_CONTROL_ALLOW_ORIGIN).map(|value| value.to_str().expect("text").to_owned())
        };
        let some = AccessControl { origins: vec!["http://a".into()], ..Default::default() };
        assert_eq!(allowed(&AccessControl::default(), "http://b").as_deref(), Some("*"));
        assert_eq!(allowed(&some, "http://a").as_deref(), Some("http://a"));
        assert_eq!(allowed(&some, "http://b"), None);
    }
}
