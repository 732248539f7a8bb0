//! A pod's cgroup in the v2 hierarchy, on a unified or a hybrid host.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Something about a cgroup failed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No cgroup2 file system.
    #[error("no cgroup2 file system is mounted (looked in /proc/self/mountinfo); mount one at /sys/fs/cgroup")]
    NotMounted,
    /// A path that leaves the hierarchy.
    #[error("{name:?} is no relative cgroup path")]
    Name {
        /// As given.
        name: PathBuf,
    },
    /// A file operation.
    #[error("cannot {action} cgroup {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The cgroup's directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Processes that do not end.
    #[error("cgroup {path} still has processes {seconds} s after they were killed")]
    Populated {
        /// The cgroup's directory.
        path: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
}

/// The v2 hierarchy of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub root: PathBuf,
    /// Controllers it has; few or none where cgroup v1 hierarchies hold them.
    pub controllers: Vec<String>,
    /// Whether v1 hierarchies are mounted too.
    pub hybrid: bool,
}

/// One cgroup directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    path: PathBuf,
}

impl Hierarchy {
    /// Finds the mounted cgroup2 file system.
    ///
    /// # Errors
    /// [`CgroupError::NotMounted`], or when /proc cannot be read.
    pub fn discover() -> Result<Self, CgroupError> {
        let read = |path: &Path| {
            fs::read_to_string(path).map_err(|source| CgroupError::Io {
                action: "read the mounts of",
                path: path.to_owned(),
                source,
            })
        };
        let (root, hybrid) =
            from_mountinfo(&read(Path::new("/proc/self/mountinfo"))?).ok_or(CgroupError::NotMounted)?;
        let controllers = read(&root.join("cgroup.controllers"))?.split_whitespace().map(str::to_owned).collect();
        Ok(Self { root, controllers, hybrid })
    }

    /// Makes the cgroup `name` (relative to the root, "a/b") with every controller the hierarchy has enabled in it, as far
    /// as its parents allow. One that exists is kept.
    ///
    /// # Errors
    /// A name that is absolute or has `..`, or when the directory cannot be made.
    pub fn create(&self, name: &Path) -> Result<Cgroup, CgroupError> {
        self.create_below(Path::new(""), name)
    }

