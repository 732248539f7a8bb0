//! Running a program to its end, with a limit.

use std::ffi::OsStr;
use std::fmt;
use std::io::Read;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::wait;

/// What a program left behind.
#[derive(Debug)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// The output of a program that succeeded.
    ///
    /// # Errors
    /// Everything it said, when it failed.
    pub fn success(self) -> Result<Self> {
        if self.status.success() {
            return Ok(self);
        }
        bail!("{self}")
    }

    /// What a program that must fail said on standard error.
    ///
    /// # Errors
    /// When it succeeded.
    pub fn failure(self) -> Result<String> {
        if self.status.success() {
            bail!("this should have failed: {self}");
        }
        Ok(self.stderr)
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` ended with {}", self.command, self.status)?;
        for (name, text) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !text.trim().is_empty() {
                write!(f, "\n{name}: {}", text.trim_end())?;
            }
        }
        Ok(())
    }
}

/// Runs `program`; after `limit` it is killed and that is the error.
///
/// # Errors
/// When it cannot be started or takes too long. A failure of the program itself is in [`Output::status`].
pub fn run<A: AsRef<OsStr>>(program: impl AsRef<OsStr>, arguments: &[A], limit: Duration) -> Result<Output> {
    let mut command = Command::new(program);
    command.args(arguments);
    run_command(&mut command, limit)
}

/// As [`run`], for a command that is already put together.
///
/// # Errors
/// As [`run`].
pub fn run_command(command: &mut Command, limit: Duration) -> Result<Output> {
    run_with_input(command, Stdio::null(), limit)
}

/// As [`run_command`], with something to read on standard input.
///
/// # Errors
/// As [`run`].
pub fn run_with_input(command: &mut Command, input: impl Into<Stdio>, limit: Duration) -> Result<Output> {
    let line = describe(command);
    let mut child = command
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{line}`"))?;
    let stdout = reader(child.stdout.take());
    let stderr = reader(child.stderr.take());
    let status = wait::until(&format!("the end of `{line}`"), limit, || Ok(child.try_wait()?));
    if status.is_err() {
        child.kill().and_then(|()| child.wait()).with_context(|| format!("cannot kill `{line}`"))?;
    }
    let text =
        |thread: thread::JoinHandle<Vec<u8>>| String::from_utf8_lossy(&thread.join().unwrap_or_default()).into_owned();
    let (stdout, stderr) = (text(stdout), text(stderr));
    let status = status.with_context(|| format!("its output until then:\n{stdout}{stderr}"))?;
    Ok(Output { command: line, status, stdout, stderr })
}

fn reader(stream: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            // What came before an error is still worth showing.
            let _ = stream.read_to_end(&mut bytes);
        }
        bytes
    })
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
