//! Network namespaces bound to a path, as `ip netns` makes them.
//!
//! Changing the namespace changes the calling thread, so everything here happens on a thread that ends afterwards;
//! a thread of a pool never leaves the daemon's own namespace.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{StatFs, statfs};
use rustix::mount::{UnmountFlags, mount_bind, unmount};

/// `f_type` of the file system that namespaces live on.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// A network namespace could not be made, entered or removed.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The directory or the file that carries the namespace.
    #[error("cannot prepare {path} for a network namespace")]
    Prepare {
        /// The namespace's path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// `unshare`, or the bind mount that keeps the namespace.
    #[error("cannot create a network namespace at {path}: {step} failed")]
    Create {
        /// The namespace's path.
        path: PathBuf,
        /// The system call.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Opening the path or `setns`.
    #[error("cannot enter the network namespace {path}")]
    Enter {
        /// The namespace's path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// `umount` or `unlink`.
    #[error("cannot remove the network namespace {path}")]
    Remove {
        /// The namespace's path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No thread, or it ended without an answer.
    #[error("the thread for the network namespace {path} failed: {why}")]
    Thread {
        /// The namespace's path.
        path: PathBuf,
        /// What became of it.
        why: String,
    },
}

/// Creates a network namespace that lives until [`remove`]. One that exists at `path` is kept as it is.
///
/// # Errors
/// When the path cannot be made or the kernel refuses (CAP_SYS_ADMIN is needed).
pub fn create(path: &Path) -> Result<(), NetnsError> {
    create_with(path, |path| {
        let target = path.to_owned();
        let made = on_thread(path, move || {
            let failed = |step, source: rustix::io::Errno| NetnsError::Create {
                path: target.clone(),
                step,
                source: source.into(),
            };
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(|e| failed("unshare", rustix::io::Errno::from_raw_os_error(e as i32)))?;
            mount_bind("/proc/thread-self/ns/net", &target).map_err(|e| failed("bind mount", e))
        });
        made.and_then(|inner| inner)
    })
}

/// [`create`] by `make`, which binds a namespace to the file that is there then.
pub(super) fn create_with(path: &Path, make: impl FnOnce(&Path) -> Result<(), NetnsError>) -> Result<(), NetnsError> {
    if exists(path) {
        return Ok(());
    }
    let prepare = |source| NetnsError::Prepare { path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(prepare)?;
    }
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o444).open(path).map_err(prepare)?;
    let made = make(path);
    if made.is_err() {
        // An empty file would only look like a namespace to people.
        let _ = fs::remove_file(path);
    }
    made
}

/// Whether a namespace is bound to `path`.
#[must_use]
pub fn exists(path: &Path) -> bool {
    matches!(statfs(path), Ok(StatFs { f_type, .. }) if f_type == NSFS_MAGIC)
}

/// Unbinds the namespace at `path` and deletes the file. Nothing there is success.
///
/// # Errors
/// When the kernel refuses the unmount or the file cannot be deleted.
pub fn remove(path: &Path) -> Result<(), NetnsError> {
    let failed = |source: io::Error| NetnsError::Remove { path: path.to_owned(), source };
    // An interrupted create may have stacked mounts, so unmount until none is left.
    while exists(path) {
        unmount(path, UnmountFlags::DETACH).map_err(|e| failed(e.into()))?;
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(e)),
        _ => Ok(()),
    }
}

/// Runs `work` in the namespace at `path`, on a thread of its own, and waits for it.
///
/// # Errors
/// When the namespace cannot be entered or `work` panics.
pub fn run<T, F>(path: &Path, work: F) -> Result<T, NetnsError>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let inside = entering(path, work);
    on_thread(path, inside)?
}

/// [`run`] for asynchronous callers: the caller's thread is not blocked.
///
/// # Errors
/// As [`run`].
pub async fn run_async<T, F>(path: &Path, work: F) -> Result<T, NetnsError>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let inside = entering(path, work);
    let thread_failed = |why: String| NetnsError::Thread { path: path.to_owned(), why };
    builder()
        .spawn(move || {
            let _ = sender.send(inside());
        })
        .map_err(|e| thread_failed(e.to_string()))?;
    receiver.await.map_err(|_| thread_failed("it panicked".to_owned()))?
}

fn entering<T, F>(path: &Path, work: F) -> impl FnOnce() -> Result<T, NetnsError> + Send + 'static
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let path = path.to_owned();
    move || {
        let failed = |source| NetnsError::Enter { path: path.clone(), source };
        let namespace = fs::File::open(&path).map_err(failed)?;
        setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(|e| failed(e.into()))?;
        drop(namespace);
        Ok(work())
    }
}

fn builder() -> thread::Builder {
    thread::Builder::new().name("netns".to_owned())
}

fn on_thread<T, F>(path: &Path, work: F) -> Result<T, NetnsError>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let failed = |why: String| NetnsError::Thread { path: path.to_owned(), why };
    let thread = builder().spawn(work).map_err(|e| failed(e.to_string()))?;
    thread.join().map_err(|_| failed("it panicked".to_owned()))
}
