//! Namespaces of the process's own: it sees no other process, network, mount, host name, IPC object or cgroup.

use std::io;
use std::os::fd::BorrowedFd;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::plan::{JailError, step};
use crate::sys::{self, Fork};

/// Goes on in a child, in the cgroup v2 directory `cgroup` if there is one, as the first process of a PID namespace if it is to
/// be `jailed`, with the caller's own parent as its parent. The caller should end: so no second process stays for each pod,
/// and whoever started the caller can await the child.
///
/// A PID namespace holds only children, and KVM binds a machine to the process that made it, so this comes first.
///
/// # Errors
/// When the process has more than one thread, else the kernel's.
pub fn go_on_in_child(jailed: bool, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Fork> {
    let proc = rustix::fs::open(
        "/proc",
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    sys::fork_sibling(proc, if jailed { CloneFlags::CLONE_NEWPID } else { CloneFlags::empty() }, cgroup)
}

/// The others, which a process can enter itself.
pub(super) fn enter() -> Result<(), JailError> {
    let own = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    step("make namespaces", unshare(own))?;
    let none = None::<&str>;
    step("keep mounts from the host", mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none))
}
