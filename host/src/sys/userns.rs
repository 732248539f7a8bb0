//! User namespaces of pods. Nothing binds one: it lives as long as the network namespace that it owns.
//!
//! A process with threads cannot move into a user namespace, so a child that never executes anything is born in the new
//! namespaces, has its ids mapped by its parent, and ends. It has this process's descriptors, but until the pod's agent is
//! started nobody else is in there to take them.

#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen, mount_bind};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::mounts;
use super::netns::{self, NetnsError};

/// Ids of the host that are one after the other; the first is root's in the namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// First one on the host.
    pub host_id: u32,
    /// How many.
    pub length: u32,
}

/// The ids of a user namespace, from 0 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// Users.
    pub uids: IdRange,
    /// Groups.
    pub gids: IdRange,
}

/// What this host's kernel cannot do for a pod with users of its own.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} ({needs})")]
pub struct ProbeError {
    step: &'static str,
    needs: &'static str,
    source: io::Error,
}

/// Creates a network namespace at `path`, and a user namespace that it belongs to.
///
/// # Errors
/// As [`netns::create`]; the kernel refuses when `user.max_user_namespaces` is used up.
pub fn create_network(path: &Path, mapping: Mapping) -> Result<(), NetnsError> {
    netns::create_with(path, |target| {
        let failed = |step, source: io::Error| NetnsError::Create { path: target.to_owned(), step, source };
        let child = Child::start(libc::CLONE_NEWUSER | libc::CLONE_NEWNET, nothing)
            .map_err(|e| failed("clone with a user namespace", e))?;
        child.map(mapping).map_err(|e| failed("mapping of the user namespace's ids", e))?;
        mount_bind(child.namespace("net"), target).map_err(|e| failed("bind mount", e.into()))
    })
}

/// Tries on this kernel what a pod with a user namespace takes.
///
/// # Errors
/// What is missing.
pub fn probe() -> Result<(), ProbeError> {
    let lacks = |step, needs| move |source| ProbeError { step, needs, source };
    let namespaces = libc::CLONE_NEWUSER | libc::CLONE_NEWNET | libc::CLONE_NEWPID | libc::CLONE_NEWNS;
    let needs = "CONFIG_USER_NS and a user.max_user_namespaces above 0";
    let mut child = Child::start(namespaces, mount_proc_and_sysfs).map_err(lacks("make a user namespace", needs))?;
    let range = IdRange { host_id: 65_536, length: 65_536 };
    child.map(Mapping { uids: range, gids: range }).map_err(lacks("map the ids of a user namespace", needs))?;
    let needs = "/proc and /sys of this host must not be covered in part, as they are in a container";
    child.result().map_err(lacks("mount /proc and /sys in a user namespace", needs))?;
    let needs = "Linux 6.3";
    let users = File::open(child.namespace("user")).map_err(lacks("open a user namespace", needs))?;
    let tree = tmpfs().map_err(|e| lacks("make a tmpfs", needs)(e.into()))?;
    mounts::map_ids(&tree, &users).map_err(lacks("map the owners' ids of a tmpfs", needs))
}

fn tmpfs() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

/// Runs in a copy of a process with threads, of which this one alone goes on: it may make system calls and nothing else.
/// Gives 0, or an error number.
type Work = fn() -> u8;

fn nothing() -> u8 {
    0
}

fn mount_proc_and_sysfs() -> u8 {
    const CREATE: libc::c_uint = 6;
    for kind in [c"proc", c"sysfs"] {
        // SAFETY: the name is a NUL-terminated literal; the other arguments are integers, or null where the kernel takes no
        // pointer. The descriptors end with the process.
        let mounted = unsafe {
            let context = libc::syscall(libc::SYS_fsopen, kind.as_ptr(), 0);
            let none: *const libc::c_char = std::ptr::null();
            let created = libc::syscall(libc::SYS_fsconfig, context, CREATE, none, none, 0);
            if created == 0 { libc::syscall(libc::SYS_fsmount, context, 0, 0) } else { created }
        };
        if mounted < 0 {
            // SAFETY: gives the address of this thread's own error number.
            return unsafe { *libc::__errno_location() }.try_into().unwrap_or(u8::MAX);
        }
    }
    0
}

