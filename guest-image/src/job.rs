//! Runs the programs of one build, with one log and one progress display.

use std::collections::VecDeque;
use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use thiserror::Error;

use crate::progress::Progress;

/// Lines of a program's output that an error message repeats.
const TOLD_LINES: usize = 25;

/// Why a step of the build did not succeed.
#[derive(Debug, Error)]
pub enum JobError {
    #[error("cannot write the build log {path}")]
    Log { path: PathBuf, source: io::Error },
    #[error("cannot run {program} to build the guest kernel")]
    Run { program: String, source: io::Error },
    #[error(
        "{program} failed with {status} while building the guest kernel \
         (`scripts/deps.sh` installs what a build needs); the whole log is {log}, its end:\n{tail}"
    )]
    Failed { program: String, status: ExitStatus, log: PathBuf, tail: String },
}

/// A command that dies with us and whose result does not depend on who calls us, or from where.
fn command(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--", program]);
    command.env_clear().envs(env::vars_os().filter(|(key, _)| key == "PATH" || key == "HOME" || key == "TMPDIR"));
    command.envs([
        ("LC_ALL", "C"),
        ("KBUILD_BUILD_TIMESTAMP", "1970-01-01 00:00:00 UTC"),
        ("KBUILD_BUILD_USER", "bulkhead"),
        ("KBUILD_BUILD_HOST", "bulkhead"),
        ("KBUILD_BUILD_VERSION", "1"),
    ]);
    command
}

/// The steps of one build.
#[derive(Debug)]
pub struct Job {
    /// Gets the output of every step.
    pub log_path: PathBuf,
    pub progress: Progress,
}

impl Job {
    /// Runs `program` in `dir` to its end.
    pub fn run<A: AsRef<OsStr>>(
        &mut self,
        dir: &Path,
        program: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<(), JobError> {
        let cannot_run = |source| JobError::Run { program: program.to_owned(), source };
        let cannot_log = |source| JobError::Log { path: self.log_path.clone(), source };

        let log = File::options().append(true).create(true).open(&self.log_path);
        let mut log = log.map_err(cannot_log)?;
        let (output, input) = io::pipe().map_err(cannot_run)?;
        let mut command = command(program);
        command.current_dir(dir).args(arguments).stdin(Stdio::null());
        command.stdout(input.try_clone().map_err(cannot_run)?).stderr(input);
        let mut child = command.spawn().map_err(cannot_run)?;
        // It holds the pipe's writing end, and would hide that the child closed it.
        drop(command);

        let mut tail = VecDeque::with_capacity(TOLD_LINES);
        for line in lines(output, &mut self.progress) {
            writeln!(log, "{line}").map_err(cannot_log)?;
            if tail.len() == TOLD_LINES {
                tail.pop_front();
            }
            tail.push_back(line);
        }
        let status = child.wait().map_err(cannot_run)?;
        if status.success() {
            return Ok(());
        }
        let tail = tail.make_contiguous().join("\n");
        Err(JobError::Failed { program: program.to_owned(), status, log: self.log_path.clone(), tail })
    }
}

/// The lines of `output` as they come, each one a step; the clock is shown while there are none.
fn lines(output: impl Read + Send + 'static, progress: &mut Progress) -> impl Iterator<Item = String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    std::iter::from_fn(move || {
        loop {
            match receiver.recv_timeout(Duration::from_millis(500)) {
                Ok(line) => {
                    progress.step();
                    return Some(line);
                }
                Err(RecvTimeoutError::Timeout) => progress.tick(),
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn job(dir: &Path) -> Job {
        Job { log_path: dir.join("log"), progress: Progress::start("test", 1) }
    }

    #[test]
    fn a_failure_tells_the_end_of_the_output() {
        let dir = tempfile::tempdir().unwrap();
        let mut job = job(dir.path());
        let script = "echo out; echo wrong >&2; exit 3";
        let error = job.run(dir.path(), "sh", ["-c", script]).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("sh failed with exit status: 3"), "{text}");
        assert!(text.ends_with("out\nwrong"), "{text}");
        assert_eq!(fs::read_to_string(&job.log_path).unwrap(), "out\nwrong\n");
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = job(dir.path()).run(dir.path(), "no-such-program", [""; 0]).unwrap_err();
        assert!(error.to_string().contains("no-such-program"), "{error}");
    }

    #[test]
    fn a_caller_inside_make_does_not_leak_its_flags() {
        let dir = tempfile::tempdir().unwrap();
        job(dir.path()).run(dir.path(), "sh", ["-c", "env > out"]).unwrap();
        let environment = fs::read_to_string(dir.path().join("out")).unwrap();
        assert!(environment.contains("PATH="));
        assert!(!environment.contains("CARGO_"), "{environment}");
    }
}
