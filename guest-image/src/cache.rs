//! The cache outside the checkout: one directory per artifact, named by a hash of what it is made from.
//!
//! ```text
//! <cache>/kernel-<key>.lock    held (flock) while somebody builds
//! <cache>/kernel-<key>.tmp/    the build; removed by the next builder when it was interrupted
//! <cache>/kernel-<key>/        complete: appears by one rename
//! ```

use std::env;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why the cache cannot be used.
#[derive(Debug, Error)]
pub enum CacheError {
    #[error("cannot tell where the cache is: neither XDG_CACHE_HOME nor HOME is set; set one of them")]
    NoHome,
    #[error("cannot {action} {path} in the cache")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CacheError {
    let path = path.to_path_buf();
    move |source| CacheError::Io { action, path, source }
}

/// `$XDG_CACHE_HOME/bulkhead`, or `~/.cache/bulkhead`.
pub fn root() -> Result<PathBuf, CacheError> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME")
        .filter(|path| path.is_absolute())
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .ok_or(CacheError::NoHome)?;
    Ok(base.join("bulkhead"))
}

/// A place in the cache that is either complete or absent.
#[derive(Debug)]
pub struct Entry {
    root: PathBuf,
    name: String,
}

impl Entry {
    /// The entry `name` of the cache at `root`; nothing is created yet.
    pub fn new(root: PathBuf, name: String) -> Self {
        Self { root, name }
    }

    /// Where the complete entry is, once [`Slot::commit`] has put it there.
    pub fn path(&self) -> PathBuf {
        self.root.join(&self.name)
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        self.root.join(format!("{}.{suffix}", self.name))
    }

    /// Waits until no other process builds this entry; `None` when one has completed it meanwhile.
    /// `on_wait` is told, at most once, that there is somebody to wait for.
    pub fn begin(&self, on_wait: impl FnOnce()) -> Result<Option<Slot<'_>>, CacheError> {
        fs::create_dir_all(&self.root).map_err(at("create", &self.root))?;
        let lock_path = self.beside("lock");
        let lock = File::create(&lock_path).map_err(at("create", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                on_wait();
                lock.lock().map_err(at("lock", &lock_path))?;
            }
            Err(TryLockError::Error(source)) => return Err(at("lock", &lock_path)(source)),
        }
        if self.path().exists() {
            return Ok(None);
        }
        let slot = Slot { entry: self, _lock: lock };
        slot.clear()?;
        fs::create_dir(slot.dir()).map_err(at("create", &slot.dir()))?;
        Ok(Some(slot))
    }
}

/// The right to build one entry, and the directory to build it in.
#[derive(Debug)]
pub struct Slot<'a> {
    entry: &'a Entry,
    _lock: File,
}

impl Slot<'_> {
    /// A directory that only the holder of this slot uses, on the cache's file system.
    pub fn dir(&self) -> PathBuf {
        self.entry.beside("tmp")
    }

    /// Where to leave the log of a build that failed.
    pub fn log_path(&self) -> PathBuf {
        self.entry.beside("log")
    }

    /// Makes `staged`, a directory below [`Slot::dir`], the complete entry, and drops the rest.
    pub fn commit(self, staged: &Path) -> Result<PathBuf, CacheError> {
        for file in fs::read_dir(staged).map_err(at("list", staged))? {
            let path = file.map_err(at("list", staged))?.path();
            File::open(&path).and_then(|file| file.sync_all()).map_err(at("sync", &path))?;
        }
        let target = self.entry.path();
        fs::rename(staged, &target).map_err(at("complete", &target))?;
        Ok(target)
    }

    fn clear(&self) -> Result<(), CacheError> {
        match fs::remove_dir_all(self.dir()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("remove", &self.dir())(error)),
            _ => Ok(()),
        }
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            eprintln!("warning: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;

    fn entry(dir: &Path) -> Entry {
        Entry::new(dir.to_path_buf(), "thing-1".into())
    }

    fn build(slot: Slot<'_>, content: &str) -> PathBuf {
        let staged = slot.dir().join("out");
        fs::create_dir(&staged).unwrap();
        fs::write(staged.join("file"), content).unwrap();
        slot.commit(&staged).unwrap()
    }

    #[test]
    fn a_commit_is_seen_whole_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let entry = entry(dir.path());
        let slot = entry.begin(|| panic!("nobody to wait for")).unwrap().unwrap();
        let path = build(slot, "x");
        assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "x");
        assert!(!entry.beside("tmp").exists());
        assert!(entry.begin(|| ()).unwrap().is_none());
    }

    #[test]
    fn what_an_interrupted_build_left_is_not_taken_for_a_result() {
        let dir = tempfile::tempdir().unwrap();
        let entry = entry(dir.path());
        fs::create_dir(entry.beside("tmp")).unwrap();
        fs::write(entry.beside("tmp").join("half"), "made").unwrap();
        let slot = entry.begin(|| ()).unwrap().unwrap();
        assert!(!slot.dir().join("half").exists());
        drop(slot);
        assert!(!entry.path().exists() && !entry.beside("tmp").exists());
    }

    #[test]
    fn a_second_builder_waits_and_finds_the_result() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (entry(dir.path()), entry(dir.path()));
        let slot = first.begin(|| ()).unwrap().unwrap();
        let (waiting, is_waiting) = mpsc::channel();
        let other = thread::spawn(move || second.begin(|| waiting.send(()).unwrap()).unwrap().is_none());
        is_waiting.recv().unwrap();
        build(slot, "x");
        assert!(other.join().unwrap());
    }
}
