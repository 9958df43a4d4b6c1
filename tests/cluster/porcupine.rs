//! Linearizability by a checker that nobody here wrote (`checker/` around porcupine).
//!
//! Operations whose outcome nobody knows are decided by the log: an unknown write that is in it took place at that
//! revision, between its call and the first moment at which somebody was told of that revision or a later one;
//! one that is not in it never did. That keeps the search small and gives nothing away, because the log is complete
//! and is compared with the acknowledged operations by the [oracles](crate::oracle).

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use anyhow::Context;
use serde::Serialize;

use crate::history::{Action, Answer, Operation, Outcome, Record, is_put, kv, text};
use crate::oracle::claimed;
use crate::workload::PREFIX;

/// Whether the checker has been built.
static BUILT: Mutex<bool> = Mutex::new(false);

/// One operation on one key, as the checker reads it.
#[derive(Clone, Debug, Serialize)]
struct Line {
    client: usize,
    key: String,
    kind: &'static str,
    value: String,
    expected: i64,
    call: u64,
    #[serde(rename = "return")]
    end: u64,
    revision: i64,
    wrote: bool,
    found: Option<Found>,
}

#[derive(Clone, Debug, Serialize)]
struct Found {
    value: String,
    revision: i64,
}

/// The built checker.
#[derive(Debug)]
pub(crate) struct Checker(PathBuf);

impl Checker {
    /// Builds it; none when Go is not installed.
    ///
    /// # Errors
    /// When it does not build.
    pub(crate) fn build() -> anyhow::Result<Option<Self>> {
        if Command::new("go").arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
            return Ok(None);
        }
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("linearizability-checker");
        // Once in this process: others may be running it already.
        let mut is_built = BUILT.lock().expect("nobody panics with the lock");
        if *is_built {
            return Ok(Some(Self(program)));
        }
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/checker");
        let built = Command::new("go").args(["build", "-o"]).arg(&program).arg(".").current_dir(source).output()?;
        anyhow::ensure!(
            built.status.success(),
            "the checker does not build: {}",
            String::from_utf8_lossy(&built.stderr)
        );
        *is_built = true;
        Ok(Some(Self(program)))
    }

    /// Checks `record`.
    ///
    /// # Errors
    /// When it is not linearizable, or the checker did not find out.
    pub(crate) fn check(&self, record: &Record) -> anyhow::Result<()> {
        let lines = serde_json::to_vec(&lines(record))?;
        let picture =
            std::env::temp_dir().join(format!("tailwater-not-linearizable-{:08x}.html", rand::random::<u32>()));
        let mut child = Command::new(&self.0)
            .arg("-picture")
            .arg(&picture)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("the checker was built")?;
        child.stdin.take().context("piped")?.write_all(&lines)?;
        let output = child.wait_with_output()?;
        anyhow::ensure!(
            output.status.success(),
            "linearizable: the checker says: {}",
            String::from_utf8_lossy(&output.stdout).trim()
        );
        Ok(())
    }
}

/// The history as the checker wants it.
fn lines(record: &Record) -> Vec<Line> {
    let known = Known::of(record);
    let mut lines = Vec::new();
    for operation in record.operations.iter().filter(|operation| operation.is_linearizable()) {
        match (&operation.outcome, operation.value()) {
            (Outcome::Ok(answer), _) => lines.extend(each_key(operation, answer, operation.end)),
            (Outcome::Unknown, Some(value)) => {
                let Some(&revision) = known.written.get(value) else { continue };
                let answer = Answer { revision, wrote: true, found: None };
                lines.extend(each_key(operation, &answer, known.seen(revision).max(operation.call)));
            }
            (Outcome::Unknown | Outcome::Refused, _) => {}
        }
    }
    lines.extend(unknown_deletes(record, &known));
    lines
}

fn each_key(operation: &Operation, answer: &Answer, end: u64) -> impl Iterator<Item = Line> {
    let (kind, expected) = match operation.action {
        Action::Read { .. } => ("read", 0),
        Action::Put { .. } => ("put", 0),
        Action::Swap { expected, .. } => ("swap", expected),
        Action::Delete => ("delete", 0),
    };
    let found = answer.found.as_ref().map(|version| Found { value: version.value.clone(), revision: version.revision });
    operation.keys.iter().map(move |key| Line {
        client: operation.client,
        key: key.clone(),
        kind,
        value: operation.value().unwrap_or_default().to_owned(),
        expected,
        call: operation.call,
        end,
        revision: answer.revision,
        wrote: answer.wrote,
        found: found.clone(),
    })
}

/// Deletes in the log that nobody was told of. They carry no value, so which unknown delete was done is open: each may
/// have begun as early as the first of them.
fn unknown_deletes(record: &Record, known: &Known) -> Vec<Line> {
    let claimed = claimed(record);
    let mut begun: BTreeMap<&str, &Operation> = BTreeMap::new();
    for operation in &record.operations {
        if operation.action == Action::Delete && operation.outcome == Outcome::Unknown {
            begun.entry(&operation.keys[0]).or_insert(operation);
        }
    }
    let mut lines = Vec::new();
    for event in record.log.iter().filter(|event| !is_put(event)) {
        let (revision, key) = (kv(event).mod_revision, text(&kv(event).key));
        if claimed.contains_key(&revision) || !key.starts_with(PREFIX) {
            continue;
        }
        let Some(operation) = begun.get(key.as_str()) else { continue };
        let answer = Answer { revision, wrote: true, found: None };
        lines.extend(each_key(operation, &answer, known.seen(revision).max(operation.call)));
    }
    lines
}

/// What the log and all answers tell about writes of unknown outcome.
struct Known {
    /// Value to revision.
    written: BTreeMap<String, i64>,
    /// By revision: when somebody was first told of it or of a later one.
    told: BTreeMap<i64, u64>,
    /// After everything.
    end: u64,
}

impl Known {
    fn of(record: &Record) -> Self {
        let puts = record.log.iter().filter(|event| is_put(event)).map(kv);
        let written = puts.map(|pair| (text(&pair.value), pair.mod_revision)).collect();
        let answers = record.operations.iter().filter_map(|one| one.answer().map(|answer| (answer.revision, one.end)));
        let replies = record.watched.iter().flat_map(|watched| &watched.sessions).flat_map(|session| &session.replies);
        let mut told: BTreeMap<i64, u64> = BTreeMap::new();
        for (revision, at) in answers.chain(replies.map(|reply| (reply.revision, reply.at))) {
            let first = told.entry(revision).or_insert(at);
            *first = at.min(*first);
        }
        let end = told.values().max().map_or(0, |at| at + 1);
        let mut first = end;
        for at in told.values_mut().rev() {
            first = first.min(*at);
            *at = first;
        }
        Self { written, told, end }
    }

    fn seen(&self, revision: i64) -> u64 {
        self.told.range(revision..).next().map_or(self.end, |(_, at)| *at)
    }
}
