//! The pod's namespace holder: PID 1 of the pod's PID namespace, which only reaps.
//!
//! A container that shares the namespace and has CAP_SYS_PTRACE reaches all that this process has, through /proc/1 or
//! by taking it over: it has an empty root, no capabilities, and no descriptors of the host's files.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::mount::{MountAttrFlags, MoveMountFlags};
use rustix::process::{Pid, WaitOptions};

use super::paths::Root;
use super::spec::{CapabilitySpec, PauseSpec, Reply};
use super::{
    Descriptors, Entry, HelperError, at, capabilities, container, enter_and_fork, go_on_in_child, mounts,
    user_namespace, wire, write_setting,
};
use crate::sys;

/// Where the empty root is attached on its way to "/": guests and hosts have it, and the settings are written by then.
const ATTACH_POINT: &str = "/proc";

pub(super) fn run(control: &UnixStream, spec: &PauseSpec, fds: Descriptors) -> Result<(), HelperError> {
    let entry = Entry { cgroup: spec.cgroup, join: &[], unshare: spec.namespaces };
    match &spec.user_namespace {
        None => enter_and_fork(control, &entry, &fds)?,
        Some(users) => {
            user_namespace::join(&entry, &fds)?;
            user_namespace::enter(users, &fds)?;
            sys::unshare(spec.namespaces).map_err(at("make the pod's namespaces"))?;
            go_on_in_child(control, None, &[], &fds)?;
        }
    }
    drop(fds);
    if !spec.hostname.is_empty() {
        let name = spec.hostname.as_bytes();
        rustix::system::sethostname(name).map_err(at(format!("set the hostname {:?}", spec.hostname)))?;
    }
    for (path, value) in &spec.sysctls {
        let path = format!("/proc/sys/{path}");
        write_setting(&path, value).map_err(at(format!("write {value:?} to {path}")))?;
    }
    give_everything_up()?;
    let ready = Reply::Ready { warnings: Vec::new(), identity: None };
    wire::send(control, &ready, &[]).map_err(at("report"))?;
    rest(control)
}

/// Leaves the agent's files, descriptors and rights behind.
fn give_everything_up() -> Result<(), HelperError> {
    enter_empty_root()?;
    let (nothing, writer) = io::pipe().map_err(at("make a pipe"))?;
    drop(writer);
    rustix::stdio::dup2_stdin(&nothing)
        .and_then(|()| rustix::stdio::dup2_stdout(&nothing))
        .and_then(|()| rustix::stdio::dup2_stderr(&nothing))
        .map_err(at("leave the agent's standard streams"))?;
    capabilities::limit_bounding(0)?;
    let none = CapabilitySpec { bounding: 0, effective: 0, permitted: 0, inheritable: 0, ambient: 0 };
    capabilities::apply(&none)?;
    rustix::thread::set_no_new_privs(true).map_err(at("set no_new_privs"))
}

fn enter_empty_root() -> Result<(), HelperError> {
    sys::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP).map_err(at("make mount and cgroup namespaces"))?;
    container::make_mounts_private()?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let options = [("mode", "555"), ("size", "4k"), ("nr_inodes", "1")];
    let tree = mounts::detached("tmpfs", &options, attributes).map_err(at("make an empty root"))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(tree.as_fd(), "", rustix::fs::CWD, ATTACH_POINT, flags)
        .map_err(at("attach the empty root"))?;
    container::pivot(&Root::new(tree))
}

/// Reaps until the agent closes the control socket, which ends the namespace.
fn rest(control: &UnixStream) -> Result<(), HelperError> {
    let signals = nix::sys::signal::SigSet::from(nix::sys::signal::Signal::SIGCHLD);
    signals.thread_block().map_err(at("block SIGCHLD"))?;
    let children = nix_signalfd(&signals).map_err(at("watch for SIGCHLD"))?;
    loop {
        let mut events = [
            rustix::event::PollFd::new(control, rustix::event::PollFlags::IN),
            rustix::event::PollFd::new(&children, rustix::event::PollFlags::IN),
        ];
        match rustix::event::poll(&mut events, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other.map_err(at("wait"))?,
        };
        if !events[0].revents().is_empty() {
            return Ok(());
        }
        let mut drained = [0; 128];
        let _ = rustix::io::read(&children, &mut drained);
        while let Ok(Some(_)) = rustix::process::waitpid(None::<Pid>, WaitOptions::NOHANG) {}
    }
}

fn nix_signalfd(signals: &nix::sys::signal::SigSet) -> nix::Result<nix::sys::signalfd::SignalFd> {
    use nix::sys::signalfd::{SfdFlags, SignalFd};
    SignalFd::with_flags(signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}
