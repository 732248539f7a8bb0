//! Why a `bulkhead-vmm` ended that left no record: it was killed, crashed, or did what its filter forbids.

use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{Signal, WaitId, WaitIdOptions, waitid};
use tokio::sync::watch;

use crate::sys::cgroup::Cgroup;
use crate::sys::process::Process;

/// The status comes as soon as the process is reaped; its connections close a little earlier.
const PATIENCE: Duration = Duration::from_millis(500);

/// Tells why a process of this daemon ended, once it has.
#[derive(Debug, Clone)]
pub(super) struct Death {
    status: watch::Receiver<Option<ExitStatus>>,
    cgroup: Option<Cgroup>,
}

impl Death {
    /// Reaps the processes in the background: the one that was started, and the one that it went on as, if it did.
    pub fn watch(mut child: tokio::process::Child, jailed: Option<Process>, cgroup: Option<Cgroup>) -> Self {
        let (sender, status) = watch::channel(None);
        tokio::spawn(async move {
            let started = child.wait().await.ok();
            let status = match jailed {
                Some(process) => reap(&process).await,
                None => started,
            };
            sender.send_replace(status);
        });
        Self { status, cgroup }
    }

    /// In words; `None` when it is not known.
    pub async fn text(&self) -> Option<String> {
        let mut status = self.status.clone();
        let known = tokio::time::timeout(PATIENCE, status.wait_for(Option::is_some)).await;
        let status = (*known.ok()?.ok()?)?;
        // The count is of the pod's whole life, and only says something when the kernel did the killing.
        let for_memory = self.cgroup.as_ref().and_then(|cgroup| cgroup.memory_kills().ok()).unwrap_or(0) > 0;
        Some(words(status, for_memory))
    }
}

/// Waits for the end of a child that the runtime does not know.
pub(super) async fn reap(process: &Process) -> Option<ExitStatus> {
    process.wait().await.ok()?;
    let status = waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG).ok()??;
    // As wait(2) gives it.
    let raw = status.terminating_signal().or_else(|| status.exit_status().map(|code| code << 8))?;
    Some(ExitStatus::from_raw(raw))
}

fn words(status: ExitStatus, for_memory: bool) -> String {
    match (status.signal().and_then(Signal::from_named_raw), status.signal(), status.code()) {
        (Some(Signal::KILL), ..) if for_memory => {
            "bulkhead-vmm was killed because the pod's cgroup ran out of memory (OOM)".into()
        }
        (Some(Signal::KILL), ..) => "bulkhead-vmm was killed by signal 9 (SIGKILL)".into(),
        (Some(Signal::SYS), ..) => {
            "bulkhead-vmm was killed for a system call that its filter forbids (signal 31, SIGSYS)".into()
        }
        (_, Some(signal), _) => format!("bulkhead-vmm crashed (signal {signal})"),
        (_, _, code) => format!("bulkhead-vmm ended with exit code {} and left no record", code.unwrap_or(-1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_apart() {
        let text = |raw, for_memory| words(ExitStatus::from_raw(raw), for_memory);
        assert!(text(9, true).contains("out of memory"));
        assert!(text(9, false).contains("SIGKILL"));
        assert!(text(31, true).contains("filter forbids"));
        assert!(text(6, false).contains("crashed (signal 6)"));
        assert!(text(1 << 8, false).contains("exit code 1"));
    }
}
