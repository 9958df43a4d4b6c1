//! Values of flags, judged as Go's flag package and etcd's own types judge them, in their words.

use super::table::{GATES, Kind};
use crate::{config, duration};

/// Whether a flag of this kind takes `text`.
///
/// # Errors
/// What Go prints after "invalid value … for flag …: ".
pub(super) fn check(kind: Kind, text: &str) -> Result<(), String> {
    let parsed = |is_right: bool| if is_right { Ok(()) } else { Err("parse error".to_owned()) };
    match kind {
        Kind::Text => Ok(()),
        Kind::Bool => parsed(boolean(text).is_some()),
        Kind::Int => parsed(text.parse::<i64>().is_ok()),
        Kind::Uint => parsed(text.parse::<u64>().is_ok()),
        Kind::Duration => parsed(duration::parse(text).is_ok()),
        Kind::Urls if text.is_empty() => Ok(()),
        Kind::Urls => text.split(',').try_for_each(|url| check_url(url.trim())),
        Kind::Choice(choices) if choices.contains(&text) => Ok(()),
        Kind::Choice(_) => Err("invalid value".into()),
        Kind::Gates => gates(text).map(drop),
    }
}

/// Go's words for yes and no.
pub(super) fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// The gates that `text` sets, each with its value.
///
/// # Errors
/// One is not etcd's, or has no value.
pub(super) fn gates(text: &str) -> Result<Vec<(&'static str, bool)>, String> {
    let mut set = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let Some((name, value)) = part.split_once('=') else { return Err(format!("missing bool value for {part}")) };
        let known = GATES.iter().find(|(gate, _)| *gate == name);
        let (gate, _) = known.ok_or_else(|| format!("unrecognized feature gate: {name}"))?;
        let value = boolean(value).ok_or_else(|| format!("invalid value of {name}={value}"))?;
        set.push((*gate, value));
    }
    Ok(set)
}

fn check_url(url: &str) -> Result<(), String> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(format!("parse {url:?}: first path segment in URL cannot contain colon"));
    };
    if !["http", "https", "unix", "unixs"].contains(&scheme) {
        return Err(format!("URL scheme must be http, https, unix, or unixs: {url}"));
    }
    if rest.contains('/') {
        return Err(format!("URL must not contain a path: {url}"));
    }
    if scheme.starts_with("unix") {
        return Err(format!("unix sockets are not served; give an http or https URL instead of {url}"));
    }
    if config::authority(url).is_none() {
        return Err(format!("URL address does not have the form \"host:port\": {url}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_judged_in_etcds_words() {
        for (kind, text) in [
            (Kind::Bool, "T"),
            (Kind::Uint, "7"),
            (Kind::Int, "-1"),
            (Kind::Duration, "1h30m"),
            (Kind::Urls, "http://127.0.0.1:1,https://localhost:2"),
            (Kind::Gates, "InitialCorruptCheck=true,AllAlpha=false"),
            (Kind::Choice(&["new"]), "new"),
        ] {
            assert_eq!(check(kind, text), Ok(()), "{text}");
        }
        for (kind, text, reason) in [
            (Kind::Bool, "maybe", "parse error"),
            (Kind::Uint, "-1", "parse error"),
            (Kind::Int, "1.5", "parse error"),
            (Kind::Duration, "5", "parse error"),
            (Kind::Urls, "127.0.0.1:1", "parse \"127.0.0.1:1\": first path segment in URL cannot contain colon"),
            (Kind::Urls, "http://localhost", "URL address does not have the form \"host:port\": http://localhost"),
            (Kind::Urls, "http://1.1.1.1:1/x", "URL must not contain a path: http://1.1.1.1:1/x"),
            (Kind::Urls, "ftp://h:1", "URL scheme must be http, https, unix, or unixs: ftp://h:1"),
            (Kind::Gates, "Foo=true", "unrecognized feature gate: Foo"),
            (Kind::Gates, "Foo", "missing bool value for Foo"),
            (Kind::Choice(&["new"]), "foo", "invalid value"),
        ] {
            assert_eq!(check(kind, text), Err(reason.to_owned()), "{text}");
        }
    }
}
