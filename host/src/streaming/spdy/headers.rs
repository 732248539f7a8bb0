//! Header blocks: one zlib stream for each direction of a connection, begun with SPDY's dictionary.
//!
//! A block holds a count, then names and values, each behind its length (all numbers 32 bits, big endian); the values
//! of one name are separated by zero bytes.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::dictionary;

/// Longest block once it is decompressed, in bytes.
pub const MAX_BLOCK: usize = 8 * 1024;
/// Most names in a block.
const MAX_HEADERS: usize = 256;

/// A block that is none; the connection cannot go on, since the compressors are out of step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum HeaderError {
    #[error("headers that do not decompress: {0}")]
    Zlib(String),
    #[error("headers of more than {MAX_BLOCK} bytes")]
    TooLong,
    #[error("a header block that ends early or has more than {MAX_HEADERS} names")]
    Malformed,
}

/// The headers of a stream, names in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The first value of a name that is given in lower case.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let (_, values) = self.0.iter().find(|(known, _)| known == name)?;
        values.split('\0').next()
    }

    /// Reads a decompressed block.
    fn parse(mut block: &[u8]) -> Result<Self, HeaderError> {
        let count = take_number(&mut block)?;
        if count > MAX_HEADERS {
            return Err(HeaderError::Malformed);
        }
        let mut headers = Vec::with_capacity(count);
        for _ in 0..count {
            let name = take_text(&mut block)?.to_ascii_lowercase();
            headers.push((name, take_text(&mut block)?));
        }
        Ok(Self(headers))
    }

    fn encode(headers: &[(&str, &str)]) -> Vec<u8> {
        let number = |value: usize| u32::try_from(value).unwrap_or(0).to_be_bytes();
        let mut block = number(headers.len()).to_vec();
        for (name, value) in headers {
            for text in [name, value] {
                block.extend_from_slice(&number(text.len()));
                block.extend_from_slice(text.as_bytes());
            }
        }
        block
    }
}

fn take_number(block: &mut &[u8]) -> Result<usize, HeaderError> {
    let (number, rest) = block.split_first_chunk().ok_or(HeaderError::Malformed)?;
    *block = rest;
    Ok(u32::from_be_bytes(*number) as usize)
}

fn take_text(block: &mut &[u8]) -> Result<String, HeaderError> {
    let len = take_number(block)?;
    let (text, rest) = block.split_at_checked(len).ok_or(HeaderError::Malformed)?;
    *block = rest;
    Ok(String::from_utf8_lossy(text).into_owned())
}

/// Of the blocks that come in.
#[derive(Debug)]
pub struct Decompressor(Decompress);

impl Default for Decompressor {
    fn default() -> Self {
        Self(Decompress::new(true))
    }
}

impl Decompressor {
    /// The headers in the next block.
    pub fn next(&mut self, mut block: &[u8]) -> Result<Headers, HeaderError> {
        // One byte more, so that a block that is too long shows.
        let mut plain = vec![0; MAX_BLOCK + 1];
        let mut filled = 0;
        while !block.is_empty() {
            let (read, written) = (self.0.total_in(), self.0.total_out());
            let result = self.0.decompress(block, &mut plain[filled..], FlushDecompress::Sync);
            let step = |now: u64, before: u64| usize::try_from(now - before).unwrap_or(usize::MAX);
            let (read, written) = (step(self.0.total_in(), read), step(self.0.total_out(), written));
            block = block.get(read..).unwrap_or_default();
            filled += written;
            if filled > MAX_BLOCK {
                return Err(HeaderError::TooLong);
            }
            match result {
                Ok(Status::Ok | Status::BufError) if read + written > 0 => {}
                Ok(Status::StreamEnd) => return Err(HeaderError::Zlib("the stream has ended".into())),
                Ok(_) => return Err(HeaderError::Malformed),
                Err(error) if error.needs_dictionary().is_some() => {
                    let set = self.0.set_dictionary(&dictionary::bytes());
                    set.map_err(|error| HeaderError::Zlib(error.to_string()))?;
                }
                Err(error) => return Err(HeaderError::Zlib(error.to_string())),
            }
        }
        Headers::parse(&plain[..filled])
    }
}

/// Of the blocks that go out.
#[derive(Debug)]
pub struct Compressor(Compress);

impl Compressor {
    /// At the beginning of a connection.
    pub fn new() -> Result<Self, HeaderError> {
        let mut zlib = Compress::new(Compression::fast(), true);
        zlib.set_dictionary(&dictionary::bytes()).map_err(|error| HeaderError::Zlib(error.to_string()))?;
        Ok(Self(zlib))
    }

    /// The next block.
    pub fn next(&mut self, headers: &[(&str, &str)]) -> Result<Vec<u8>, HeaderError> {
        let plain = Headers::encode(headers);
        // Enough for what does not compress at all, and the marks around it.
        let mut block = Vec::with_capacity(plain.len() + plain.len() / 8 + 64);
        let done = self.0.compress_vec(&plain, &mut block, FlushCompress::Sync);
        done.map_err(|error| HeaderError::Zlib(error.to_string()))?;
        Ok(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_follow_each_other_in_one_stream() {
        let (mut compressor, mut decompressor) = (Compressor::new().unwrap(), Decompressor::default());
        for round in 0..20 {
            let port = round.to_string();
            let block = compressor.next(&[("streamType", "data"), ("port", &port), ("requestid", "7")]).unwrap();
            let headers = decompressor.next(&block).unwrap();
            assert_eq!((headers.get("streamtype"), headers.get("port")), (Some("data"), Some(port.as_str())));
            assert_eq!(headers.get("absent"), None);
        }
        assert_eq!(decompressor.next(&compressor.next(&[]).unwrap()).unwrap(), Headers::default());
    }

    #[test]
    fn a_bomb_is_refused() {
        let (mut compressor, mut decompressor) = (Compressor::new().unwrap(), Decompressor::default());
        let block = compressor.next(&[("a", &"x".repeat(MAX_BLOCK))]).unwrap();
        assert!(block.len() < 4096, "{}", block.len());
        assert_eq!(decompressor.next(&block), Err(HeaderError::TooLong));
    }

    #[test]
    fn what_is_no_block_is_refused() {
        assert!(Decompressor::default().next(b"no zlib stream").is_err());
        for bad in [&[0, 0, 0, 1][..], &[0, 0, 0, 1, 0, 0, 0, 9, b'x'], &[255, 255, 255, 255], &[0, 0]] {
            assert_eq!(Headers::parse(bad), Err(HeaderError::Malformed));
        }
    }
}
