//! Every child's end, reported to who waits for it.
//!
//! A child is entered in the table before its end can be taken: by [`Reaper::spawn`], which forks under the table's
//! lock, or by [`Reaper::register`] while the child's first parent still lives. Other orphans are reaped silently.

use std::collections::HashMap;
use std::io;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, WaitOptions, WaitStatus};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// 0 to 255; 128 + n after signal n.
    pub code: i32,
    /// Nanoseconds since 1970.
    pub finished_at_ns: i64,
}

/// Becomes `Some` once.
pub type ExitReceiver = watch::Receiver<Option<Exit>>;

/// The table of children.
#[derive(Debug, Default)]
pub struct Reaper {
    waiting: Mutex<HashMap<i32, watch::Sender<Option<Exit>>>>,
}

impl Reaper {
    /// Starts `command`; its end will be told to the receiver.
    ///
    /// # Errors
    /// The kernel's, when it cannot be started.
    pub fn spawn(&self, command: &mut Command) -> io::Result<(i32, ExitReceiver)> {
        let mut waiting = self.lock();
        let pid = command.spawn()?.id().cast_signed();
        let (sender, receiver) = watch::channel(None);
        waiting.insert(pid, sender);
        Ok((pid, receiver))
    }

    /// Enters a process that will become this one's child.
    pub fn register(&self, pid: i32) -> ExitReceiver {
        let (sender, receiver) = watch::channel(None);
        self.lock().insert(pid, sender);
        receiver
    }

    /// Forgets a process that never became this one's child.
    pub fn forget(&self, pid: i32) {
        self.lock().remove(&pid);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, watch::Sender<Option<Exit>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the end of every child that has one.
    pub fn reap(&self) {
        let mut waiting = self.lock();
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if let Some(sender) = waiting.remove(&Pid::as_raw(Some(pid))) {
                sender.send_replace(Some(exit_of(status)));
            }
        }
    }

    /// Reaps for as long as the runtime lives.
    pub async fn run(self: Arc<Self>, mut child_signal: Signal) {
        loop {
            self.reap();
            if child_signal.recv().await.is_none() {
                return;
            }
        }
    }
}

/// The stream that [`Reaper::run`] waits on; made before the first child.
///
/// # Errors
/// When the handler cannot be installed.
pub fn child_signal() -> io::Result<Signal> {
    signal(SignalKind::child())
}

fn exit_of(status: WaitStatus) -> Exit {
    let code = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 255,
    };
    Exit { code, finished_at_ns: now_ns() }
}

/// The wall clock, in nanoseconds since 1970.
#[must_use]
pub fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_end_is_told_to_who_waits() {
        let reaper = Arc::new(Reaper::default());
        tokio::spawn(Arc::clone(&reaper).run(child_signal().unwrap()));
        let mut waiting = Vec::new();
        for (script, code) in [("exit 5", 5), ("kill -9 $$", 137), ("kill -34 $$", 162), ("true", 0)].repeat(10) {
            let (_, exit) = reaper.spawn(Command::new("/bin/sh").args(["-c", script])).unwrap();
            waiting.push((exit, code));
        }
        for (mut exit, code) in waiting {
            assert_eq!(exit.wait_for(Option::is_some).await.unwrap().unwrap().code, code);
        }
        assert!(reaper.lock().is_empty());
    }
}
