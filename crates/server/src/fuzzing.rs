//! What must hold of flags, variables and configuration files, whatever they hold. Called by the fuzz targets and by the
//! tests that replay what those have found.

use std::time::Duration;

use crate::etcd_name::{self, Asked, config_file};
use crate::{config, duration, flags};

/// A value of a flag: a duration, a URL.
///
/// # Panics
/// A duration is another when it is written and read again.
#[must_use]
pub fn value(text: &str) -> bool {
    let found = duration::parse(text);
    if let Ok(found) = found
        && found <= Duration::from_secs(1 << 20)
    {
        // Not all of nanoseconds can be told by the fractions that are read.
        let again = duration::parse(&format!("{}ns", found.as_nanos())).expect("whole nanoseconds");
        assert!(again.abs_diff(found) <= Duration::from_micros(1), "{text:?}: {found:?}, then {again:?}");
    }
    let authority = config::authority(text);
    if let Some((is_secure, authority)) = authority {
        let scheme = if is_secure { "https" } else { "http" };
        assert_eq!(format!("{scheme}://{authority}"), text, "a URL is scheme, host and port");
    }
    found.is_ok() || authority.is_some()
}

/// A configuration file.
#[must_use]
pub fn config_file(text: &str) -> bool {
    config_file::read(text).is_ok_and(|found| !found.flags.is_empty())
}

/// A command line as etcd takes it, one argument a line; behind an empty line variables, `NAME=VALUE` each; behind
/// another the configuration file. `true` when it asks to serve.
#[must_use]
pub fn command_line(text: &str) -> bool {
    let mut parts = text.splitn(3, "\n\n");
    let arguments: Vec<String> = parts.next().unwrap_or_default().lines().map(str::to_owned).collect();
    let variables = parts.next().unwrap_or_default().lines();
    let variables: Vec<(String, String)> =
        variables.filter_map(|line| line.split_once('=')).map(|(name, value)| (name.into(), value.into())).collect();
    let file = parts.next().unwrap_or_default();
    let asked = etcd_name::read(&arguments, &variables, |_| Ok(file.to_owned()));
    let Asked::Serve(line, _) = asked else { return false };
    // It need not be one that we serve, but one that can be read.
    drop(flags::serve_flags(&line));
    true
}
