//! The pod's namespace holder: PID 1 of the pod's PID namespace, which only reaps.

use std::os::unix::net::UnixStream;

use rustix::process::{Pid, WaitOptions};

use super::spec::{PauseSpec, Reply};
use super::{Descriptors, Entry, HelperError, at, enter_and_fork, wire, write_setting};

pub(super) fn run(control: &UnixStream, spec: &PauseSpec, fds: &Descriptors) -> Result<(), HelperError> {
    let unshare = libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    let entry = Entry { cgroup_procs: spec.cgroup_procs, join: &[], unshare };
    enter_and_fork(control, &entry, fds)?;
    if !spec.hostname.is_empty() {
        let name = spec.hostname.as_bytes();
        rustix::system::sethostname(name).map_err(at(format!("set the hostname {:?}", spec.hostname)))?;
    }
    for (path, value) in &spec.sysctls {
        let path = format!("/proc/sys/{path}");
        write_setting(&path, value).map_err(at(format!("write {value:?} to {path}")))?;
    }
    let ready = Reply::Ready { warnings: Vec::new() };
    wire::send(control, &ready, &[]).map_err(at("report"))?;
    rest(control)
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
