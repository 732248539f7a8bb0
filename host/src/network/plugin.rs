//! Running one CNI plugin: environment, standard input and output, time limit, and its failures in its own words.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::sys::host::is_executable;

/// Longest answer of a plugin in bytes.
const MAX_OUTPUT: u64 = 1 << 20;
/// What is kept of a plugin's standard error, in bytes.
const MAX_STDERR: u64 = 16 << 10;
/// How long a plugin's output may stay open after its exit, held by what it started.
const DRAIN: Duration = Duration::from_secs(2);

/// Which plugin was asked what; the beginning of every message about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// ADD, DEL, CHECK, STATUS or VERSION.
    pub command: &'static str,
    /// The plugin's type.
    pub plugin: Box<str>,
    /// The network's name.
    pub network: Box<str>,
    /// The network's configuration file.
    pub file: Box<Path>,
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CNI {} of plugin {} (network {}, {})", self.command, self.plugin, self.network, self.file.display())
    }
}

/// A plugin did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// No binary of that name.
    #[error("{call}: no such plugin in {searched}; install it or correct \"type\"")]
    Missing {
        /// The call.
        call: Call,
        /// Directories that were searched.
        searched: String,
    },
    /// It could not be started or talked to.
    #[error("{call}: cannot {action} {binary}")]
    Run {
        /// The call.
        call: Call,
        /// What was tried.
        action: &'static str,
        /// The binary.
        binary: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It did not end in time.
    #[error("{call}: no answer in {seconds} s, so it was killed{stderr}")]
    TimedOut {
        /// The call.
        call: Call,
        /// The limit.
        seconds: u64,
        /// What it wrote to standard error, or nothing.
        stderr: String,
    },
    /// It answered with an error of the specification.
    #[error("{call} failed: {message} (code {code})")]
    Failed {
        /// The call.
        call: Call,
        /// The specification's or the plugin's own code.
        code: u64,
        /// Its message and details.
        message: String,
    },
    /// It ended without a usable answer.
    #[error("{call}: {why}{stderr}")]
    Broken {
        /// The call.
        call: Call,
        /// How its answer is wrong.
        why: String,
        /// What it wrote to standard error, or nothing.
        stderr: String,
    },
}

/// How plugins are run.
#[derive(Debug, Clone)]
pub struct Runner {
    /// Directories with plugin binaries.
    pub directories: Vec<PathBuf>,
    /// Time limit of each call.
    pub limit: Duration,
}

#[derive(Deserialize)]
struct Refusal {
    code: u64,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

impl Runner {
    /// Runs the plugin of `call` with `environment` added to the daemon's own and `input` as standard input; its standard
    /// output. After the time limit its whole process group is killed. When the future is dropped, a plugin that only looks
    /// is killed too; one that changes something goes on to its end, as half of its work could be past undoing.
    ///
    /// # Errors
    /// See [`PluginError`].
    pub async fn run(
        &self,
        call: &Call,
        environment: &[(&str, OsString)],
        input: &[u8],
    ) -> Result<Vec<u8>, PluginError> {
        let binary = self.find(call)?;
        let failed = |action| {
            let binary = binary.clone();
            move |source| PluginError::Run { call: call.clone(), action, binary, source }
        };
        let search_path = std::env::join_paths(&self.directories).unwrap_or_default();
        let child = Command::new(&binary)
            .env("CNI_PATH", search_path)
            .env("CNI_COMMAND", call.command)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(failed("start"))?;
        let mut group = Group { child, kill_on_drop: !matches!(call.command, "ADD" | "DEL") };
        let (mut output, mut stderr) = (Vec::new(), Vec::new());
        match timeout(self.limit, group.converse(input, &mut output, &mut stderr)).await {
            Ok(ended) => {
                let status = ended.map_err(failed("talk to"))?;
                group.kill_on_drop = false;
                judge(call, status, output, &stderr)
            }
            Err(_) => {
                group.kill_on_drop = true;
                Err(PluginError::TimedOut { call: call.clone(), seconds: self.limit.as_secs(), stderr: told(&stderr) })
            }
        }
    }

