//! Processes that may not be our children, by pidfd: the per-pod processes outlive the daemon that started them.

#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Has the program that `command` will start find `descriptor` under `number`.
pub fn give_descriptor(command: &mut std::process::Command, descriptor: OwnedFd, number: RawFd) {
    let duplicate = move || {
        let done = if descriptor.as_raw_fd() == number {
            // SAFETY: fcntl takes no memory; the descriptor is open, because the closure owns it.
            unsafe { libc::fcntl(number, libc::F_SETFD, 0) }
        } else {
            // SAFETY: dup2 takes no memory; the descriptor is open, because the closure owns it.
            unsafe { libc::dup2(descriptor.as_raw_fd(), number) }
        };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: between fork and exec the closure makes one system call that is safe after fork, and allocates nothing.
    unsafe { command.pre_exec(duplicate) };
}

/// One process, unmistakable even after its number is used again.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    descriptor: OwnedFd,
}

impl Process {
    /// Refers to a running process (or a zombie) by number.
    ///
    /// # Errors
    /// `ESRCH` when there is none.
    pub fn open(pid: i32) -> io::Result<Self> {
        let number = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self { pid, descriptor: pidfd_open(number, PidfdFlags::NONBLOCK)? })
    }

    /// Refers to the process that had number `pid` when [`start_time`] was `started`; `None` when it is gone, whoever has
    /// the number now.
    ///
    /// # Errors
    /// When /proc or the kernel fails otherwise.
    pub fn find(pid: i32, started: u64) -> io::Result<Option<Self>> {
        let process = match Self::open(pid) {
            Ok(process) => process,
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(e) => return Err(e),
        };
        // Read after the descriptor was taken: if the time matches now, the descriptor is of that process.
        match start_time(pid) {
            Ok(time) if time == started => Ok(Some(process)),
            Ok(_) => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends a signal. A process that has ended is success.
    ///
    /// # Errors
    /// Those of `pidfd_send_signal` but `ESRCH`.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.descriptor, signal) {
            Err(e) if e != rustix::io::Errno::SRCH => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// Waits for its end, at most `limit`; whether it ended. Does not reap.
    ///
    /// # Errors
    /// Those of `poll`.
    pub fn wait_timeout(&self, limit: Duration) -> io::Result<bool> {
        let limit = Timespec::try_from(limit).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut polled = [PollFd::new(&self.descriptor, PollFlags::IN)];
        Ok(rustix::io::retry_on_intr(|| poll(&mut polled, Some(&limit)))? > 0)
    }

    /// Waits for its end. Does not reap.
    ///
    /// # Errors
    /// When the descriptor cannot be registered with the runtime.
    pub async fn wait(&self) -> io::Result<()> {
        // SAFETY: the descriptor is owned by `self`, which is borrowed until `registered` is dropped, so it stays open and
        // `as_raw_fd` keeps returning it.
        let registered = unsafe { AsyncFd::register_with_interest(self.descriptor.as_fd(), Interest::READABLE) }
            .map_err(io::Error::from)?;
        registered.readable().await?.retain_ready();
        Ok(())
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// When the process started, in clock ticks since boot (field 22 of /proc/PID/stat). With the number and the boot it
/// names a process for good.
///
/// # Errors
/// `NotFound` when there is no such process.
pub fn start_time(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The command name in parentheses may contain anything, so count from its end.
    stat.rsplit_once(')')
        .and_then(|(_, fields)| fields.split_whitespace().nth(19))
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat has no start time")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::process::Command;

    #[tokio::test]
    async fn a_process_is_signalled_and_awaited_without_reaping() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let started = start_time(pid).unwrap();
        let process = Process::find(pid, started).unwrap().unwrap();
        assert!(Process::find(pid, started + 1).unwrap().is_none());
        assert!(!process.wait_timeout(Duration::ZERO).unwrap());
        process.signal(Signal::KILL).unwrap();
        process.wait().await.unwrap();
        assert!(process.wait_timeout(Duration::ZERO).unwrap());
        assert!(!child.wait().unwrap().success());
        process.signal(Signal::KILL).unwrap();
        assert!(Process::find(pid, started).unwrap().is_none());
    }
}
