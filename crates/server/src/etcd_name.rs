//! This program under etcd's name: its command line, its variables, its configuration file, and its words when they are
//! wrong. What comes out is our own command line.

pub(crate) mod config_file;
mod table;
mod value;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use self::table::{Kind, Meaning, Row};
use crate::flags;
use crate::telemetry::{self, LogConfig};

/// Variables of this prefix are flags.
const PREFIX: &str = "ETCD_";
/// Variables of etcd that are no flags.
const OTHER_VARIABLES: &[&str] = &["ETCD_UNSUPPORTED_ARCH", "ETCD_VERIFY"];

/// What a command line asks for.
#[derive(Debug)]
pub(crate) enum Asked {
    /// To serve, with these of our flags, and what is to be said about how they came about.
    Serve(Vec<String>, Vec<Note>),
    /// To print this.
    Print(String),
    /// Nothing that can be understood: exit code 2.
    Misspelt(String),
    /// What can't be done: exit code 1, as a line of the log.
    Refused(Refused),
}

/// A configuration that is not accepted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// etcd's message.
    message: &'static str,
    error: String,
    variable: String,
}

/// Something to tell once there is a log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Note {
    Recognized { variable: String, value: String },
    Unrecognized { variable: String },
    Unknown { key: String },
    Meaningless { flag: String, why: &'static str },
    Renamed { flag: String, to: &'static str },
    File { path: String },
}

impl Note {
    pub(crate) fn log(&self) {
        match self {
            Self::Recognized { variable, value } => tracing::info!(
                variable_name = variable,
                variable_value = value,
                "recognized and used environment variable"
            ),
            Self::Unrecognized { variable } => {
                tracing::warn!(environment_variable = variable, "unrecognized environment variable");
            }
            Self::Unknown { key } => tracing::warn!(key, "the configuration file has a key that is not known"),
            Self::Meaningless { flag, why } => tracing::warn!(flag, why, "this flag means nothing here"),
            Self::Renamed { flag, to } => tracing::warn!(flag, to, "this flag has another name now"),
            Self::File { path } => tracing::info!(
                path,
                "loaded server configuration, other configuration command line flags and environment variables will \
                 be ignored if provided"
            ),
        }
    }
}

impl Refused {
    fn flags(error: impl Into<String>) -> Self {
        Self { message: "failed to verify flags", error: error.into(), variable: String::new() }
    }

    /// Writes etcd's line.
    pub(crate) fn log(&self) {
        match self.variable.as_str() {
            "" => tracing::warn!(error = self.error, "{}", self.message),
            variable => tracing::error!(environment_variable = variable, "{}", self.message),
        }
    }
}

/// Says why a configuration is not accepted, as etcd does; the process then ends with exit code 1.
pub(crate) fn refuse(reason: &str) -> ExitCode {
    telemetry::start_log(&LogConfig::default());
    Refused::flags(reason).log();
    ExitCode::FAILURE
}

/// Whether a program that was started by this path goes by etcd's name.
pub(crate) fn is_meant_by(program: &str) -> bool {
    Path::new(program).file_name().is_some_and(|name| name == "etcd")
}

/// Whether one of our own flags has this name.
fn is_ours(name: &str) -> bool {
    flags::names().contains(&name.to_owned())
}

/// Reads the arguments without the program's name, and the environment.
pub(crate) fn read(
    arguments: &[String],
    environment: &[(String, String)],
    load: impl Fn(&str) -> std::io::Result<String>,
) -> Asked {
    if let Some(command @ ("gateway" | "grpc-proxy")) = arguments.first().map(String::as_str) {
        return Asked::Misspelt(format!(
            "etcd {command} is not needed here: run `tailwater serve --roles=gateway --upstream=<peer URLs>` for one \
             stable address, or --roles=fanout,gateway for one that also holds what it serves\n"
        ));
    }
    let given = match parse(arguments) {
        Ok(given) => given,
        Err(asked) => return asked,
    };
    if given.get("version").is_some_and(|text| value::boolean(text) == Some(true)) {
        return Asked::Print(version(given.get("reported-version")));
    }
    let variable = |name: &str| environment.iter().find(|(set, _)| set == name).map(|(_, value)| value.clone());
    let file = given.get("config-file").cloned().filter(|path| !path.is_empty());
    let outcome = match file.or_else(|| variable("ETCD_CONFIG_FILE").filter(|path| !path.is_empty())) {
        Some(path) => from_file(&path, load),
        None => from_line(&given, environment),
    };
    match outcome.and_then(|(flags, notes)| translate(&flags, notes)) {
        Ok((line, notes)) => Asked::Serve(line, notes),
        Err(refused) => Asked::Refused(refused),
    }
}

/// Flags and their values, and what is to be told.
type Found = (BTreeMap<String, String>, Vec<Note>);

/// Go's flag package: one dash or two, the value behind `=` or as the next argument, the last one wins.
fn parse(arguments: &[String]) -> Result<BTreeMap<String, String>, Asked> {
    let mut given = BTreeMap::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let Some(bare) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')).filter(|_| argument != "-")
        else {
            return Err(positional(argument));
        };
        if bare.is_empty() {
            return rest.next().map_or(Ok(given), |first| Err(positional(first)));
        }
        if bare.starts_with('-') || bare.starts_with('=') {
            return Err(misspelt(&format!("bad flag syntax: {argument}")));
        }
        let (name, value) = bare.split_once('=').map_or((bare, None), |(name, value)| (name, Some(value.to_owned())));
        if name == "help" || name == "h" {
            return Err(Asked::Print(usage()));
        }
        let row = table::find(name);
        if row.is_none() && !is_ours(name) {
            return Err(misspelt(&format!("flag provided but not defined: -{name}")));
        }
        let is_bool = row.map_or_else(|| flags::is_switch(name), |row| row.kind == Kind::Bool);
        let value = match value {
            Some(value) => value,
            None if is_bool => "true".into(),
            None => match rest.next() {
                Some(value) => value.clone(),
                None => return Err(misspelt(&format!("flag needs an argument: -{name}"))),
            },
        };
        if let Some(row) = row
            && let Err(reason) = value::check(row.kind, &value)
        {
            let kind = if is_bool { "invalid boolean value" } else { "invalid value" };
            let link = if is_bool { "for" } else { "for flag" };
            return Err(misspelt(&format!("{kind} {value:?} {link} -{name}: {reason}")));
        }
        given.insert(name.to_owned(), value);
    }
    Ok(given)
}

