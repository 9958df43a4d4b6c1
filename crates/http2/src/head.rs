//! A request's head, from its fields: RFC 9113, §8.

use http::header::HOST;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version};

use crate::hpack::{Field, is_of_a_connection};

/// Headers of a usual call, and some room.
const HEADERS_USUAL: usize = 12;

/// Why a request is not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It breaks the protocol's rules.
    Malformed,
    /// Its headers are larger than this server takes.
    TooLarge,
}

/// What has been read of a head.
pub(crate) struct HeadBuilder {
    method: Option<Method>,
    scheme: Option<Scheme>,
    authority: Option<Option<Authority>>,
    path: Option<PathAndQuery>,
    headers: HeaderMap,
    bytes_left: usize,
    refused: Option<Refused>,
}

impl HeadBuilder {
    /// For heads of at most `bytes_max`, as [`Decoder`](crate::hpack::Decoder) counts them.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            method: None,
            scheme: None,
            authority: None,
            path: None,
            headers: HeaderMap::new(),
            bytes_left: bytes_max,
            refused: None,
        }
    }

    pub(crate) fn add(&mut self, field: Field, bytes: usize) {
        match self.bytes_left.checked_sub(bytes) {
            Some(left) => self.bytes_left = left,
            None => {
                self.bytes_left = 0;
                self.refused.get_or_insert(Refused::TooLarge);
            }
        }
        if self.refused.is_some() {
            return;
        }
        let is_pseudo = !matches!(field, Field::Regular(..));
        let is_again = match field {
            Field::Method(method) => self.method.replace(method).is_some(),
            Field::Scheme(scheme) => self.scheme.replace(scheme).is_some(),
            Field::Authority(authority) => self.authority.replace(authority).is_some(),
            Field::Path(path) => self.path.replace(path).is_some(),
            Field::Regular(name, value) => {
                let is_allowed = !is_of_a_connection(&name) && (name != http::header::TE || value == "trailers");
                if self.headers.is_empty() {
                    self.headers.reserve(HEADERS_USUAL);
                }
                self.headers.append(name, value);
                !is_allowed
            }
            Field::Malformed(_) => true,
        };
        if is_again || is_pseudo && !self.headers.is_empty() {
            self.refused = Some(Refused::Malformed);
        }
    }

    /// # Errors
    /// The request must not be looked at.
    pub(crate) fn finish(self) -> Result<Request<()>, Refused> {
        if let Some(refused) = self.refused {
            return Err(refused);
        }
        let (Some(method), Some(scheme), Some(path)) = (self.method, self.scheme, self.path) else {
            return Err(Refused::Malformed);
        };
        let mut headers = self.headers;
        let mut parts = http::uri::Parts::default();
        parts.path_and_query = Some(path);
        match self.authority {
            // An absolute form has both.
            Some(Some(authority)) => (parts.scheme, parts.authority) = (Some(scheme), Some(authority)),
            // Something is there that is no name of a host, and compares to none.
            Some(None) if !headers.contains_key(HOST) => {
                headers.insert(HOST, HeaderValue::from_static("invalid"));
            }
            _ => {}
        }
        let mut request = Request::new(());
        *request.method_mut() = method;
        *request.uri_mut() = Uri::from_parts(parts).map_err(|_| Refused::Malformed)?;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = headers;
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn read(fields: &[(&str, &str)], bytes_max: usize) -> Result<Request<()>, Refused> {
        let mut builder = HeadBuilder::new(bytes_max);
        for (name, value) in fields {
            builder.add(Field::parse(name.as_bytes(), value.as_bytes()), name.len() + value.len() + 32);
        }
        builder.finish()
    }

    const CALL: [(&str, &str); 4] =
        [(":method", "POST"), (":scheme", "http"), (":path", "/etcdserverpb.KV/Range"), (":authority", "a:2379")];

    #[test]
    fn a_head_has_its_parts() {
        let mut fields = CALL.to_vec();
        fields.extend([("te", "trailers"), ("token", "one"), ("token", "two")]);
        let request = read(&fields, 1 << 10).unwrap();
        assert_eq!(request.method(), Method::POST);
        assert_eq!(request.uri(), "http://a:2379/etcdserverpb.KV/Range");
        assert_eq!(request.version(), Version::HTTP_2);
        assert_eq!(request.headers().get_all("token").iter().collect::<Vec<_>>(), ["one", "two"]);
        assert_eq!(read(&fields, 200).unwrap_err(), Refused::TooLarge);
        let request = read(&CALL[..3], 1 << 10).unwrap();
        assert_eq!(request.uri(), "/etcdserverpb.KV/Range");
    }

    #[test]
    fn addresses_of_resolvers_are_taken() {
        let request = read(&[CALL[0], CALL[1], CALL[2], (":authority", "#initially=[a;b]")], 1 << 10).unwrap();
        assert_eq!(request.uri().path(), "/etcdserverpb.KV/Range");
        assert_eq!(request.headers()["host"], "invalid");
    }

    #[test]
    fn malformed_heads_are_refused() {
        for without in 0..3 {
            let mut fields = CALL.to_vec();
            fields.remove(without);
            assert_eq!(read(&fields, 1 << 10).unwrap_err(), Refused::Malformed, "{without}");
        }
        for (at, field) in [
            (4, (":path", "/again")),
            (4, (":status", "200")),
            (4, ("Upper", "case")),
            (4, ("connection", "close")),
            (4, ("te", "gzip")),
            (0, ("regular", "first")),
        ] {
            let mut fields = CALL.to_vec();
            fields.insert(at, field);
            assert_eq!(read(&fields, 1 << 10).unwrap_err(), Refused::Malformed, "{field:?}");
        }
    }
}
