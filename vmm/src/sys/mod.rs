//! What needs `unsafe` outside the devices: child processes, descriptors by number, signals, malloc's settings.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sched::CloneFlags;
use rustix::fs::{Dir, Mode, OFlags, openat};
use rustix::io::FdFlags;
use rustix::process::{Pid, Signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Closes every descriptor from `first` on: whatever the parent leaked.
///
/// # Errors
/// The kernel's.
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: called before this process owns a descriptor from `first` on; nobody's descriptor is closed.
    match unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes a descriptor that the parent process left open under this number, and closes it on exec from now on.
///
/// # Errors
/// When it is one of the standard three, or not open.
pub fn take_descriptor(number: RawFd) -> io::Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: fcntl only reads and changes a flag; a number that is not open is an error.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and was handed to this process for the caller: nothing else here owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Lives on when the terminal or session goes away, and gets errors instead of SIGPIPE.
///
/// # Errors
/// The kernel's.
pub fn ignore_hangup() -> io::Result<()> {
    use nix::sys::signal::{SigHandler, Signal, signal};
    for ignored in [Signal::SIGHUP, Signal::SIGPIPE] {
        // SAFETY: ignoring a signal installs no handler.
        unsafe { signal(ignored, SigHandler::SigIgn) }?;
    }
    Ok(())
}

/// Keeps malloc from making an arena for each thread, and gives freed memory back early.
pub fn use_little_memory() {
    for (parameter, value) in
        [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, 128 << 10), (libc::M_TRIM_THRESHOLD, 128 << 10)]
    {
        // SAFETY: mallopt takes two integers; an unknown parameter is ignored.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Lets the command's process inherit `keep` under the same numbers, and be killed when this thread ends.
pub fn bind_child(command: &mut Command, keep: Vec<OwnedFd>) {
    let parent = rustix::process::getpid();
    let prepare = move || {
        die_with(parent)?;
        for fd in &keep {
            rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: runs between fork and exec, and only makes system calls: no allocation, no lock.
    unsafe { command.pre_exec(prepare) };
}

/// Lets the agent's process inherit `ready` under the same number, run in the network namespace `netns`, and be asked to end
/// when this thread does: an agent that is killed instead leaves its containers running.
pub fn bind_agent(command: &mut Command, ready: OwnedFd, netns: Option<OwnedFd>) {
    let parent = rustix::process::getpid();
    let prepare = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
        if rustix::process::getppid() != Some(parent) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        if let Some(netns) = &netns {
            nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET)?;
        }
        Ok(rustix::io::fcntl_setfd(&ready, FdFlags::empty())?)
    };
    // SAFETY: runs between fork and exec, and only makes system calls: no allocation, no lock.
    unsafe { command.pre_exec(prepare) };
}

/// SIGKILL for this process when the parent thread ends; an error when it has already.
///
/// # Errors
/// `NotConnected` when the parent is gone, else the kernel's.
pub fn die_with(parent: Pid) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::NotConnected.into()) }
}

/// Waits for a descriptor by the runtime.
///
/// # Errors
/// When the runtime cannot watch it.
pub fn watch_readable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the returned value owns the descriptor, so it stays open and the same while it is registered.
    unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }.map_err(io::Error::from)
}

/// Which side of a fork this is.
#[derive(Debug, Clone, Copy)]
pub enum Fork {
    /// The new process.
    Child,
    /// The old one.
    Parent(Pid),
}

/// Copies this process, which must have one thread only. `proc` is an open /proc, which the caller's root need not have.
///
/// # Errors
/// `Unsupported` when there are more threads, else the kernel's.
pub fn fork(proc: impl AsFd) -> io::Result<Fork> {
    need_one_thread(proc)?;
    // SAFETY: with one thread no lock can be held by another that does not exist in the child.
    forked(unsafe { libc::fork() }.into())
}

/// `CLONE_INTO_CGROUP` of `linux/sched.h`.
const INTO_CGROUP: u64 = 0x2_0000_0000;

/// Like [`fork`], but the new process is a child of this process's parent, in namespaces of its own as `own` says, and in the
/// cgroup v2 directory `cgroup`. A process that is moved there later waits until every processor has passed a quiet state,
/// which takes milliseconds.
///
/// # Errors
/// As [`fork`].
pub fn fork_sibling(proc: impl AsFd, own: CloneFlags, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Fork> {
    need_one_thread(proc)?;
    // SAFETY: all fields are integers, for which zero is a value.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    // The kernel takes the parent's own exit signal, which is SIGCHLD.
    arguments.flags = u64::from((own.bits() | libc::CLONE_PARENT).cast_unsigned());
    if let Some(cgroup) = cgroup {
        arguments.flags |= INTO_CGROUP;
        arguments.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    // SAFETY: without CLONE_VM the child has a copy of everything, as after fork; with one thread no lock can be held by
    // another that does not exist in the child. The arguments outlive the call, and their true size is passed.
    forked(unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) })
}

/// A panic shall say where it was, and not look for files to say more.
///
/// # Errors
/// `Unsupported` when there are more threads.
pub fn forget_backtraces() -> io::Result<()> {
    need_one_thread(rustix::fs::open("/proc", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)?;
    for name in ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"] {
        // SAFETY: there is no other thread that could read the environment at the same time.
        unsafe { std::env::remove_var(name) };
    }
    Ok(())
}

fn need_one_thread(proc: impl AsFd) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let tasks = Dir::read_from(openat(proc, "self/task", flags, Mode::empty())?)?.collect::<Result<Vec<_>, _>>()?;
    if tasks.iter().filter(|entry| !entry.file_name().to_bytes().starts_with(b".")).count() != 1 {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "this takes a process with one thread"));
    }
    Ok(())
}

fn forked(result: libc::c_long) -> io::Result<Fork> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            pid.map(Fork::Parent).ok_or_else(|| io::ErrorKind::Other.into())
        }
    }
}
