//! The program of resuming watchers of the official Go client (`watchers/`), built and driven.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// How long the program may take to answer; it has shorter limits of its own.
const ANSWER_SECONDS_MAX: u64 = 300;

/// Whether the program has been built.
static BUILT: Mutex<bool> = Mutex::new(false);

/// Builds the program after its own tests have passed; none when Go is not installed.
///
/// # Errors
/// When it does not build.
pub(crate) fn build() -> anyhow::Result<Option<PathBuf>> {
    let go = |arguments: &[&str]| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tier/watchers");
        std::process::Command::new("go").args(arguments).current_dir(source).stdin(Stdio::null()).output()
    };
    if go(&["version"]).is_err() {
        return Ok(None);
    }
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tier-watchers");
    let mut is_built = BUILT.lock().expect("nobody panics with the lock");
    if !*is_built {
        let target = program.to_str().context("the target directory has a name in UTF-8")?;
        for step in [&["test", "./..."][..], &["build", "-o", target, "."]] {
            let output = go(step)?;
            let said = [output.stdout, output.stderr].concat();
            anyhow::ensure!(output.status.success(), "go {step:?}: {}", String::from_utf8_lossy(&said));
        }
        *is_built = true;
    }
    Ok(Some(program))
}

/// What all watchers were sent, compared with the log.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Verdict {
    pub(crate) watchers: u64,
    pub(crate) log: u64,
    pub(crate) events: u64,
    /// How often a watcher went on with another replica.
    pub(crate) moves: u64,
    missed: u64,
    duplicate: u64,
    out_of_order: u64,
    different: u64,
    broken: u64,
    ended: u64,
    #[expect(dead_code, reason = "shown when the check fails")]
    examples: Vec<String>,
}

impl Verdict {
    /// Fails unless all is as it must be.
    ///
    /// # Errors
    /// The first violations.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let wrong = self.missed + self.duplicate + self.out_of_order + self.different + self.broken + self.ended;
        anyhow::ensure!(wrong == 0, "{self:#?}");
        Ok(())
    }
}

/// For how long each watcher of a drained replica was not live.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Interruption {
    pub(crate) watchers: usize,
    /// Ascending.
    pub(crate) milliseconds: Vec<u64>,
    /// Those that had got nothing yet when they were asked.
    pub(crate) silent: usize,
}

/// How many watchers of what.
#[derive(Clone, Debug)]
pub(crate) struct Amount {
    pub(crate) watchers: usize,
    pub(crate) clients: usize,
    pub(crate) prefix: &'static str,
    pub(crate) groups: u64,
    /// First revision.
    pub(crate) from: i64,
}

/// The running program.
pub(crate) struct Watchers {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Watchers {
    /// Starts `program` on the replicas at `endpoints`, and returns when every watch is created. In the end the log is
    /// read from `log`.
    ///
    /// # Errors
    /// When they are not.
    pub(crate) async fn start(
        program: &Path,
        endpoints: &[String],
        log: &[String],
        amount: &Amount,
    ) -> anyhow::Result<Self> {
        let mut child = Command::new(program)
            .arg(format!("-endpoints={}", endpoints.join(",")))
            .arg(format!("-log={}", log.join(",")))
            .arg(format!("-watchers={}", amount.watchers))
            .arg(format!("-clients={}", amount.clients))
            .arg(format!("-prefix={}", amount.prefix))
            .arg(format!("-groups={}", amount.groups))
            .arg(format!("-from={}", amount.from))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let input = child.stdin.take().context("piped")?;
        let output = BufReader::new(child.stdout.take().context("piped")?).lines();
        let mut watchers = Self { child, input, output };
        let first = watchers.line().await?;
        anyhow::ensure!(first == "ready", "the watchers say {first:?}");
        Ok(watchers)
    }

    /// Begins to judge how long those that `member` serves are not live.
    ///
    /// # Errors
    /// When the program has ended.
    pub(crate) async fn judge(&mut self, member: u64) -> anyhow::Result<()> {
        self.say(&format!("drain {member}")).await
    }

    /// Ends what [`Watchers::judge`] began.
    ///
    /// # Errors
    /// When the program has ended.
    pub(crate) async fn settled(&mut self) -> anyhow::Result<Interruption> {
        self.say("settled").await?;
        self.answer().await
    }

    /// Waits until all watchers have `revision`, the log's last, and compares.
    ///
    /// # Errors
    /// When the log can't be read.
    pub(crate) async fn finish(mut self, revision: i64) -> anyhow::Result<Verdict> {
        self.say(&format!("finish {revision}")).await?;
        let verdict = self.answer().await?;
        self.child.wait().await?;
        Ok(verdict)
    }

    async fn say(&mut self, line: &str) -> anyhow::Result<()> {
        self.input.write_all(format!("{line}\n").as_bytes()).await.context("the watchers have ended")
    }

    async fn answer<T: DeserializeOwned>(&mut self) -> anyhow::Result<T> {
        let line = self.line().await?;
        serde_json::from_str(&line).with_context(|| format!("the watchers say {line:?}"))
    }

    async fn line(&mut self) -> anyhow::Result<String> {
        let next = tokio::time::timeout(Duration::from_secs(ANSWER_SECONDS_MAX), self.output.next_line()).await;
        next.context("the watchers say nothing")??.context("the watchers have ended")
    }
}