    pub(super) fn find(&self, call: &Call) -> Result<PathBuf, PluginError> {
        self.directories.iter().map(|d| d.join(&*call.plugin)).find(|p| is_executable(p)).ok_or_else(|| {
            let searched: Vec<_> = self.directories.iter().map(|d: &PathBuf| Path::display(d).to_string()).collect();
            PluginError::Missing { call: call.clone(), searched: searched.join(", ") }
        })
    }
}

// A plugin and what it started.
struct Group {
    child: Child,
    kill_on_drop: bool,
}

impl Group {
    async fn converse(&mut self, input: &[u8], output: &mut Vec<u8>, stderr: &mut Vec<u8>) -> io::Result<ExitStatus> {
        let (stdin, out, err) = (self.child.stdin.take(), self.child.stdout.take(), self.child.stderr.take());
        let write = async {
            if let Some(mut stdin) = stdin {
                // A plugin may end without reading; its answer then says why.
                let _ = stdin.write_all(input).await;
            }
        };
        let read = async { tokio::join!(keep(out, output, MAX_OUTPUT + 1), keep(err, stderr, MAX_STDERR)) };
        let streams = async { tokio::join!(write, read) };
        tokio::pin!(streams);
        let mut drained = false;
        let status = tokio::select! {
            status = self.child.wait() => status?,
            _ = &mut streams => {
                drained = true;
                self.child.wait().await?
            }
        };
        if !drained {
            let _ = timeout(DRAIN, streams).await;
        }
        Ok(status)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.kill_on_drop {
            return;
        }
        // The child is not reaped as long as `id` is known, so the group's number cannot belong to others.
        if let Some(group) = self.child.id().and_then(|id| i32::try_from(id).ok()) {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
    }
}

// Reads to the end and keeps the first `limit` bytes, so that a chatty plugin does not block on a full pipe.
async fn keep(stream: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>, limit: u64) {
    let Some(mut stream) = stream else { return };
    let _ = (&mut stream).take(limit).read_to_end(kept).await;
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
}

fn judge(call: &Call, status: ExitStatus, output: Vec<u8>, stderr: &[u8]) -> Result<Vec<u8>, PluginError> {
    let broken = |why: String| PluginError::Broken { call: call.clone(), why, stderr: told(stderr) };
    if output.len() as u64 > MAX_OUTPUT {
        return Err(broken(format!("its answer is longer than {MAX_OUTPUT} bytes")));
    }
    if status.success() {
        return Ok(output);
    }
    if let Ok(refusal) = serde_json::from_slice::<Refusal>(&output) {
        let message = match (refusal.msg.trim(), refusal.details.trim()) {
            (message, "") => message.to_owned(),
            ("", details) => details.to_owned(),
            (message, details) => format!("{message}: {details}"),
        };
        return Err(PluginError::Failed { call: call.clone(), code: refusal.code, message });
    }
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("it exited with {code}"),
        (None, signal) => format!("it was killed by signal {}", signal.unwrap_or_default()),
    };
    Err(broken(if output.is_empty() {
        format!("{how} and no answer")
    } else {
        format!("{how} and an answer that is no error of the specification: {}", excerpt(&output))
    }))
}

fn told(stderr: &[u8]) -> String {
    if stderr.is_empty() { String::new() } else { format!("; its standard error: {}", excerpt(stderr)) }
}

/// The beginning of what a plugin wrote, on one line.
#[must_use]
pub fn excerpt(bytes: &[u8]) -> String {
    const LENGTH: usize = 400;
    let text = String::from_utf8_lossy(bytes);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= LENGTH { line } else { line.chars().take(LENGTH).chain("...".chars()).collect() }
}
