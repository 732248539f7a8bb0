//! The few calls that Rust's library does not wrap safely.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::unistd::ForkResult;
use rustix::fs::{Dir, Mode, OFlags, openat};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// This process's standard input.
#[must_use]
pub fn standard_input() -> BorrowedFd<'static> {
    // SAFETY: descriptor 0 was opened by whoever started the process, and nothing in it closes descriptor 0.
    unsafe { BorrowedFd::borrow_raw(0) }
}

/// Lets the child die with the thread that spawns it, and inherit `descriptors` under their numbers.
///
/// Call it on the main thread only, which lives as long as the process, and let nobody else spawn until the child runs.
pub fn inherit(command: &mut Command, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    for descriptor in descriptors {
        fcntl_setfd(descriptor.as_fd(), FdFlags::empty())?;
    }
    // SAFETY: the closure runs between fork and exec and makes one system call (prctl), which is async-signal-safe; it
    // allocates nothing and touches no memory of other threads.
    unsafe {
        command
            .pre_exec(|| rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from));
    }
    Ok(())
}

/// Splits the process in two; the child is returned to as `None`.
///
/// # Errors
/// When the process has more than one thread: a child of a threaded process could run into locks that nobody holds.
/// `proc` is an open /proc, which the caller's root need not have.
pub fn fork_single_threaded(proc: impl AsFd) -> io::Result<Option<nix::unistd::Pid>> {
    let tasks = openat(proc, "self/task", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let names = Dir::read_from(&tasks)?.collect::<Result<Vec<_>, _>>()?;
    let threads = names.iter().filter(|entry| !entry.file_name().to_bytes().starts_with(b".")).count();
    if threads != 1 {
        return Err(io::Error::other(format!("{threads} threads run; fork needs exactly one")));
    }
    // SAFETY: there is no other thread, so the child inherits no lock in an unknown state.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => Ok(None),
        ForkResult::Parent { child } => Ok(Some(child)),
    }
}

/// Leaves the user namespace this process is in for a new one of its own.
pub fn new_user_namespace() -> io::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER).map_err(io::Error::from)
}

/// Waits for a descriptor by the runtime.
pub fn watch_readable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by the returned value, so it stays open and the same while it is registered.
    unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }.map_err(io::Error::from)
}
