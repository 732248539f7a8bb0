//! A request on its way: what is left to do for it, and to whom it is answered.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::FallocateFlags;

use crate::devices::slices::{GuestSlices, HeldSlices};

/// A hole: the file keeps its length, and its space is given back.
pub const PUNCH_HOLE: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
/// Zeros, in space that stays the file's.
pub const ZERO_RANGE: FallocateFlags = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);

/// One thing to do. `start` and `len` (bytes) are a part of the request's data, `at` is an offset in the file.
#[derive(Debug, Clone)]
pub enum Step {
    Read { file: Arc<File>, at: u64, start: usize, len: usize },
    Zero { start: usize, len: usize },
    Write { file: Arc<File>, at: u64, start: usize, len: usize },
    Sync { file: Arc<File> },
    Allocate { file: Arc<File>, flags: FallocateFlags, at: u64, len: u64 },
}

impl Step {
    /// Does it on this thread.
    pub fn run(&self, data: &GuestSlices<'_>) -> io::Result<()> {
        match self {
            Self::Read { file, at, start, len } => data.range(*start, *len).read_from(file.as_fd(), *at),
            Self::Zero { start, len } => {
                data.range(*start, *len).zero();
                Ok(())
            }
            Self::Write { file, at, start, len } => data.range(*start, *len).write_to(file.as_fd(), *at),
            Self::Sync { file } => file.sync_data(),
            Self::Allocate { file, flags, at, len } => Ok(rustix::fs::fallocate(file, *flags, *at, *len)?),
        }
    }

    /// What to do instead when the file's file system cannot do this.
    pub fn instead(&self, error: &io::Error) -> Option<Self> {
        match self {
            // tmpfs and others know no ZERO_RANGE; a hole reads as zeros too.
            Self::Allocate { file, flags, at, len }
                if *flags == ZERO_RANGE && error.raw_os_error() == Some(libc::EOPNOTSUPP) =>
            {
                Some(Self::Allocate { file: file.clone(), flags: PUNCH_HOLE, at: *at, len: *len })
            }
            _ => None,
        }
    }
}

/// What a request is about, for counters and messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    Read,
    Write,
    Flush,
    DiscardOrZero,
}

impl Subject {
    /// For messages: "cannot ...".
    pub fn verb(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::DiscardOrZero => "discard or zero",
        }
    }
}

/// A request that is checked and not answered.
#[derive(Debug)]
pub struct Job {
    /// Of its chain.
    pub head: u16,
    pub subject: Subject,
    /// Where it begins on the drive, in bytes.
    pub offset: u64,
    /// One after the other; the first that fails ends the request.
    pub steps: VecDeque<Step>,
    /// What is read or written.
    pub data: HeldSlices,
    /// One byte.
    pub status: HeldSlices,
    /// Bytes that the device may write before the status.
    pub writable: usize,
}

impl Job {
    /// Does what is left on this thread.
    pub fn run(&mut self) -> io::Result<()> {
        while let Some(step) = self.steps.pop_front() {
            if let Err(error) = step.run(self.data.get()) {
                match step.instead(&error) {
                    Some(other) => self.steps.push_front(other),
                    None => return Err(error),
                }
            }
        }
        Ok(())
    }
}