fn positional(argument: &str) -> Asked {
    Asked::Refused(Refused::flags(format!("{argument:?} is not a valid flag")))
}

fn misspelt(reason: &str) -> Asked {
    Asked::Misspelt(format!("{reason}\n{}", usage()))
}

/// The variables beside the flags: none may say what a flag says as well.
fn from_line(given: &BTreeMap<String, String>, environment: &[(String, String)]) -> Result<Found, Refused> {
    let (mut flags, mut notes) = (given.clone(), Vec::new());
    for (variable, text) in environment {
        let Some(suffix) = variable.strip_prefix(PREFIX) else { continue };
        let name = suffix.to_lowercase().replace('_', "-");
        let row = table::find(&name);
        let is_known = row.is_some() || is_ours(&name);
        if is_known && given.contains_key(&name) {
            return Err(Refused {
                message: "conflicting environment variable is shadowed by corresponding command-line flag (either \
                          unset environment variable or disable flag))",
                error: String::new(),
                variable: variable.clone(),
            });
        }
        if !is_known || text.is_empty() {
            if !OTHER_VARIABLES.contains(&variable.as_str()) {
                notes.push(Note::Unrecognized { variable: format!("{variable}={text}") });
            }
            continue;
        }
        if let Some(row) = row {
            value::check(row.kind, text)
                .map_err(|reason| Refused::flags(format!("invalid value {text:?} for {variable}: {reason}")))?;
        }
        notes.push(Note::Recognized { variable: variable.clone(), value: told(&name, text) });
        flags.insert(name, text.clone());
    }
    Ok((flags, notes))
}

/// A value as the log may show it.
fn told(name: &str, text: &str) -> String {
    if name.contains("password") { "<redacted>".into() } else { text.to_owned() }
}

