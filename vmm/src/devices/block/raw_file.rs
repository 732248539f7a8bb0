//! A plain file as a drive.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::FallocateFlags;

use super::{BlockBackend, SECTOR};
use crate::devices::slices::GuestSlices;

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
    file: File,
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
        Ok(Self { file, len, read_only: mode == rustix::fs::OFlags::RDONLY, flush })
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

    fn read_at(&self, buffers: &GuestSlices<'_>, offset: u64) -> io::Result<()> {
        buffers.read_from(self.file.as_fd(), offset)
    }

    fn write_at(&self, buffers: &GuestSlices<'_>, offset: u64) -> io::Result<()> {
        buffers.write_to(self.file.as_fd(), offset)
    }

    fn flush(&self) -> io::Result<()> {
        match self.flush {
            FlushPolicy::Sync => self.file.sync_data(),
            FlushPolicy::Ephemeral => Ok(()),
        }
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.allocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        if unmap {
            return self.discard(offset, len);
        }
        let kept = self.allocate(FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, offset, len);
        match kept {
            // tmpfs and others know no ZERO_RANGE; a hole reads as zeros too.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => self.discard(offset, len),
            other => other,
        }
    }
}

impl RawFile {
    fn allocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(&self.file, flags, offset, len)?)
    }
}
