//! The pod's cgroup v2 and one below it for each container.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bulkhead_proto::figures::key;
use rustix::event::{PollFd, PollFlags, Timespec};
use thiserror::Error;

/// Longest wait for killed processes to leave a cgroup.
const EMPTY_TIMEOUT: Duration = Duration::from_secs(10);

/// Cgroups that a container may make below its own: they cost the kernel memory, and are removed one by one.
const MAX_DESCENDANTS: &str = "1024";
/// Of cgroups in cgroups.
const MAX_DEPTH: &str = "16";

/// Missing on kernels without swap, which have nothing to limit.
const SWAP_LIMIT: &str = "memory.swap.max";

/// No huge pages of a size that a kernel does not have, or does not count: a kubelet says so of every size of the host.
fn is_no_huge_pages((file, value): &Setting) -> bool {
    file.starts_with("hugetlb.") && value == "0"
}

/// Why a cgroup operation failed.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// The kernel refused.
    #[error("cannot {action} cgroup {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A limit was refused.
    #[error("cannot set {file} of cgroup {path} to {value:?}: {source}")]
    Limit {
        /// Whose.
        path: PathBuf,
        /// Which.
        file: String,
        /// To what.
        value: String,
        /// Why.
        source: io::Error,
    },
    /// A name that is no cgroup file.
    #[error("{0:?} is no cgroup v2 file name")]
    BadFile(String),
    /// A value that cannot be expressed.
    #[error("{0}")]
    BadValue(&'static str),
    /// Limits whose controllers this pod's cgroup lacks.
    #[error("this kernel offers no cgroup v2 controller for {0}")]
    NoController(String),
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    move |source| CgroupError::Io { action, path: path.into(), source }
}

/// A file of cgroup v2 and what to write to it.
pub type Setting = (String, String);

/// The parent of the containers' cgroups.
#[derive(Debug, Clone)]
pub struct PodCgroup {
    path: PathBuf,
    controllers: Vec<String>,
}

impl PodCgroup {
    /// Makes the cgroup `path` and gives its children every controller that there is.
    ///
    /// # Errors
    /// When it cannot be made; a controller that is not offered is no error.
    pub fn create(path: &Path) -> Result<Self, CgroupError> {
        fs::create_dir_all(path).map_err(io_error("make", path))?;
        if let Some(parent) = path.parent() {
            enable_all(parent);
        }
        enable_all(path);
        let controllers = words(&path.join("cgroup.subtree_control"));
        Ok(Self { path: path.into(), controllers })
    }

    /// Controllers whose limits can be applied.
    #[must_use]
    pub fn controllers(&self) -> &[String] {
        &self.controllers
    }

    /// The pod's own files.
    #[must_use]
    pub fn whole(&self) -> Cgroup {
        Cgroup { path: self.path.clone() }
    }

    /// The cgroup of one container, which [`Self::child`] makes.
    #[must_use]
    pub fn child_handle(&self, name: &str) -> Cgroup {
        Cgroup { path: self.path.join(name) }
    }

    /// Makes the cgroup of one container.
    ///
    /// # Errors
    /// The kernel's.
    pub fn child(&self, name: &str) -> Result<Cgroup, CgroupError> {
        let path = self.path.join(name);
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(io_error("make", &path)(error)),
            _ => Ok(Cgroup { path }),
        }
    }

    /// Splits settings into those that can be applied and the names of the others.
    #[must_use]
    pub fn applicable(&self, settings: Vec<Setting>) -> (Vec<Setting>, Vec<String>) {
        let (apply, rest): (Vec<_>, Vec<_>) = settings.into_iter().partition(|(file, _)| self.has(file));
        let missing = rest.into_iter().filter(|setting| !is_no_huge_pages(setting));
        (apply, missing.map(|(file, _)| file).collect())
    }

    fn has(&self, file: &str) -> bool {
        let controller = file.split('.').next().unwrap_or_default();
        controller == "cgroup" || self.controllers.iter().any(|c| c == controller)
    }
}

