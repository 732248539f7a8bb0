//! Every `unsafe` block of the agent, behind functions that are safe to call.
#![allow(unsafe_code)]

pub mod bpf;
pub mod dm;
pub mod loop_device;

use std::convert::Infallible;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use tokio::io::unix::AsyncFd;

use crate::seccomp::{Instruction, Program};

/// Which side of a [`fork`] this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The new process.
    Child,
    /// The old one, with the new one's id in its own PID namespace.
    Parent(i32),
}

/// `CLONE_INTO_CGROUP` of `linux/sched.h`.
const INTO_CGROUP: u64 = 0x2_0000_0000;

/// Duplicates the calling process, which must have one thread only, into the cgroup v2 directory `cgroup` if there is one. A
/// process that is moved there later waits until every processor has passed a quiet state, which takes milliseconds.
///
/// # Errors
/// The kernel's, and `EDEADLK` when there is more than one thread.
pub fn fork(cgroup: Option<BorrowedFd<'_>>) -> io::Result<Fork> {
    if std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() > 1) {
        return Err(io::Error::from_raw_os_error(libc::EDEADLK));
    }
    // SAFETY: all fields are integers, for which zero is a value.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    if let Some(cgroup) = cgroup {
        arguments.flags = INTO_CGROUP;
        arguments.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    // SAFETY: the process has one thread, checked above, so no lock can be held by a thread that the child lacks; without
    // CLONE_VM the child has a copy of everything, as after fork; the arguments outlive the call, and their true size is passed.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) } {
        0 => Ok(Fork::Child),
        pid if pid > 0 => i32::try_from(pid).map(Fork::Parent).map_err(|_| io::ErrorKind::InvalidData.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes a descriptor that the parent process left open under this number, and closes it on exec from now on.
///
/// # Errors
/// When it is one of the standard three, or not open.
pub fn take_descriptor(number: i32) -> io::Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: fcntl only changes a flag; a number that is not open is an error.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) }.into())?;
    // SAFETY: it is open, and was handed to this process for the caller: nothing else here owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Runs `work` on a thread of its own in the mount namespace behind `namespace`.
///
/// # Errors
/// When the namespace cannot be entered, and what `work` returns.
pub fn in_mount_namespace<T, F>(namespace: BorrowedFd<'_>, work: F) -> io::Result<T>
where
    T: Send,
    F: FnOnce() -> io::Result<T> + Send,
{
    std::thread::scope(|scope| {
        let entered = scope.spawn(|| {
            // A thread may change its mount namespace only when it shares root and current directory with no other.
            unshare(libc::CLONE_FS)?;
            rustix::thread::move_into_link_name_space(namespace, Some(rustix::thread::LinkNameSpaceType::Mount))?;
            work()
        });
        entered.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}

/// Gives the calling process a session keyring of its own, empty. A kernel without keyrings needs none.
///
/// # Errors
/// The kernel's.
pub fn new_session_keyring() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_long = 1;
    let no_name: *const libc::c_char = std::ptr::null();
    // SAFETY: a null name asks for a new anonymous keyring; nothing else is a pointer.
    match check(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, no_name) }) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        other => other,
    }
}

/// Moves the calling process, which must have one thread only, into new namespaces (`CLONE_NEW*` flags).
///
/// # Errors
/// The kernel's.
pub fn unshare(namespaces: libc::c_int) -> io::Result<()> {
    const FILES: libc::c_int = libc::CLONE_FILES;
    // SAFETY: descriptors stay shared (CLONE_FILES is masked out), and nothing else that unshare takes affects memory.
    check(unsafe { libc::unshare(namespaces & !FILES) }.into())
}

/// Sends a signal by number, real-time ones included, to the process behind `pidfd`.
///
/// # Errors
/// The kernel's: `ESRCH` when it has ended, `EINVAL` for a number that is no signal.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let no_info: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: the kernel builds the siginfo itself when given a null pointer; nothing else is a pointer.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, no_info, 0) })
}

/// Sends a signal by number to a process group.
///
/// # Errors
/// The kernel's.
pub fn kill_group(group: i32, signal: i32) -> io::Result<()> {
    // SAFETY: killpg takes two integers.
    check(unsafe { libc::killpg(group, signal) }.into())
}

/// Sends a signal by number to a process.
///
/// # Errors
/// The kernel's.
pub fn kill_process(pid: i32, signal: i32) -> io::Result<()> {
    if pid <= 1 {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    // SAFETY: kill takes two integers.
    check(unsafe { libc::kill(pid, signal) }.into())
}

/// The processes of a session, the leader aside.
#[must_use]
pub fn session_members(leader: i32) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| *pid != leader && session_of(*pid) == Some(leader)).collect()
}

