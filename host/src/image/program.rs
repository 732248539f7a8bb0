//! Programs that do a part of our work: credential helpers and `gpgv`, within bounds of time and output.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use zeroize::Zeroizing;

/// What a program said before it ended.
pub(crate) struct Output {
    pub status: ExitStatus,
    /// May hold a secret.
    pub stdout: Zeroizing<Vec<u8>>,
}

/// Why a program gave no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProgramError {
    /// It could not be started, or its pipes broke.
    #[error("cannot run {program}: {reason}")]
    Run {
        /// Its name.
        program: String,
        /// From the kernel.
        reason: String,
    },
    /// Killed after the time limit.
    #[error("{program} did not end within {} s and was killed", .limit.as_secs())]
    TimedOut {
        /// Its name.
        program: String,
        /// The limit.
        limit: Duration,
    },
    /// Killed as it went on writing.
    #[error("{program} wrote more than {limit} bytes and was killed")]
    TooMuch {
        /// Its name.
        program: String,
        /// The limit in bytes.
        limit: usize,
    },
}

/// Runs `command` with `input`; it and what it started are killed at the limits, and when the future is dropped.
pub(crate) async fn run(
    mut command: Command,
    input: &[u8],
    limit: Duration,
    max_output: usize,
) -> Result<Output, ProgramError> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let failed = |error: std::io::Error| ProgramError::Run { program: program.clone(), reason: error.to_string() };
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0).kill_on_drop(true);
    let mut group = Group(command.spawn().map_err(failed)?);
    let (stdin, out) = (group.0.stdin.take(), group.0.stdout.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            // A program may end without reading; its status then says how that went.
            let _ = stdin.write_all(input).await;
        }
    };
    let all = async { tokio::join!(write, read(out, max_output), group.0.wait()) };
    let Ok(((), stdout, status)) = tokio::time::timeout(limit, all).await else {
        return Err(ProgramError::TimedOut { program, limit });
    };
    let (stdout, status) = (stdout.map_err(failed)?, status.map_err(failed)?);
    if stdout.len() > max_output {
        return Err(ProgramError::TooMuch { program, limit: max_output });
    }
    Ok(Output { status, stdout })
}

/// At most one byte more than `limit`; then the pipe is closed.
async fn read(pipe: Option<impl AsyncRead + Unpin>, limit: usize) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::new());
    if let Some(pipe) = pipe {
        pipe.take(limit as u64 + 1).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

/// A program and what it started.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // Once it has been waited for, its number may be somebody else's.
        if let Some(pid) = self.0.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn talks_both_ways() {
        let output = run(shell("cat; echo no >&2; exit 3"), b"in", Duration::from_secs(20), 100).await.unwrap();
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(3), &b"in"[..]));
    }

    #[tokio::test]
    async fn is_bounded() {
        let late = run(shell("sleep 100"), b"", Duration::from_millis(100), 100).await;
        assert!(matches!(late, Err(ProgramError::TimedOut { .. })));
        let much = run(shell("head -c 1000 /dev/zero"), b"", Duration::from_secs(20), 100).await;
        assert!(matches!(much, Err(ProgramError::TooMuch { .. })));
        let absent = run(Command::new("/absent"), b"", Duration::from_secs(20), 100).await;
        assert!(absent.err().unwrap().to_string().contains("/absent"));
    }
}