/// Tries each controller by itself: one that is busy must not cost the others.
fn enable_all(path: &Path) {
    for controller in words(&path.join("cgroup.controllers")) {
        // What could not be enabled is missing from `cgroup.subtree_control`, which is read back.
        let _ = fs::write(path.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

fn words(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().map(String::from).collect()
}

/// One cgroup.
#[derive(Debug, Clone)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The open directory, which a new process can be started in.
    ///
    /// # Errors
    /// The kernel's.
    pub fn directory(&self) -> Result<OwnedFd, CgroupError> {
        Ok(fs::File::open(&self.path).map_err(io_error("open", &self.path))?.into())
    }

    /// Writes all settings, or puts back those already written.
    ///
    /// # Errors
    /// The first that is refused.
    pub fn apply(&self, settings: &[Setting]) -> Result<(), CgroupError> {
        let mut done: Vec<Setting> = Vec::new();
        for setting in settings {
            let (file, value) = setting;
            if (file == SWAP_LIMIT || is_no_huge_pages(setting)) && !self.path.join(file).exists() {
                continue;
            }
            let before = self.read(file);
            if let Err(error) = self.write(file, value) {
                for (file, value) in done.iter().rev() {
                    // Its old value was accepted once; the first failure is what gets told.
                    let _ = self.write(file, value);
                }
                return Err(error);
            }
            done.push((file.clone(), before.trim().into()));
        }
        Ok(())
    }

    fn write(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        // Not fs::write: a file that does not exist must not be created.
        let open = fs::OpenOptions::new().write(true).open(self.path.join(file));
        open.and_then(|mut f| io::Write::write_all(&mut f, value.as_bytes())).map_err(|source| CgroupError::Limit {
            path: self.path.clone(),
            file: file.into(),
            value: value.into(),
            source,
        })
    }

    /// Lets `uid` and `gid` sort the processes in here into cgroups below, and set no limit of this one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn delegate(&self, (uid, gid): (u32, u32)) -> Result<(), CgroupError> {
        let bounds = [("cgroup.max.depth", MAX_DEPTH), ("cgroup.max.descendants", MAX_DESCENDANTS)];
        self.apply(&bounds.map(|(file, value)| (file.into(), value.into())))?;
        for file in ["", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"] {
            let path = self.path.join(file);
            std::os::unix::fs::chown(&path, Some(uid), Some(gid)).map_err(io_error("delegate", &path))?;
        }
        Ok(())
    }

    /// Whether a controller's file is there.
    #[must_use]
    pub fn has(&self, file: &str) -> bool {
        self.path.join(file).exists()
    }

    /// Every process in here and below.
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        let mut found = Vec::new();
        let mut directories = vec![self.path.clone()];
        while let Some(directory) = directories.pop() {
            found.extend(words(&directory.join("cgroup.procs")).iter().filter_map(|pid| pid.parse::<i32>().ok()));
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            directories.extend(entries.map(|entry| entry.path()).filter(|path| path.is_dir()));
        }
        found
    }

    /// A file's content; empty when there is no such file.
    #[must_use]
    pub fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path.join(file)).unwrap_or_default()
    }

    /// How many processes in here, and below, the kernel has killed for memory.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        key(&self.read("memory.events"), "oom_kill").unwrap_or(0)
    }

    /// Kills every process in here.
    ///
    /// # Errors
    /// The kernel's; a cgroup that is gone is no error.
    pub fn kill(&self) -> Result<(), CgroupError> {
        match self.write("cgroup.kill", "1") {
            Err(CgroupError::Limit { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                self.signal(libc::SIGKILL);
                Ok(())
            }
            other => other,
        }
    }

    /// Sends a signal to every process in here.
    pub fn signal(&self, signal: i32) {
        for pid in words(&self.path.join("cgroup.procs")).iter().filter_map(|pid| pid.parse().ok()) {
            let Some(pid) = rustix::process::Pid::from_raw(pid) else { continue };
            let target = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
            // A process that has ended meanwhile needs no signal.
            let _ = target.map(|pidfd| crate::sys::pidfd_send_signal(pidfd.as_fd(), signal));
        }
    }

    /// Kills what is left in here and removes it with all below it. Idempotent.
    ///
    /// # Errors
    /// The kernel's, `EBUSY` when the processes have not gone after ten seconds.
    pub fn remove(&self) -> Result<(), CgroupError> {
        if !self.path.exists() {
            return Ok(());
        }
        self.kill()?;
        self.wait_until_empty();
        remove_tree(&self.path).map_err(io_error("remove", &self.path))
    }

    fn wait_until_empty(&self) {
        let deadline = Instant::now() + EMPTY_TIMEOUT;
        let Ok(events) = fs::File::open(self.path.join("cgroup.events")) else { return };
        while self.read("cgroup.events").lines().any(|line| line == "populated 1") {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(timeout) = Timespec::try_from(left) else { return };
            if left.is_zero() {
                return;
            }
            // The file must have been read through this descriptor for its change to be reported.
            let _ = rustix::io::pread(&events, &mut [0; 128][..], 0);
            if self.read("cgroup.events").lines().any(|line| line == "populated 1") {
                let _ = rustix::event::poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&timeout));
            }
        }
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