fn session_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, which may hold anything, ends with the last parenthesis; state, parent, group and session follow.
    stat.rsplit_once(')')?.1.split_whitespace().nth(3)?.parse().ok()
}

/// Marks every descriptor from 3 on close-on-exec.
///
/// # Errors
/// The kernel's.
pub fn close_on_exec_from_3() -> io::Result<()> {
    // SAFETY: three integers; CLOSE_RANGE_CLOEXEC closes nothing now, so no owner loses its descriptor.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })
}

/// Gives every signal its default action and unblocks all, as a program expects to be started.
pub fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL installs no handler code; numbers that cannot be changed are refused by the kernel.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: an all-zero sigset_t is a valid empty set, and the old mask is not asked for.
    unsafe {
        let none: libc::sigset_t = std::mem::zeroed();
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Replaces the program of this process.
///
/// # Errors
/// The kernel's reason; on success it does not return.
pub fn execve(path: &CStr, args: &[&CStr], env: &[&CStr]) -> io::Result<Infallible> {
    let pointers = |list: &[&CStr]| -> Vec<*const libc::c_char> {
        list.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both arrays end in a null pointer, point to NUL-terminated strings, and outlive the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    Err(io::Error::last_os_error())
}

/// The user namespace that owns the namespace behind `namespace`.
///
/// # Errors
/// The kernel's: `EPERM` when it is not below the caller's own.
pub fn owning_user_namespace(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // _IO(0xb7, 1) of linux/nsfs.h.
    const NS_GET_USERNS: libc::Ioctl = 0xb701;
    // SAFETY: the request takes no argument and returns a new descriptor.
    let fd = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS) };
    check(fd.into())?;
    // SAFETY: the kernel has just made the descriptor for this call; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Changes attributes and propagation of the mount at `tree` (and those below it when `recursive`).
///
/// # Errors
/// The kernel's.
pub fn mount_setattr(tree: BorrowedFd<'_>, recursive: bool, set: u64, propagation: u64) -> io::Result<()> {
    set_attributes(tree, recursive, libc::mount_attr { attr_set: set, attr_clr: 0, propagation, userns_fd: 0 })
}

/// Shows the owners in the detached `tree`, and in all mounts below it, as ids of the user namespace `users`.
///
/// # Errors
/// The kernel's: `EINVAL` when a file system in it cannot do that, `EPERM` when a mount is id-mapped already.
pub fn map_ids(tree: BorrowedFd<'_>, users: BorrowedFd<'_>) -> io::Result<()> {
    let userns_fd = users.as_raw_fd().unsigned_abs().into();
    let attr = libc::mount_attr { attr_set: libc::MOUNT_ATTR_IDMAP, attr_clr: 0, propagation: 0, userns_fd };
    set_attributes(tree, true, attr)
}

fn set_attributes(tree: BorrowedFd<'_>, recursive: bool, attr: libc::mount_attr) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, `attr` lives through the call and its true size is passed.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    })
}

/// Installs a seccomp filter on the calling thread; its system calls obey it from here on.
///
/// # Errors
/// The kernel's: `EACCES` without both CAP_SYS_ADMIN and no_new_privs, `EINVAL` for what is no program.
pub fn set_seccomp_filter(program: &Program) -> io::Result<()> {
    let instruction = |i: &Instruction| libc::sock_filter { code: i.code, jt: i.jt, jf: i.jf, k: i.k };
    let mut instructions: Vec<libc::sock_filter> = program.instructions.iter().map(instruction).collect();
    let len = u16::try_from(instructions.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let whole = libc::sock_fprog { len, filter: instructions.as_mut_ptr() };
    // SAFETY: `whole` holds the length of the array it points to; both live through the call and the kernel copies them.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, program.flags, &raw const whole) })
}

/// Makes `terminal` the controlling terminal of this session leader.
///
/// # Errors
/// The kernel's.
pub fn set_controlling_terminal(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) }.into())
}

/// Lets the runtime watch a descriptor, which must be non-blocking.
///
/// # Errors
/// When it cannot be watched.
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd always returns the same descriptor and is the only one to close it, which the AsyncFd, its
    // owner from here on, does after it has been deregistered.
    unsafe { AsyncFd::register(fd) }.map_err(Into::into)
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