/// A child that holds new namespaces; ends when dropped.
struct Child {
    pid: Pid,
    orders: io::PipeWriter,
    reports: io::PipeReader,
}

impl Child {
    /// Its `work` waits until its ids are mapped.
    fn start(namespaces: libc::c_int, work: Work) -> io::Result<Self> {
        let (order_reader, orders) = io::pipe()?;
        let (reports, report_writer) = io::pipe()?;
        let descriptors = [order_reader.as_raw_fd(), orders.as_raw_fd(), report_writer.as_raw_fd()];
        let flags = libc::c_long::from(namespaces | libc::SIGCHLD);
        // SAFETY: without CLONE_VM the child has a copy of everything, as after fork, and a null stack means the caller's; the
        // other pointers are not used. What other threads held stays locked in it, but `run` makes system calls only and never
        // returns.
        match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
            -1 => Err(io::Error::last_os_error()),
            0 => run(descriptors, work),
            pid => {
                let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::Other)?;
                Ok(Self { pid, orders, reports })
            }
        }
    }

    fn map(&self, mapping: Mapping) -> io::Result<()> {
        for (file, range) in [("uid_map", mapping.uids), ("gid_map", mapping.gids)] {
            let path = format!("/proc/{}/{file}", self.pid.as_raw_nonzero());
            fs::write(path, format!("0 {} {}\n", range.host_id, range.length))?;
        }
        (&self.orders).write_all(&[1])
    }

    /// Waits for its work.
    fn result(&mut self) -> io::Result<()> {
        let mut code = [0];
        self.reports.read_exact(&mut code)?;
        if code == [0] { Ok(()) } else { Err(io::Error::from_raw_os_error(code[0].into())) }
    }

    fn namespace(&self, kind: &str) -> String {
        format!("/proc/{}/ns/{kind}", self.pid.as_raw_nonzero())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It cannot have been reaped: nobody else waits for it.
        let _ = kill_process(self.pid, Signal::KILL);
        let _ = waitpid(Some(self.pid), WaitOptions::empty());
    }
}

/// The whole life of the child.
fn run([orders, others_orders, reports]: [libc::c_int; 3], work: Work) -> ! {
    let mut order = 0_u8;
    // SAFETY: the descriptors are this process's copies, and `order` is one byte that outlives the calls. The parent's end of
    // the orders is closed so that they end with the parent.
    unsafe {
        libc::close(others_orders);
        if libc::read(orders, (&raw mut order).cast(), 1) == 1 {
            let code = work();
            libc::write(reports, (&raw const code).cast(), 1);
            libc::read(orders, (&raw mut order).cast(), 1);
        }
        libc::_exit(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd, FromRawFd};

    #[test]
    fn a_network_belongs_to_the_users_it_was_made_with() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("SKIPPED: it takes root to map ids");
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("net");
        let range = |host_id| IdRange { host_id, length: 1000 };
        match create_network(&path, Mapping { uids: range(70_000), gids: range(80_000) }) {
            Err(NetnsError::Create { source, .. }) if probe().is_err() => {
                return eprintln!("SKIPPED: this kernel makes no user namespaces: {source}");
            }
            made => made.unwrap(),
        }
        assert!(netns::exists(&path));
        let network = File::open(&path).unwrap();
        // SAFETY: NS_GET_USERNS takes no argument and gives a new descriptor, which nothing else owns.
        let owner = unsafe {
            let users = libc::ioctl(network.as_raw_fd(), 0xb701);
            assert!(users >= 0);
            OwnedFd::from_raw_fd(users)
        };
        let inode = |fd: &dyn AsFd| rustix::fs::fstat(fd.as_fd()).unwrap().st_ino;
        assert_ne!(inode(&owner), inode(&File::open("/proc/self/ns/user").unwrap()));
        netns::remove(&path).unwrap();
    }
}
