//! `bulkhead-fs`: serves a pod's volumes as virtio-fs.
//!
//! ```text
//! bulkhead-vmm --requests, detached mounts--> mounter  (may mount; reads nothing of the guest)
//!                                                | one private mount namespace: the volume tree
//! guest --virtio-fs over vhost-user---------> server   (may not mount; reads what the guest sends)
//! ```
//!
//! The server is the mounter's child, so volumes that are added later appear under its root. Both end with the guest,
//! and with `bulkhead-vmm`.

mod logger;
mod mounter;
mod namespace;
pub mod protocol;
mod server;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, WaitOptions, getrlimit, setrlimit};

use self::namespace::step;
use crate::sys::{self, Fork};

/// Why there is no file server.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Something of the kernel's.
    #[error("cannot {step}: {source}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The system call filter.
    #[error("cannot restrict system calls: {0}")]
    Seccomp(String),
    /// The guest's side.
    #[error("cannot serve vhost-user: {0}")]
    VhostUser(String),
    /// The server, seen from the mounter.
    #[error("the server process ended with {0}")]
    Server(String),
}

/// What the process is given.
#[derive(Debug)]
pub struct Sockets {
    /// Requests of `protocol`, from `bulkhead-vmm`.
    pub requests: OwnedFd,
    /// Where the guest's side connects, or has connected.
    pub vhost_user: UnixListener,
}

/// Becomes mounter and server; returns when the guest is gone. The process must have one thread.
///
/// # Errors
/// When either cannot work.
pub fn run(sockets: Sockets) -> Result<(), ServerError> {
    logger::install();
    let parent = step("find the parent process", rustix::process::getppid().ok_or(io::ErrorKind::NotFound))?;
    let descriptors = step("raise the limit of open files", raise_file_limit())?;
    let namespace = namespace::enter()?;
    // Changing credentials has cleared it.
    step("tie this process to bulkhead-vmm", sys::die_with(parent))?;
    let mounter = rustix::process::getpid();
    match step("fork", sys::fork(&namespace.proc))? {
        Fork::Child => {
            drop((sockets.requests, namespace.tree));
            step("tie the server to the mounter", sys::die_with(mounter))?;
            server::run(sockets.vhost_user, namespace.proc, descriptors)
        }
        Fork::Parent(child) => {
            drop((sockets.vhost_user, namespace.proc));
            let pidfd = step("watch the server", rustix::process::pidfd_open(child, PidfdFlags::empty()))?;
            let served = mounter::run(&sockets.requests, &pidfd, &namespace.tree);
            end(child)?;
            step("serve requests", served)
        }
    }
}

/// To as many as this process may have.
fn raise_file_limit() -> rustix::io::Result<u64> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    Ok(maximum.unwrap_or(u64::MAX))
}

/// Reaps the server, which is killed if it still runs.
fn end(child: Pid) -> Result<(), ServerError> {
    let ended = rustix::process::waitpid(Some(child), WaitOptions::NOHANG);
    if let Ok(Some((_, status))) = ended {
        return match (status.exit_status(), status.terminating_signal()) {
            (Some(0), _) => Ok(()),
            (Some(code), _) => Err(ServerError::Server(format!("exit code {code}"))),
            (None, signal) => Err(ServerError::Server(format!("signal {}", signal.unwrap_or(0)))),
        };
    }
    step("end the server", rustix::process::kill_process(child, rustix::process::Signal::KILL))?;
    step("reap the server", rustix::process::waitpid(Some(child), WaitOptions::empty()).map(drop))
}
