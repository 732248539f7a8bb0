//! The uncompressed stream: every byte that passes is hashed and counted.

use std::cell::Cell;
use std::io::{self, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

use super::error::LayerError;
use super::{Compression, LayerLimits};
use crate::image::digest::{Digest, Hasher};

const INPUT_BUFFER: usize = 256 << 10;
const STREAM_BUFFER: usize = 512 << 10;

/// Hands out a decompressed stream in pieces of its own buffer.
pub(super) struct Stream<'a> {
    decoder: Box<dyn Read + 'a>,
    compression: Compression,
    input_failed: &'a Cell<bool>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    hasher: Hasher,
    /// Bytes hashed, those still in the buffer included.
    total: u64,
    limit: u64,
}

/// Remembers whether an error came from the source rather than from a decoder.
struct Input<'a, R> {
    source: R,
    failed: &'a Cell<bool>,
}

impl<R: Read> Read for Input<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.source.read(into).inspect_err(|error| {
            if error.kind() != io::ErrorKind::Interrupted {
                self.failed.set(true);
            }
        })
    }
}

impl<'a> Stream<'a> {
    pub(super) fn new(
        source: impl Read + 'a,
        compression: Compression,
        input_failed: &'a Cell<bool>,
        limits: &LayerLimits,
    ) -> Result<Self, LayerError> {
        let input = Input { source, failed: input_failed };
        let decoder: Box<dyn Read> = match compression {
            Compression::None => Box::new(input),
            Compression::Gzip => Box::new(MultiGzDecoder::new(BufReader::with_capacity(INPUT_BUFFER, input))),
            Compression::Zstd => {
                let input = BufReader::with_capacity(INPUT_BUFFER, input);
                let decoder = zstd::Decoder::with_buffer(input).map_err(|source| LayerError::Decompress {
                    compression,
                    offset: 0,
                    source,
                })?;
                Box::new(decoder)
            }
        };
        Ok(Self {
            decoder,
            compression,
            input_failed,
            buffer: vec![0; STREAM_BUFFER],
            start: 0,
            end: 0,
            hasher: Hasher::default(),
            total: 0,
            limit: limits.uncompressed_bytes,
        })
    }

    /// Offset of the next byte.
    pub(super) fn position(&self) -> u64 {
        self.total - (self.end - self.start) as u64
    }

    /// The next bytes, at most `max`; none only at the stream's end. [`Self::consume`] takes them.
    pub(super) fn peek(&mut self, max: u64) -> Result<&[u8], LayerError> {
        if self.start == self.end {
            self.fill()?;
        }
        let len = ((self.end - self.start) as u64).min(max) as usize;
        Ok(&self.buffer[self.start..self.start + len])
    }

    pub(super) fn consume(&mut self, count: usize) {
        self.start = self.end.min(self.start + count);
    }

    /// Fills `into`. False if the stream ends before its first byte.
    pub(super) fn read(&mut self, into: &mut [u8], inside: &str) -> Result<bool, LayerError> {
        let mut done = 0;
        while done < into.len() {
            let bytes = self.peek((into.len() - done) as u64)?;
            let count = bytes.len();
            match (count, done) {
                (0, 0) => return Ok(false),
                (0, _) => return Err(self.truncated(inside)),
                _ => into[done..done + count].copy_from_slice(bytes),
            }
            self.consume(count);
            done += count;
        }
        Ok(true)
    }

    /// The next `len` bytes. Memory grows with what arrives.
    pub(super) fn take(&mut self, len: u64, inside: &str) -> Result<Vec<u8>, LayerError> {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < len {
            let piece = self.peek(len - bytes.len() as u64)?;
            let count = piece.len();
            bytes.extend_from_slice(piece);
            if count == 0 {
                return Err(self.truncated(inside));
            }
            self.consume(count);
        }
        Ok(bytes)
    }

    pub(super) fn skip(&mut self, mut count: u64, inside: &str) -> Result<(), LayerError> {
        while count > 0 {
            let passed = self.peek(count)?.len();
            if passed == 0 {
                return Err(self.truncated(inside));
            }
            self.consume(passed);
            count -= passed as u64;
        }
        Ok(())
    }

    /// Reads whatever follows; the digest of the whole and its length.
    pub(super) fn finish(mut self) -> Result<(Digest, u64), LayerError> {
        loop {
            self.start = self.end;
            if self.peek(1)?.is_empty() {
                return Ok((self.hasher.finish(), self.total));
            }
        }
    }

    pub(super) fn truncated(&self, inside: &str) -> LayerError {
        LayerError::Truncated { offset: self.total, inside: inside.to_owned() }
    }

    fn fill(&mut self) -> Result<(), LayerError> {
        self.start = 0;
        self.end = 0;
        let count = loop {
            match self.decoder.read(&mut self.buffer) {
                Ok(count) => break count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.failed(source)),
            }
        };
        self.end = count;
        self.total += count as u64;
        if self.total > self.limit {
            return Err(LayerError::TooLarge { limit: self.limit });
        }
        self.hasher.update(&self.buffer[..count]);
        Ok(())
    }

    fn failed(&self, source: io::Error) -> LayerError {
        let offset = self.total;
        if self.input_failed.get() {
            LayerError::Input { offset, source }
        } else {
            LayerError::Decompress { compression: self.compression, offset, source }
        }
    }
}