    /// As [`Self::create`], of `name` below `base`, which exists and above which nothing is changed.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn create_below(&self, base: &Path, name: &Path) -> Result<Cgroup, CgroupError> {
        let cgroup = self.cgroup(&base.join(name))?;
        let mut path = self.root.join(base);
        for component in name.components() {
            self.enable_controllers(&path);
            path.push(component);
            match fs::create_dir(&path) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(CgroupError::Io { action: "make", path, source: e });
                }
                _ => {}
            }
        }
        Ok(cgroup)
    }

    /// The cgroup `name`, whether it exists or not.
    ///
    /// # Errors
    /// A name that is absolute or has `..`.
    pub fn cgroup(&self, name: &Path) -> Result<Cgroup, CgroupError> {
        let plain = name.components().all(|c| matches!(c, Component::Normal(_)));
        if !plain || name.as_os_str().is_empty() {
            return Err(CgroupError::Name { name: name.to_owned() });
        }
        Ok(Cgroup { path: self.root.join(name) })
    }

    // One at a time: a controller that a parent withholds must not cost the others.
    fn enable_controllers(&self, parent: &Path) {
        for controller in &self.controllers {
            let _ = fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
}

fn from_mountinfo(text: &str) -> Option<(PathBuf, bool)> {
    let mut root = None;
    let mut hybrid = false;
    for line in text.lines() {
        let Some((mount, source)) = line.split_once(" - ") else { continue };
        match source.split_whitespace().next() {
            Some("cgroup2") if root.is_none() => root = mount.split(' ').nth(4).map(PathBuf::from),
            Some("cgroup") => hybrid = true,
            _ => {}
        }
    }
    root.map(|root| (root, hybrid))
}

impl Cgroup {
    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many of its own processes the kernel has killed for memory; 0 without a memory controller.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        let events = fs::read_to_string(self.path.join("memory.events.local")).unwrap_or_default();
        bulkhead_proto::figures::key(&events, "oom_kill").unwrap_or(0)
    }

    /// Makes the directory and nothing else; its parent exists. One that exists is kept.
    ///
    /// # Errors
    /// The kernel's.
    pub fn make(&self) -> Result<(), CgroupError> {
        match fs::create_dir(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(self.failed("make", e)),
            _ => Ok(()),
        }
    }

    /// Moves a process in, with all its threads.
    ///
    /// # Errors
    /// When the process or the cgroup is gone.
    pub fn add_process(&self, pid: i32) -> Result<(), CgroupError> {
        fs::write(self.path.join("cgroup.procs"), pid.to_string())
            .map_err(|source| self.failed("move a process into", source))
    }

    /// The open directory, which a new process can be started in.
    ///
    /// # Errors
    /// When the cgroup is gone.
    pub fn open(&self) -> Result<OwnedFd, CgroupError> {
        Ok(fs::File::open(&self.path).map_err(|source| self.failed("open", source))?.into())
    }

    /// memory.max: bytes, or `None` inside for "max"; `None` when there is no such cgroup or no memory controller in it.
    #[must_use]
    pub fn memory_max(&self) -> Option<Option<u64>> {
        let text = fs::read_to_string(self.path.join("memory.max")).ok()?;
        match text.trim() {
            "max" => Some(None),
            bytes => bytes.parse().ok().map(Some),
        }
    }

    /// Sends SIGKILL to every process in it and below. A cgroup that is gone is success.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&self) -> Result<(), CgroupError> {
        match fs::write(self.path.join("cgroup.kill"), "1") {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.failed("kill the processes of", e)),
            _ => Ok(()),
        }
    }

    /// Processes that the kernel has killed for memory (`oom_kill` of memory.events).
    ///
    /// # Errors
    /// When the cgroup is gone or has no memory controller.
    pub fn memory_kills(&self) -> Result<u64, CgroupError> {
        let read = fs::read_to_string(self.path.join("memory.events"));
        let text = read.map_err(|source| CgroupError::Io {
            action: "read the memory events of",
            path: self.path.clone(),
            source,
        })?;
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        Ok(count.and_then(|count| count.trim().parse().ok()).unwrap_or(0))
    }

    /// Kills what is in it, waits at most `limit` for the end of the processes, and removes it with every cgroup below.
    /// One that is gone is success.
    ///
    /// # Errors
    /// [`CgroupError::Populated`] after the limit; else when the kernel refuses.
    pub fn remove(&self, limit: Duration) -> Result<(), CgroupError> {
        if !self.path.exists() {
            return Ok(());
        }
        self.kill()?;
        self.wait_empty(limit)?;
        remove_tree(&self.path).map_err(|source| self.failed("remove", source))
    }

    fn wait_empty(&self, limit: Duration) -> Result<(), CgroupError> {
        let until = Instant::now() + limit;
        let events = self.path.join("cgroup.events");
        loop {
            let file = match fs::File::open(&events) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(e) => return Err(self.failed("read the events of", e)),
            };
            // Reading arms the notification, so the order read, then poll, misses no change.
            let text = io::read_to_string(&file).map_err(|e| self.failed("read the events of", e))?;
            if !text.lines().any(|line| line == "populated 1") {
                return Ok(());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CgroupError::Populated { path: self.path.clone(), seconds: limit.as_secs() });
            }
            let left =
                Timespec::try_from(left).map_err(|_| self.failed("wait for", io::ErrorKind::InvalidInput.into()))?;
            let mut polled = [PollFd::from_borrowed_fd(file.as_fd(), PollFlags::PRI)];
            rustix::io::retry_on_intr(|| poll(&mut polled, Some(&left)))
                .map_err(|e| self.failed("wait for", e.into()))?;
        }
    }

    fn failed(&self, action: &'static str, source: io::Error) -> CgroupError {
        CgroupError::Io { action, path: self.path.clone(), source }
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    let children = match fs::read_dir(path) {
        Ok(children) => children,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for child in children {
        let child = child?;
        if child.file_type()?.is_dir() {
            remove_tree(&child.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn both_layouts_are_found() {
        let unified = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(from_mountinfo(unified), Some(("/sys/fs/cgroup".into(), false)));
        let hybrid = "30 29 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      31 29 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(from_mountinfo(hybrid), Some(("/sys/fs/cgroup/unified".into(), true)));
        assert_eq!(from_mountinfo("23 1 0:21 / /proc rw - proc proc rw\n"), None);
    }

    #[test]
    fn names_stay_in_the_hierarchy() {
        let hierarchy = Hierarchy { root: "/nowhere".into(), controllers: vec![], hybrid: false };
        for name in ["", "/etc", "a/../b", ".."] {
            assert!(hierarchy.cgroup(Path::new(name)).is_err(), "{name}");
        }
        assert_eq!(hierarchy.cgroup(Path::new("a/b")).unwrap().path(), Path::new("/nowhere/a/b"));
    }

    #[test]
    fn kills_for_memory_are_counted() {
        let root = tempfile::tempdir().unwrap();
        let hierarchy = Hierarchy { root: root.path().into(), controllers: vec![], hybrid: false };
        let pod = hierarchy.create(Path::new("pod")).unwrap();
        assert_eq!(pod.oom_kills(), 0);
        fs::write(pod.path().join("memory.events.local"), "low 0\nmax 9\noom 2\noom_kill 1\noom_group_kill 0\n")
            .unwrap();
        assert_eq!(pod.oom_kills(), 1);
    }

    #[test]
    fn what_is_in_a_cgroup_ends_with_it() {
        let name = PathBuf::from(format!("bulkhead-test-{}", std::process::id()));
        let made =
            Hierarchy::discover().and_then(|hierarchy| hierarchy.create(&name.join("pod")).map(|pod| (hierarchy, pod)));
        let (hierarchy, pod) = match made {
            Ok(made) => made,
            Err(error) => return eprintln!("skipped: {}", crate::error_text(&error)),
        };
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        fs::write(pod.path().join("cgroup.procs"), child.id().to_string()).unwrap();
        let parent = hierarchy.cgroup(&name).unwrap();
        parent.remove(Duration::from_secs(10)).unwrap();
        assert!(!child.wait().unwrap().success());
        assert!(!parent.path().exists());
        parent.remove(Duration::ZERO).unwrap();
    }
}
