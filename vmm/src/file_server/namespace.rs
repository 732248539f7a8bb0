//! The file server's own mount namespace, with nothing in it but the volume tree.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::ServerError;
use crate::sys::{self, Fork};

/// Mount points only: no volume's bytes are ever in the tree itself.
const TREE_OPTIONS: &str = "mode=0755,size=1m,nr_inodes=8192";
/// Every id but -1, which is none.
const ALL_IDS: &[u8] = b"0 0 4294967295\n";

/// What remains reachable once the old root is gone.
#[derive(Debug)]
pub struct Namespace {
    /// The volume tree, writable. Its mount at `/` is read-only.
    pub tree: OwnedFd,
    /// The host's /proc, of which a process can open only its own part.
    pub proc: OwnedFd,
}

/// Leaves the host's mounts behind for a volume tree at `/`. Must be called by a process with one thread; children made
/// later share the tree.
///
/// # Errors
/// Names the step that failed.
pub fn enter() -> Result<Namespace, ServerError> {
    enter_user_namespace()?;
    let own = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    step("make namespaces", unshare(own))?;
    let none = None::<&str>;
    step("keep mounts from the host", mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none))?;
    let proc = open_proc()?;
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    step("mount the volume tree", mount(Some("volumes"), "/proc", Some("tmpfs"), safe, Some(TREE_OPTIONS)))?;
    step("enter the volume tree", rustix::process::chdir("/proc"))?;
    step("make the volume tree the root", rustix::process::pivot_root(".", "."))?;
    // Both are at "." now, the old root on top.
    step("leave the old root", umount2(".", MntFlags::MNT_DETACH))?;
    step("enter the new root", rustix::process::chdir("/"))?;
    let tree = open_tree(CWD, "/", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC);
    let tree = step("open the volume tree", tree)?;
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | safe;
    step("protect the volume tree", mount(none, "/", none, read_only, none))?;
    Ok(Namespace { tree, proc })
}

fn open_proc() -> Result<OwnedFd, ServerError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    step("open /proc", rustix::fs::open("/proc", flags, Mode::empty()))
}

/// A user namespace in which every id is itself: capabilities then reach files, and nothing of the host's kernel. Where the
/// host allows none, the namespaces and the few capabilities that remain have to do.
fn enter_user_namespace() -> Result<(), ServerError> {
    // Not by number: /proc may count in another PID namespace than this process.
    let this = step("open /proc/self", rustix::fs::open("/proc/self", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()))?;
    let (ready, go) = step("make a pipe", rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC))?;
    // Only a process outside can map more than its own id.
    match step("fork", sys::fork(open_proc()?))? {
        Fork::Child => {
            drop(go);
            let told = rustix::io::read(&ready, &mut [0; 1]) == Ok(1);
            let mapped = told && map_ids(&this).is_ok();
            std::process::exit(i32::from(told && !mapped));
        }
        Fork::Parent(mapper) => {
            let made = unshare(CloneFlags::CLONE_NEWUSER);
            if made.is_ok() {
                step("wake the mapper", rustix::io::write(&go, b"g"))?;
            }
            drop(go);
            let status = rustix::process::waitpid(Some(mapper), rustix::process::WaitOptions::empty());
            let status = step("wait for the mapper", status)?;
            if let Err(error) = made {
                tracing::warn!("no user namespace for the file server: {error}");
                return Ok(());
            }
            if status.is_none_or(|(_, status)| status.exit_status() != Some(0)) {
                return Err(ServerError::Step {
                    step: "map the ids of the user namespace",
                    source: io::ErrorKind::PermissionDenied.into(),
                });
            }
            step("become root in the user namespace", become_root())
        }
    }
}

fn become_root() -> rustix::io::Result<()> {
    use rustix::process::{Gid, Uid};
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
}

fn map_ids(process: &OwnedFd) -> io::Result<()> {
    for map in ["uid_map", "gid_map"] {
        let file = rustix::fs::openat(process, map, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        File::from(file).write_all(ALL_IDS)?;
    }
    Ok(())
}

/// The calling process's `/proc/self/fd`, and nothing else of /proc: a mount of its own has no parent directory to go to.
///
/// # Errors
/// Names the step that failed.
pub fn own_descriptors(proc: impl AsFd) -> Result<OwnedFd, ServerError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    match open_tree(&proc, "self/fd", flags) {
        Err(Errno::INVAL | Errno::PERM) => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            step("open /proc/self/fd", rustix::fs::openat(proc, "self/fd", flags, Mode::empty()))
        }
        other => step("mount /proc/self/fd", other),
    }
}

/// Gives an error the words of what was tried.
pub(super) fn step<T, E: Into<io::Error>>(step: &'static str, result: Result<T, E>) -> Result<T, ServerError> {
    result.map_err(|error| ServerError::Step { step, source: error.into() })
}
