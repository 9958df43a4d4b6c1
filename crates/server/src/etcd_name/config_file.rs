//! `--config-file`: the flags by their names, in YAML or JSON, and TLS in two sections.

use saphyr::{LoadableYamlNode as _, Scalar, Yaml};

use super::table::{self, Kind};

/// The keys of a TLS section, and the flags that they are on the client and the peer side.
const SECURITY: &[(&str, &str, &str)] = &[
    ("cert-file", "cert-file", "peer-cert-file"),
    ("key-file", "key-file", "peer-key-file"),
    ("client-cert-file", "client-cert-file", "peer-client-cert-file"),
    ("client-key-file", "client-key-file", "peer-client-key-file"),
    ("client-cert-auth", "client-cert-auth", "peer-client-cert-auth"),
    ("trusted-ca-file", "trusted-ca-file", "peer-trusted-ca-file"),
    ("auto-tls", "auto-tls", "peer-auto-tls"),
    ("allowed-cn", "", "peer-cert-allowed-cn"),
    ("allowed-cns", "", "peer-cert-allowed-cn"),
    ("allowed-hostname", "client-cert-allowed-hostname", "peer-cert-allowed-hostname"),
    ("allowed-hostnames", "client-cert-allowed-hostname", "peer-cert-allowed-hostname"),
    ("skip-client-san-verification", "", "peer-skip-client-san-verification"),
];

/// What a file says: flags and their values, and keys that nobody knows.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct FileFlags {
    pub(crate) flags: Vec<(String, String)>,
    pub(crate) unknown: Vec<String>,
}

/// Reads a file's text.
///
/// # Errors
/// It is not YAML, or a value is of no use.
pub(crate) fn read(text: &str) -> Result<FileFlags, String> {
    let documents = Yaml::load_from_str(text).map_err(|error| format!("error converting YAML to JSON: {error}"))?;
    let mut found = FileFlags::default();
    let Some(document) = documents.first().filter(|document| !document.is_null()) else { return Ok(found) };
    let entries = document.as_mapping().ok_or("the file holds no mapping of names to values")?;
    for (key, value) in entries {
        let key = key.as_str().ok_or("a key is no text")?;
        match key {
            "client-transport-security" => security(key, value, |row| row.1, &mut found)?,
            "peer-transport-security" => security(key, value, |row| row.2, &mut found)?,
            key => add(key, key, value, &mut found)?,
        }
    }
    Ok(found)
}

fn security(
    section: &str,
    value: &Yaml<'_>,
    side: impl Fn(&(&str, &'static str, &'static str)) -> &'static str,
    found: &mut FileFlags,
) -> Result<(), String> {
    if value.is_null() {
        return Ok(());
    }
    let entries = value.as_mapping().ok_or_else(|| format!("{section} holds no mapping of names to values"))?;
    for (key, value) in entries {
        let key = key.as_str().ok_or_else(|| format!("{section}: a key is no text"))?;
        let row = SECURITY.iter().find(|row| row.0 == key);
        match row.map(&side) {
            None => found.unknown.push(format!("{section}.{key}")),
            Some("") if text_of(value, None).is_none_or(|text| text.is_empty() || text == "false") => {}
            // To go on without would let in whom the file keeps out.
            Some("") => return Err(format!("{section}.{key} is not served here")),
            Some(flag) => add(key, flag, value, found)?,
        }
    }
    Ok(())
}

fn add(key: &str, flag: &str, value: &Yaml<'_>, found: &mut FileFlags) -> Result<(), String> {
    if value.is_null() {
        return Ok(());
    }
    let row = table::find(flag);
    let text =
        text_of(value, row.map(|row| row.kind)).ok_or_else(|| format!("{key} holds neither a value nor a list"))?;
    match row {
        Some(row) => found.flags.push((row.name.to_owned(), text)),
        None if super::is_ours(flag) => found.flags.push((flag.to_owned(), text)),
        None => found.unknown.push(key.to_owned()),
    }
    Ok(())
}

/// A value as a flag takes it; lists are separated by commas, durations are nanoseconds.
fn text_of(value: &Yaml<'_>, kind: Option<Kind>) -> Option<String> {
    if let Some(list) = value.as_sequence() {
        let parts: Option<Vec<_>> = list.iter().map(|part| text_of(part, None)).collect();
        return parts.map(|parts| parts.join(","));
    }
    match value {
        Yaml::Value(Scalar::String(text)) => Some(text.to_string()),
        Yaml::Value(Scalar::Boolean(is)) => Some(is.to_string()),
        Yaml::Value(Scalar::Integer(number)) if kind == Some(Kind::Duration) => Some(format!("{number}ns")),
        Yaml::Value(Scalar::Integer(number)) => Some(number.to_string()),
        Yaml::Value(Scalar::FloatingPoint(number)) => Some(number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(text: &str) -> Vec<(String, String)> {
        read(text).expect("readable").flags
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(flag, value)| ((*flag).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_file_is_flags_by_their_names() {
        let text = "# comment\nname: 'a'\nsnapshot-count: 10000\nstrict-reconfig-check: false\n\
                    watch-progress-notify-interval: 5000000000\nlog-outputs: [stderr, 'file']\n\
                    client-transport-security:\n  cert-file: c.pem\n  client-cert-auth: true\n\
                    peer-transport-security:\n  cert-file: p.pem\n  allowed-cn:\n    - x\n    - y\n\
                    discovery:\nwhatever: 5\n";
        let read = read(text).expect("readable");
        let expected = pairs(&[
            ("name", "a"),
            ("snapshot-count", "10000"),
            ("strict-reconfig-check", "false"),
            ("watch-progress-notify-interval", "5000000000ns"),
            ("log-outputs", "stderr,file"),
            ("cert-file", "c.pem"),
            ("client-cert-auth", "true"),
            ("peer-cert-file", "p.pem"),
            ("peer-cert-allowed-cn", "x,y"),
        ]);
        assert_eq!(read, FileFlags { flags: expected, unknown: vec!["whatever".into()] });
    }

    #[test]
    fn json_is_yaml_and_nothing_is_fine() {
        assert_eq!(flags("{\"name\": \"j\", \"roles\": \"all\"}"), pairs(&[("name", "j"), ("roles", "all")]));
        assert_eq!(flags(""), []);
        assert_eq!(flags("# nothing\n"), []);
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        for bad in ["[1, 2]", "a: {b: c}", "a: [", "client-transport-security:\n  allowed-cn: x\n", "1: 2"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
