//! Contents: from the stream to the blob, with long runs of zeros left out.

use std::ops::Range;

use super::BLOCK;
use super::blob::{BlobWriter, is_zero};
use super::error::{EntryError, LayerError};
use super::records::Record;
use super::sparse::{Failure, Segment};
use super::stream::Stream;
use super::tree::{Extent, FileData};

/// Block numbers have 32 bits, and the highest means "hole".
const MAX_BLOCKS: u64 = u32::MAX as u64 - 1;
/// No chunk is larger: its bits have five bits in the image.
const MAX_CHUNK_BITS: u8 = 31;
/// Holes smaller than 64 KiB are not worth an index.
const MIN_HOLE_BITS: u8 = 4;
/// A file with holes has at most 2^12 chunks.
const MAX_CHUNKS_LOG2: u8 = 12;
/// The same as a number.
pub(super) const MAX_CHUNKS: u64 = 1 << MAX_CHUNKS_LOG2;

/// Moves a record's contents into the blob.
pub(super) fn store(
    record: &Record,
    stream: &mut Stream<'_>,
    blob: &mut BlobWriter,
    limit: u64,
) -> Result<FileData, Failure> {
    let mut writer = FileWriter::new(record.size, blob, limit)?;
    let whole = [Segment { offset: 0, len: record.size }];
    for segment in record.segments.as_deref().unwrap_or(&whole) {
        writer.zeros(segment.offset - writer.position)?;
        let mut left = segment.len;
        while left > 0 {
            let bytes = stream.peek(left)?;
            let count = bytes.len();
            writer.bytes(bytes)?;
            if count == 0 {
                return Err(stream.truncated("a file's contents").into());
            }
            stream.consume(count);
            left -= count as u64;
        }
    }
    writer.zeros(record.size - writer.position)?;
    writer.finish()
}

/// Writes one file chunk by chunk; a chunk of zeros takes no place in the blob.
struct FileWriter<'b> {
    blob: &'b mut BlobWriter,
    limit: u64,
    size: u64,
    position: u64,
    chunk_bits: u8,
    /// Where the current chunk began in the blob.
    chunk_start: u64,
    has_content: bool,
    extents: Vec<Extent>,
}

impl<'b> FileWriter<'b> {
    fn new(size: u64, blob: &'b mut BlobWriter, limit: u64) -> Result<Self, EntryError> {
        let blocks = size.div_ceil(BLOCK);
        if blocks > MAX_BLOCKS {
            return Err(EntryError::FileTooLarge { size, limit: MAX_BLOCKS * BLOCK });
        }
        blob.pad();
        let chunk_bits = bits_for(blocks).saturating_sub(MAX_CHUNKS_LOG2).max(MIN_HOLE_BITS);
        let chunk_start = blob.position();
        Ok(Self { blob, limit, size, position: 0, chunk_bits, chunk_start, has_content: false, extents: Vec::new() })
    }

    fn chunk_len(&self) -> u64 {
        BLOCK << self.chunk_bits
    }

    /// How many of `count` bytes belong to the current chunk.
    fn part(&self, count: u64) -> u64 {
        count.min(self.chunk_len() - self.position % self.chunk_len())
    }

    fn bytes(&mut self, mut bytes: &[u8]) -> Result<(), Failure> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(self.part(bytes.len() as u64) as usize);
            self.check_room(now.len() as u64)?;
            self.has_content = self.has_content || !is_zero(now);
            self.blob.append(now).map_err(LayerError::Blob)?;
            self.advance(now.len() as u64)?;
            bytes = later;
        }
        Ok(())
    }

    fn zeros(&mut self, mut count: u64) -> Result<(), Failure> {
        while count > 0 {
            let part = self.part(count);
            if part == self.chunk_len() {
                let whole = count - count % part;
                self.position += whole;
                count -= whole;
                continue;
            }
            self.check_room(part)?;
            self.blob.append_zeros(part).map_err(LayerError::Blob)?;
            self.advance(part)?;
            count -= part;
        }
        Ok(())
    }

    fn check_room(&self, count: u64) -> Result<(), EntryError> {
        let end = self.blob.position().saturating_add(count).next_multiple_of(BLOCK);
        if end > self.limit.min(MAX_BLOCKS * BLOCK) { Err(EntryError::BlobFull { limit: self.limit }) } else { Ok(()) }
    }

    fn advance(&mut self, count: u64) -> Result<(), EntryError> {
        self.position += count;
        if self.position.is_multiple_of(self.chunk_len()) || self.position == self.size {
            self.end_chunk()?;
        }
        Ok(())
    }

    fn end_chunk(&mut self) -> Result<(), EntryError> {
        if self.has_content {
            self.blob.pad();
            let too_large = EntryError::BlobFull { limit: self.limit };
            let block = u32::try_from(self.chunk_start / BLOCK).map_err(|_| too_large)?;
            // At most 2^12 chunks, by the choice of their size.
            let chunk = ((self.position - 1) / self.chunk_len()) as u32;
            self.push(Extent { chunk, chunks: 1, block });
        } else {
            self.blob.take_back(self.chunk_start);
        }
        self.chunk_start = self.blob.position();
        self.has_content = false;
        Ok(())
    }

    fn push(&mut self, extent: Extent) {
        let bits = self.chunk_bits;
        match self.extents.last_mut() {
            Some(last)
                if last.chunk + last.chunks == extent.chunk && follows(last, bits).end == u64::from(extent.block) =>
            {
                last.chunks += 1;
            }
            _ => self.extents.push(extent),
        }
    }

    /// A file without holes, or of nothing else, gets the largest chunks that there are: one index for nearly any file.
    fn finish(mut self) -> Result<FileData, Failure> {
        if self.size == 0 {
            return Ok(FileData::default());
        }
        let blocks = self.size.div_ceil(BLOCK);
        let count = blocks.div_ceil(1 << self.chunk_bits);
        let solid = matches!(&*self.extents, [only] if u64::from(only.chunks) == count);
        if solid || self.extents.is_empty() {
            self.chunk_bits = bits_for(blocks).min(MAX_CHUNK_BITS);
            let chunks = blocks.div_ceil(1 << self.chunk_bits) as u32;
            self.extents.iter_mut().for_each(|extent| extent.chunks = chunks);
        }
        let extents = self.extents.into_boxed_slice();
        Ok(FileData { size: self.size, blob: 0, chunk_bits: self.chunk_bits, extents })
    }
}

/// The blob's blocks that an extent of whole chunks covers.
fn follows(extent: &Extent, chunk_bits: u8) -> Range<u64> {
    let start = u64::from(extent.block);
    start..start + (u64::from(extent.chunks) << chunk_bits)
}

/// The smallest `n` with `1 << n` at least `blocks`.
fn bits_for(blocks: u64) -> u8 {
    blocks.max(1).next_power_of_two().trailing_zeros() as u8
}
