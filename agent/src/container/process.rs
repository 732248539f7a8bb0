//! A process of a container: the first one, or one exec'd later.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use tokio::sync::watch;

use super::launch::Launched;
use crate::io::ProcessIo;
use crate::reaper::ExitReceiver;
use crate::sys;

/// How a process of a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// 0 to 255; 128 + n after signal n.
    pub code: i32,
    /// The kernel's OOM killer ended it.
    pub oom_killed: bool,
    /// Nanoseconds since 1970.
    pub finished_at_ns: i64,
}

/// A process and its streams; kept until it is removed.
#[derive(Debug)]
pub struct Process {
    /// In the agent's PID namespace.
    pub pid: i32,
    /// Names the process even after its number is used again.
    pub pidfd: OwnedFd,
    /// Standard streams.
    pub io: ProcessIo,
    /// `Some` once it has ended.
    pub status: watch::Receiver<Option<Status>>,
}

impl Process {
    /// Watches a launched process; `on_exit` runs once when it has ended, before anybody is told, and says of its exit
    /// code whether the kernel killed it for memory.
    #[must_use]
    pub fn watch<F>(launched: ProcessParts, on_exit: F) -> Arc<Self>
    where
        F: FnOnce(i32) -> bool + Send + 'static,
    {
        let ProcessParts { pid, pidfd, exit, io } = launched;
        let (sender, status) = watch::channel(None);
        tokio::spawn(report_exit(exit, on_exit, sender));
        Arc::new(Self { pid, pidfd, io, status })
    }

    /// Waits for the process's end.
    pub async fn wait(&self) -> Status {
        let mut status = self.status.clone();
        match status.wait_for(Option::is_some).await.map(|status| *status) {
            Ok(Some(status)) => status,
            // The watching task is never cancelled while the runtime lives.
            _ => Status { code: 255, oom_killed: false, finished_at_ns: 0 },
        }
    }

    /// It has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.status.borrow().is_some()
    }

    /// Sends a signal by number; a process that has ended needs none.
    ///
    /// # Errors
    /// The kernel's, for a number that is no signal.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        match sys::pidfd_send_signal(self.pidfd.as_fd(), signal) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other,
        }
    }
}

/// What [`Process::watch`] takes over from a launch.
#[derive(Debug)]
pub struct ProcessParts {
    /// In the agent's PID namespace.
    pub pid: i32,
    /// Of that process.
    pub pidfd: OwnedFd,
    /// Its end.
    pub exit: ExitReceiver,
    /// Its streams.
    pub io: ProcessIo,
}

impl ProcessParts {
    /// Splits a launch; the second part is needed to start it.
    #[must_use]
    pub fn new(launched: Launched, io: ProcessIo) -> (Self, super::launch::Control) {
        let Launched { pid, pidfd, exit, control, .. } = launched;
        (Self { pid, pidfd, exit, io }, control)
    }
}

async fn report_exit<F: FnOnce(i32) -> bool>(
    mut exit: ExitReceiver,
    on_exit: F,
    status: watch::Sender<Option<Status>>,
) {
    let Ok(Some(exit)) = exit.wait_for(Option::is_some).await.map(|exit| *exit) else { return };
    let oom_killed = on_exit(exit.code);
    status.send_replace(Some(Status { code: exit.code, oom_killed, finished_at_ns: exit.finished_at_ns }));
}
