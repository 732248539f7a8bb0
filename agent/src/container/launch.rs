//! Starting set-up helpers and talking to them. Blocking: call it off the runtime.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags};
use thiserror::Error;

use crate::helper::spec::{Reply, Spec};
use crate::helper::users::Identity;
use crate::helper::{ARGUMENT, wire};
use crate::reaper::{ExitReceiver, Reaper};
use crate::sys;

/// Longest wait for one answer of a helper: mounting a volume may wait for its server.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Why a process could not be made.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// The helper itself.
    #[error("cannot start the set-up helper {path}: {source}")]
    Spawn {
        /// Its binary.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket to it.
    #[error("lost the set-up helper: {0}")]
    Control(#[source] io::Error),
    /// It ended without a word.
    #[error("the set-up helper ended without an answer; it may have been killed for memory")]
    Vanished,
    /// What it said.
    #[error("{0}")]
    Refused(String),
}

impl LaunchError {
    /// Whether the helper may still be there, or even run its command; one that said why it failed ends on its own.
    #[must_use]
    pub fn may_leave_process(&self) -> bool {
        !matches!(self, Self::Refused(_))
    }
}

/// Starts helpers.
#[derive(Debug, Clone)]
pub struct Launcher {
    /// This program, where containers cannot write to it.
    binary: PathBuf,
    reaper: Arc<Reaper>,
}

/// A helper that waits for its specification; dropping it ends the helper.
#[derive(Debug)]
pub struct Helper {
    control: UnixStream,
    reaper: Arc<Reaper>,
}

/// A process that is built and waits for its start.
#[derive(Debug)]
pub struct Launched {
    /// In the agent's PID namespace.
    pub pid: i32,
    /// Names the process for good.
    pub pidfd: OwnedFd,
    /// Its end.
    pub exit: ExitReceiver,
    /// To start it with.
    pub control: Control,
    /// What could not be applied.
    pub warnings: Vec<String>,
    /// Whose rights it has; `None` for one that runs no command.
    pub identity: Option<Identity>,
    /// The agent's side of its terminal.
    pub terminal: Option<OwnedFd>,
}

/// The agent's end of a helper's control socket; dropping it ends a helper that waits.
#[derive(Debug)]
pub struct Control(UnixStream);

impl Launcher {
    /// Helpers are started from `binary`.
    #[must_use]
    pub fn new(binary: &Path, reaper: Arc<Reaper>) -> Self {
        Self { binary: binary.into(), reaper }
    }

    /// [`Self::begin`] and [`Helper::launch`].
    ///
    /// # Errors
    /// See [`LaunchError`]; no process is left then.
    pub fn launch(&self, spec: &Spec, fds: &[BorrowedFd<'_>]) -> Result<Launched, LaunchError> {
        self.begin()?.launch(spec, fds)
    }

    /// Starts a helper, which is being exec'd when this returns: what it is to build can be prepared meanwhile.
    ///
    /// # Errors
    /// See [`LaunchError`]; no process is left then.
    pub fn begin(&self) -> Result<Helper, LaunchError> {
        let (ours, theirs) = UnixStream::pair().map_err(LaunchError::Control)?;
        ours.set_read_timeout(Some(TIMEOUT)).map_err(LaunchError::Control)?;
        ours.set_write_timeout(Some(TIMEOUT)).map_err(LaunchError::Control)?;
        let mut command = Command::new(&self.binary);
        command.arg(ARGUMENT).env_clear().stdin(OwnedFd::from(theirs)).stdout(Stdio::null());
        let spawned = self.reaper.spawn(&mut command);
        let _ = spawned.map_err(|source| LaunchError::Spawn { path: self.binary.clone(), source })?;
        // The command keeps the helper's end of the socket open.
        drop(command);
        Ok(Helper { control: ours, reaper: Arc::clone(&self.reaper) })
    }
}

impl Helper {
    /// Builds a process; it has not exec'd its command when this returns.
    ///
    /// # Errors
    /// See [`LaunchError`]; no process is left then.
    pub fn launch(self, spec: &Spec, fds: &[BorrowedFd<'_>]) -> Result<Launched, LaunchError> {
        wire::send(&self.control, spec, fds).map_err(LaunchError::Control)?;
        let (pid, pidfd, exit) = self.adopt(&self.control)?;
        match receive(&self.control) {
            Ok((Reply::Ready { warnings, identity }, fds)) => {
                let terminal = fds.into_iter().next();
                Ok(Launched { pid, pidfd, exit, control: Control(self.control), warnings, identity, terminal })
            }
            failed => {
                let _ = sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
                Err(refusal(failed))
            }
        }
    }

    /// Enters the helper's child in the reaper's table while its parent waits.
    fn adopt(&self, mut control: &UnixStream) -> Result<(i32, OwnedFd, ExitReceiver), LaunchError> {
        let (pid, raw) = match receive(control) {
            Ok((Reply::Child(pid), _)) => (pid, Pid::from_raw(pid).ok_or(LaunchError::Vanished)?),
            failed => return Err(refusal(failed)),
        };
        let exit = self.reaper.register(pid);
        let adopted = rustix::process::pidfd_open(raw, PidfdFlags::empty())
            .map_err(io::Error::from)
            .and_then(|pidfd| control.write_all(&[1]).map(|()| pidfd));
        match adopted {
            Ok(pidfd) => Ok((pid, pidfd, exit)),
            Err(error) => {
                self.reaper.forget(pid);
                Err(LaunchError::Control(error))
            }
        }
    }
}

impl Control {
    /// Lets the process exec its command.
    ///
    /// # Errors
    /// Why the exec failed.
    pub fn start(self) -> Result<(), LaunchError> {
        (&self.0).write_all(&[1]).map_err(|_| LaunchError::Vanished)?;
        match wire::receive::<Reply>(&self.0) {
            Ok(None) => Ok(()),
            Ok(Some((Reply::Failed { message }, _))) => Err(LaunchError::Refused(message)),
            Ok(Some(_)) => Err(LaunchError::Vanished),
            Err(error) => Err(LaunchError::Control(error)),
        }
    }
}

fn receive(control: &UnixStream) -> Result<(Reply, Vec<OwnedFd>), LaunchError> {
    wire::receive(control).map_err(LaunchError::Control)?.ok_or(LaunchError::Vanished)
}

fn refusal(answer: Result<(Reply, Vec<OwnedFd>), LaunchError>) -> LaunchError {
    match answer {
        Ok((Reply::Failed { message }, _)) => LaunchError::Refused(message),
        Ok(_) => LaunchError::Vanished,
        Err(error) => error,
    }
}

/// Name of the file that [`fs::read_link`] says this program is.
///
/// # Errors
/// The kernel's.
pub fn own_binary() -> io::Result<PathBuf> {
    fs::read_link("/proc/self/exe")
}
