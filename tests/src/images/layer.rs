//! One layer: a tar stream with fixed times and owners, the same bytes on every run.

use anyhow::Result;
use tar::{Builder, EntryType, Header};

/// Time of every entry; the digests of images must not change from run to run.
const MODIFIED: u64 = 1_700_000_000;

/// A layer being written.
pub struct Layer {
    tar: Builder<Vec<u8>>,
}

impl std::fmt::Debug for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Layer({} bytes)", self.tar.get_ref().len())
    }
}

impl std::fmt::Debug for LayerBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LayerBytes({})", self.0.len())
    }
}

/// A finished tar stream.
#[derive(Clone)]
pub struct LayerBytes(
    /// Uncompressed.
    pub Vec<u8>,
);

impl Default for Layer {
    fn default() -> Self {
        Self::new()
    }
}

impl Layer {
    /// Without entries.
    #[must_use]
    pub fn new() -> Self {
        Self { tar: Builder::new(Vec::new()) }
    }

    /// A directory of root's.
    ///
    /// # Errors
    /// When the path does not fit a tar header.
    pub fn directory(self, path: &str, mode: u32) -> Result<Self> {
        self.entry(path, EntryType::Directory, mode, (0, 0), None, &[])
    }

    /// A file of root's.
    ///
    /// # Errors
    /// As [`Self::directory`].
    pub fn file(self, path: &str, mode: u32, content: &[u8]) -> Result<Self> {
        self.entry(path, EntryType::Regular, mode, (0, 0), None, content)
    }

    /// A directory of `owner` (uid, gid).
    ///
    /// # Errors
    /// As [`Self::directory`].
    pub fn owned_directory(self, path: &str, mode: u32, owner: (u64, u64)) -> Result<Self> {
        self.entry(path, EntryType::Directory, mode, owner, None, &[])
    }

    /// A symbolic link.
    ///
    /// # Errors
    /// As [`Self::directory`].
    pub fn link(self, path: &str, target: &str) -> Result<Self> {
        self.entry(path, EntryType::Symlink, 0o777, (0, 0), Some(target), &[])
    }

    /// A further name of a file that is in the layer already.
    ///
    /// # Errors
    /// As [`Self::directory`].
    pub fn hard_link(self, path: &str, target: &str) -> Result<Self> {
        self.entry(path, EntryType::Link, 0o755, (0, 0), Some(target), &[])
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// None in memory.
    pub fn finish(self) -> Result<LayerBytes> {
        Ok(LayerBytes(self.tar.into_inner()?))
    }

    fn entry(
        mut self,
        path: &str,
        kind: EntryType,
        mode: u32,
        owner: (u64, u64),
        target: Option<&str>,
        content: &[u8],
    ) -> Result<Self> {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        header.set_mtime(MODIFIED);
        header.set_size(content.len() as u64);
        match target {
            Some(target) => self.tar.append_link(&mut header, path, target)?,
            None => self.tar.append_data(&mut header, path, content)?,
        }
        Ok(self)
    }
}
