//! A plain file as a drive.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::{BlockBackend, Place, SECTOR};

/// What a guest's flush does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlushPolicy {
    /// `fdatasync`: the drive outlives the host's crash.
    Sync,
    /// Nothing: the drive is thrown away with its pod, and a host crash ends both.
    Ephemeral,
}

/// A drive in one file of the host.
#[derive(Debug)]
pub struct RawFile {
    file: Arc<File>,
    len: u64,
    read_only: bool,
    flush: FlushPolicy,
}

impl RawFile {
    /// The file's size now, rounded down to whole sectors, is the drive's. A file opened without write access makes a
    /// read-only drive.
    pub fn new(file: File, flush: FlushPolicy) -> io::Result<Self> {
        let len = file.metadata()?.len() / SECTOR * SECTOR;
        let mode = rustix::fs::fcntl_getfl(&file)? & rustix::fs::OFlags::RWMODE;
        Ok(Self { file: Arc::new(file), len, read_only: mode == rustix::fs::OFlags::RDONLY, flush })
    }
}

impl BlockBackend for RawFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn can_discard(&self) -> bool {
        !self.read_only
    }

    fn locate(&self, offset: u64) -> Place {
        Place::File { file: self.file.clone(), at: offset, len: self.len.saturating_sub(offset) }
    }

    fn to_sync(&self) -> Option<Arc<File>> {
        match self.flush {
            FlushPolicy::Sync => Some(self.file.clone()),
            FlushPolicy::Ephemeral => None,
        }
    }
}
