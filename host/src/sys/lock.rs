//! One daemon per root directory.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// The lock was not obtained.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error(
        "{path} is locked by process {owner}: a daemon already uses this root directory. Stop it or choose another root"
    )]
    Held {
        /// The lock file.
        path: PathBuf,
        /// Its process number, or what the file says.
        owner: String,
    },
    /// Opening, locking or writing.
    #[error("cannot lock {path}")]
    Io {
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Held until dropped or until the process ends, however it ends.
#[derive(Debug)]
pub struct LockFile {
    _file: File,
}

impl LockFile {
    /// Takes the lock and writes this process's number into the file.
    ///
    /// # Errors
    /// [`LockError::Held`] names the holder; nothing is waited for.
    pub fn acquire(path: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Io { path: path.to_owned(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut owner = String::new();
                file.take(32).read_to_string(&mut owner).map_err(failed)?;
                let owner = if owner.trim().is_empty() { "(unknown)" } else { owner.trim() }.to_owned();
                return Err(LockError::Held { path: path.to_owned(), owner });
            }
            Err(e) => return Err(failed(e.into())),
        }
        file.set_len(0).map_err(failed)?;
        file.rewind().map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_told_who_the_first_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let first = LockFile::acquire(&path).unwrap();
        let error = LockFile::acquire(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("locked by process {}:", std::process::id())), "{error}");
        drop(first);
        LockFile::acquire(&path).unwrap();
    }
}
