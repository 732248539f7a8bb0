//! Paths inside a root that nobody vouches for: every lookup stays below it, whatever symlinks it holds.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Symlinks followed while parents are made.
const MAX_LINKS: usize = 40;

/// The root of a container that is being built.
#[derive(Debug)]
pub struct Root(OwnedFd);

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Root {
    /// Takes the directory's descriptor.
    #[must_use]
    pub fn new(directory: OwnedFd) -> Self {
        Self(directory)
    }

    /// Opens `path` (symlinks are followed, but never out of the root).
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let path = if path.as_os_str().is_empty() { Path::new("/") } else { path };
        loop {
            // EAGAIN: a rename elsewhere raced with the lookup of "..".
            match rustix::fs::openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// Opens the directory `path`, making what is missing.
    ///
    /// # Errors
    /// The kernel's; `ELOOP` for too many symlinks.
    pub fn ensure_directory(&self, path: &Path, mode: Mode) -> rustix::io::Result<OwnedFd> {
        self.ensure_directory_bounded(path, mode, MAX_LINKS)
    }

    fn ensure_directory_bounded(&self, path: &Path, mode: Mode, links: usize) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        match self.open(path, flags) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        let mut prefix = PathBuf::from("/");
        for component in path.components() {
            let name = match component {
                Component::Normal(name) => name,
                Component::RootDir | Component::CurDir => continue,
                Component::ParentDir | Component::Prefix(_) => return Err(Errno::INVAL),
            };
            let parent = self.open(&prefix, flags)?;
            match rustix::fs::mkdirat(&parent, name, mode) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
            let next = prefix.join(name);
            prefix = match self.open(&next, flags) {
                Err(Errno::NOENT) if links > 0 => self.make_link_target(&parent, &prefix, name, mode, links - 1)?,
                Err(Errno::NOENT) => return Err(Errno::LOOP),
                Err(error) => return Err(error),
                Ok(_) => next,
            };
        }
        self.open(&prefix, flags)
    }

    /// A symlink in the image that points to nothing: makes what it points to.
    fn make_link_target(
        &self,
        parent: &OwnedFd,
        prefix: &Path,
        name: &OsStr,
        mode: Mode,
        links: usize,
    ) -> rustix::io::Result<PathBuf> {
        let target = rustix::fs::readlinkat(parent, name, Vec::new())?;
        let target = clean(&prefix.join(OsStr::from_bytes(target.as_bytes())));
        self.ensure_directory_bounded(&target, mode, links)?;
        Ok(target)
    }

    /// Opens `path` as a mount point for something that is no directory, making an empty file when it is missing.
    ///
    /// # Errors
    /// The kernel's; `EISDIR` when a directory is there.
    pub fn ensure_file(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let found = match self.open(path, OFlags::PATH) {
            Err(Errno::NOENT) => {
                let (parent, name) = self.parent_of(path)?;
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644))?;
                self.open(path, OFlags::PATH)?
            }
            other => other?,
        };
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode);
        if kind == FileType::Directory { Err(Errno::ISDIR) } else { Ok(found) }
    }

    /// The directory of `path`, made when missing, and its last component.
    ///
    /// # Errors
    /// The kernel's; `EINVAL` when there is no last component.
    pub fn parent_of<'a>(&self, path: &'a Path) -> rustix::io::Result<(OwnedFd, &'a OsStr)> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::INVAL) };
        Ok((self.ensure_directory(parent, Mode::from_raw_mode(0o755))?, name))
    }

    /// Removes a file or device node, if there is one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove_file(&self, parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<()> {
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            other => other,
        }
    }
}

/// `path` without "." and "..", which never lead above the root.
#[must_use]
pub fn clean(path: &Path) -> PathBuf {
    let mut result = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => result.push(name),
            Component::ParentDir => {
                result.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap().into();
        (dir, Root::new(fd))
    }

    const MODE: Mode = Mode::RWXU;

    #[test]
    fn missing_directories_are_made() {
        let (dir, root) = root();
        root.ensure_directory(Path::new("/a/b/c"), MODE).unwrap();
        assert!(dir.path().join("a/b/c").is_dir());
    }

    #[test]
    fn links_never_lead_out() {
        let (dir, root) = root();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), dir.path().join("absolute")).unwrap();
        symlink("../../../../../../tmp", dir.path().join("relative")).unwrap();
        root.ensure_directory(Path::new("/absolute/x"), MODE).unwrap();
        root.ensure_file(Path::new("/relative/y/file")).unwrap();
        assert!(!outside.path().join("x").exists());
        assert!(dir.path().join("tmp/y/file").is_file());
        assert!(dir.path().join(outside.path().strip_prefix("/").unwrap()).join("x").is_dir());
    }

    #[test]
    fn a_loop_of_links_is_an_error() {
        let (dir, root) = root();
        symlink("/b", dir.path().join("a")).unwrap();
        symlink("/a", dir.path().join("b")).unwrap();
        assert_eq!(root.ensure_directory(Path::new("/a/x"), MODE).unwrap_err(), Errno::LOOP);
    }

    #[test]
    fn a_directory_is_no_file() {
        let (_dir, root) = root();
        root.ensure_directory(Path::new("/d"), MODE).unwrap();
        assert_eq!(root.ensure_file(Path::new("/d")).unwrap_err(), Errno::ISDIR);
    }

    #[test]
    fn parents_never_lead_above_the_root() {
        assert_eq!(clean(Path::new("/a/./../../b/c/..")), Path::new("/b"));
    }
}
