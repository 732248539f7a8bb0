//! Appending to a layer's data blob.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::BLOCK;

const BUFFER: usize = 1 << 20;

/// Appends to a file in large writes and leaves all-zero blocks out as holes.
#[derive(Debug)]
pub struct BlobWriter {
    file: File,
    /// Everything before this offset is in the file; a multiple of the block size.
    flushed: u64,
    buffer: Vec<u8>,
}

impl BlobWriter {
    /// Writes into `file` from its beginning. The file must be empty.
    #[must_use]
    pub fn new(file: File) -> Self {
        Self { file, flushed: 0, buffer: Vec::with_capacity(BUFFER) }
    }

    /// Bytes appended, padding and holes included.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.flushed + self.buffer.len() as u64
    }

    /// Writes out what is buffered, gives the file its full length and returns it.
    pub fn finish(mut self) -> io::Result<File> {
        self.complete()?;
        Ok(self.file)
    }

    /// Pads to a whole block, writes out what is buffered and gives the file its full length.
    pub(super) fn complete(&mut self) -> io::Result<u64> {
        self.pad();
        self.flush()?;
        self.file.set_len(self.flushed)?;
        Ok(self.flushed)
    }

    pub(super) fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BUFFER - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == BUFFER {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Appends `count` zero bytes; costs no time for whole blocks.
    pub(super) fn append_zeros(&mut self, count: u64) -> io::Result<()> {
        let room = (BUFFER - self.buffer.len()) as u64;
        if count < room {
            self.buffer.resize(self.buffer.len() + count as usize, 0);
            return Ok(());
        }
        let end = self.position() + count;
        self.pad();
        self.flush()?;
        self.flushed = end - end % BLOCK;
        self.buffer.resize((end % BLOCK) as usize, 0);
        Ok(())
    }

    /// Zeros up to the next block.
    pub(super) fn pad(&mut self) {
        self.buffer.resize(self.buffer.len().next_multiple_of(BLOCK as usize), 0);
    }

    /// Takes back everything from `position` on, a multiple of the block size. It must be nothing but zeros.
    pub(super) fn take_back(&mut self, position: u64) {
        match position.checked_sub(self.flushed) {
            Some(kept) => self.buffer.truncate(kept as usize),
            None => {
                self.buffer.clear();
                self.flushed = position;
            }
        }
    }

    /// The buffer must hold whole blocks.
    fn flush(&mut self) -> io::Result<()> {
        let block = BLOCK as usize;
        let mut run = 0..0;
        for (i, bytes) in self.buffer.chunks(block).enumerate() {
            if is_zero(bytes) {
                self.file.write_all_at(&self.buffer[run.clone()], self.flushed + run.start as u64)?;
                run = (i + 1) * block..(i + 1) * block;
            } else {
                run.end += bytes.len();
            }
        }
        self.file.write_all_at(&self.buffer[run.clone()], self.flushed + run.start as u64)?;
        self.flushed += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

/// Whether all bytes are zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<32>();
    words.iter().all(|word| *word == [0; 32]) && rest.iter().all(|byte| *byte == 0)
}
