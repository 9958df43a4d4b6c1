//! Header fields, parsed.

use std::sync::LazyLock;

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderName, HeaderValue, Method};

use super::ENTRY_BYTES;

/// One field of a request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Field {
    Method(Method),
    Scheme(Scheme),
    /// `None`: what gRPC's resolvers make of other addresses, which is no authority (`#initially=[…]`). etcd's clients
    /// send it, etcd takes it.
    Authority(Option<Authority>),
    Path(PathAndQuery),
    Regular(HeaderName, HeaderValue),
    /// A request with it is malformed. Bytes of its name.
    Malformed(usize),
}

impl Field {
    pub(crate) fn parse(name: &[u8], value: &[u8]) -> Self {
        let parsed = match name {
            b":method" => Self::method(value),
            b":scheme" => Self::scheme(value),
            b":authority" => Some(Self::authority(value)),
            b":path" => Self::path(value),
            _ => HeaderName::from_lowercase(name).ok().and_then(|name| Self::regular(name, value)),
        };
        parsed.unwrap_or(Self::Malformed(name.len()))
    }

    /// A field of the same name.
    pub(crate) fn with_value(&self, value: &[u8]) -> Self {
        let parsed = match self {
            Self::Method(_) => Self::method(value),
            Self::Scheme(_) => Self::scheme(value),
            Self::Authority(_) => Some(Self::authority(value)),
            Self::Path(_) => Self::path(value),
            Self::Regular(name, _) => Self::regular(name.clone(), value),
            Self::Malformed(_) => None,
        };
        parsed.unwrap_or(Self::Malformed(self.name_len()))
    }

    pub(crate) fn name_len(&self) -> usize {
        match self {
            Self::Method(_) | Self::Scheme(_) => ":method".len(),
            Self::Authority(_) => ":authority".len(),
            Self::Path(_) => ":path".len(),
            Self::Regular(name, _) => name.as_str().len(),
            Self::Malformed(len) => *len,
        }
    }

    fn method(value: &[u8]) -> Option<Self> {
        Method::from_bytes(value).ok().map(Self::Method)
    }

    fn scheme(value: &[u8]) -> Option<Self> {
        Scheme::try_from(value).ok().map(Self::Scheme)
    }

    fn authority(value: &[u8]) -> Self {
        Self::Authority(Authority::from_maybe_shared(Bytes::copy_from_slice(value)).ok())
    }

    fn path(value: &[u8]) -> Option<Self> {
        let is_absolute = value.starts_with(b"/") || value == b"*";
        let path = PathAndQuery::from_maybe_shared(Bytes::copy_from_slice(value)).ok();
        path.filter(|_| is_absolute).map(Self::Path)
    }

    fn regular(name: HeaderName, value: &[u8]) -> Option<Self> {
        HeaderValue::from_maybe_shared(Bytes::copy_from_slice(value)).ok().map(|value| Self::Regular(name, value))
    }
}

/// RFC 7541, appendix A; entry 1 first, each with its size.
pub(crate) static STATIC: LazyLock<Vec<(Field, usize)>> = LazyLock::new(|| {
    // A space parts names from their values.
    const FIELDS: [&str; 61] = [
        ":authority",
        ":method GET",
        ":method POST",
        ":path /",
        ":path /index.html",
        ":scheme http",
        ":scheme https",
        ":status 200",
        ":status 204",
        ":status 206",
        ":status 304",
        ":status 400",
        ":status 404",
        ":status 500",
        "accept-charset",
        "accept-encoding gzip, deflate",
        "accept-language",
        "accept-ranges",
        "accept",
        "access-control-allow-origin",
        "age",
        "allow",
        "authorization",
        "cache-control",
        "content-disposition",
        "content-encoding",
        "content-language",
        "content-length",
        "content-location",
        "content-range",
        "content-type",
        "cookie",
        "date",
        "etag",
        "expect",
        "expires",
        "from",
        "host",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "last-modified",
        "link",
        "location",
        "max-forwards",
        "proxy-authenticate",
        "proxy-authorization",
        "range",
        "referer",
        "refresh",
        "retry-after",
        "server",
        "set-cookie",
        "strict-transport-security",
        "transfer-encoding",
        "user-agent",
        "vary",
        "via",
        "www-authenticate",
    ];
    let parse = |field: &str| {
        let (name, value) = field.split_once(' ').unwrap_or((field, ""));
        (Field::parse(name.as_bytes(), value.as_bytes()), name.len() + value.len() + ENTRY_BYTES)
    };
    FIELDS.iter().map(|field| parse(field)).collect()
});

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_request_has_no_other_fields() {
        for (name, value) in [
            (":status", "200"),
            (":protocol", "websocket"),
            (":path", ""),
            (":path", "relative"),
            (":scheme", "a b"),
            (":method", ""),
            ("Upper", "v"),
            ("", "v"),
            ("a b", "v"),
            ("name", "line\nbreak"),
        ] {
            assert_eq!(
                Field::parse(name.as_bytes(), value.as_bytes()),
                Field::Malformed(name.len()),
                "{name}: {value}"
            );
        }
        assert_eq!(Field::parse(b":authority", b"#initially=[a;b]"), Field::Authority(None));
        assert!(matches!(Field::parse(b":path", b"*"), Field::Path(_)));
    }

    #[test]
    fn the_static_table_is_well_formed() {
        let malformed = STATIC.iter().enumerate().filter(|(_, (field, _))| matches!(field, Field::Malformed(_)));
        // Those of answers.
        assert_eq!(malformed.map(|(at, _)| at + 1).collect::<Vec<_>>(), (8..=14).collect::<Vec<_>>());
        assert_eq!(STATIC[1].0, Field::Method(Method::GET));
    }
}