fn from_file(path: &str, load: impl Fn(&str) -> std::io::Result<String>) -> Result<Found, Refused> {
    let text = load(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Refused::flags(format!("open {path}: no such file or directory")),
        _ => Refused::flags(format!("open {path}: {error}")),
    })?;
    let read = config_file::read(&text).map_err(Refused::flags)?;
    let mut notes = vec![Note::File { path: path.to_owned() }];
    notes.extend(read.unknown.into_iter().map(|key| Note::Unknown { key }));
    for (name, text) in &read.flags {
        // The sample that etcd ships sets fallbacks that it no longer has.
        let Some(row) = table::find(name).filter(|row| row.kind != Kind::Text) else { continue };
        value::check(row.kind, text).map_err(|reason| Refused::flags(format!("{name}: {text:?}: {reason}")))?;
    }
    Ok((read.flags.into_iter().collect(), notes))
}

/// Our own command line for etcd's flags.
fn translate(flags: &BTreeMap<String, String>, mut notes: Vec<Note>) -> Result<(Vec<String>, Vec<Note>), Refused> {
    let mut line = Vec::new();
    let ours: BTreeSet<String> = flags::names().into_iter().collect();
    if !flags.contains_key("data-dir") {
        let name = flags.get("name").map_or("default", String::as_str);
        line.push(format!("--data-dir={name}.etcd"));
    }
    for (name, text) in flags {
        let Some(row) = table::find(name) else {
            line.push(format!("--{name}={text}"));
            continue;
        };
        match row.meaning {
            _ if row.kind == Kind::Gates => line.extend(gates(text, &mut notes)?),
            _ if ["version", "config-file"].contains(&row.name) => {}
            Meaning::Ours if ours.contains(name) => line.push(format!("--{name}={}", plain(row, text))),
            Meaning::Ours => notes.push(Note::Meaningless { flag: name.clone(), why: "this build does not serve it" }),
            Meaning::As(to) => {
                notes.push(Note::Renamed { flag: name.clone(), to });
                // The flag of today wins over the one of yesterday.
                if !flags.contains_key(to) {
                    line.push(format!("--{to}={}", plain(row, text)));
                }
            }
            Meaning::Nothing(why) => notes.push(Note::Meaningless { flag: name.clone(), why }),
            Meaning::Refused(harmless, _) if harmless.contains(&plain(row, text).as_str()) => {}
            Meaning::Refused(_, why) => return Err(Refused::flags(format!("--{name}: {why}"))),
        }
    }
    Ok((line, notes))
}

/// A value as our own flags take it: they know two words for yes and no.
fn plain(row: &Row, text: &str) -> String {
    match (row.kind, value::boolean(text)) {
        (Kind::Bool, Some(is)) => is.to_string(),
        _ => text.to_owned(),
    }
}

fn gates(text: &str, notes: &mut Vec<Note>) -> Result<Vec<String>, Refused> {
    let mut line = Vec::new();
    for (gate, is_on) in value::gates(text).map_err(Refused::flags)? {
        let flag = table::GATES.iter().find(|(name, _)| *name == gate).and_then(|(_, flag)| *flag);
        match flag {
            Some(flag) => line.push(format!("--{flag}={is_on}")),
            None => notes.push(Note::Meaningless { flag: format!("feature-gates: {gate}"), why: "it is etcd's own" }),
        }
    }
    Ok(line)
}

/// What `etcd --version` prints; tools read the first line.
fn version(reported: Option<&String>) -> String {
    let reported = reported.cloned().unwrap_or_else(|| flags::REPORTED_VERSION.to_owned());
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let own = env!("CARGO_PKG_VERSION");
    format!(
        "etcd Version: {reported}\nGit SHA: tailwater-{own}\nGo Version: none (tailwater {own})\nGo OS/Arch: {}/{arch}\n",
        std::env::consts::OS
    )
}

fn usage() -> String {
    let mut text =
        "Usage:\n\n  etcd [flags]\n    Start tailwater as an etcd server.\n\n  etcd --version\n    Show the \
                    version.\n\n  etcd -h | --help\n    Show this.\n\n  etcd --config-file\n    Path to the server \
                    configuration file. If it is given, other flags and variables are ignored.\n\nFlags:\n"
            .to_owned();
    for (name, help) in flags::described() {
        write!(text, "  --{name}\n    {help}\n").expect("writing to a string cannot fail");
    }
    text
}

#[cfg(test)]
mod tests;
