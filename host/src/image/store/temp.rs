//! Files in the making: below `tmp/`, gone with their guard unless they were moved to their place.

use std::path::{Path, PathBuf};

use super::Store;
use crate::image::error::StoreError;

/// A path below `tmp/` that is removed on drop, whatever is there.
#[derive(Debug)]
pub(crate) struct TempPath(PathBuf);

impl TempPath {
    /// A name that nothing else uses; nothing is created.
    pub fn new(store: &Store) -> Self {
        Self(store.temporary_path())
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Moves what was written to its place.
    pub fn place(self, to: &Path) -> Result<(), StoreError> {
        std::fs::rename(&self.0, to).map_err(StoreError::io("moving into place", to))
    }
}

impl Drop for TempPath {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Removes a file or a directory with all in it; what cannot be removed is swept at the next start.
pub(super) fn remove(path: &Path) {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    if let Err(error) = removed
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove a file of the image store");
    }
}
