//! Which parts of a sparse file's contents are in the stream.

use tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

use super::error::{EntryError, LayerError};
use super::pax::{self, SparseKeys};
use super::stream::Stream;

/// More parts than this have no use and would only take memory.
const MAX_SEGMENTS: usize = 1 << 20;

/// Contents at `offset`; what lies between segments are zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub offset: u64,
    pub len: u64,
}

/// The maps that this collects grow with the bytes that arrive.
#[derive(Debug, Default)]
pub(super) struct Map {
    pub segments: Vec<Segment>,
    end: u64,
}

impl Map {
    fn push(&mut self, offset: u64, len: u64) -> Result<(), EntryError> {
        if offset < self.end {
            return Err(EntryError::SparseMap("its parts overlap or are out of order"));
        }
        if self.segments.len() == MAX_SEGMENTS {
            return Err(EntryError::SparseMap("it has more than a million parts"));
        }
        self.end = offset.checked_add(len).ok_or(EntryError::SparseMap("it ends beyond 2^64"))?;
        if len > 0 {
            self.segments.push(Segment { offset, len });
        }
        Ok(())
    }

    fn push_pairs(&mut self, numbers: &[u64]) -> Result<(), EntryError> {
        let (pairs, rest) = numbers.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(EntryError::SparseMap("an offset has no length"));
        }
        pairs.iter().try_for_each(|[offset, len]| self.push(*offset, *len))
    }

    /// Checks the map against the file's size and the bytes that the stream has for it.
    pub(super) fn checked(self, size: u64, stored: u64) -> Result<Vec<Segment>, EntryError> {
        if self.end > size {
            return Err(EntryError::SparseMap("it ends beyond the file"));
        }
        let sum = self.segments.iter().try_fold(0u64, |sum, segment| sum.checked_add(segment.len));
        if sum != Some(stored) {
            return Err(EntryError::SparseMap("its parts are not as long as the entry"));
        }
        Ok(self.segments)
    }
}

/// What went wrong: the entry, or the stream.
pub(super) enum Failure {
    Entry(EntryError),
    Layer(LayerError),
}

impl From<EntryError> for Failure {
    fn from(error: EntryError) -> Self {
        Self::Entry(error)
    }
}

impl From<LayerError> for Failure {
    fn from(error: LayerError) -> Self {
        Self::Layer(error)
    }
}

/// The map of GNU's own format (type `S`), whose later parts follow the header in blocks of 21. Also the real size.
pub(super) fn gnu(header: &Header, stream: &mut Stream<'_>) -> Result<(Map, u64), Failure> {
    let gnu = header.as_gnu().ok_or(EntryError::SparseMap("its header is not GNU tar's"))?;
    let size = super::records::numeric(&gnu.realsize, "sparse size")?;
    let mut map = Map::default();
    add_all(&mut map, &gnu.sparse)?;
    let mut more = gnu.is_extended();
    while more {
        let mut block = GnuExtSparseHeader::new();
        if !stream.read(block.as_mut_bytes(), "a sparse map")? {
            return Err(stream.truncated("a sparse map").into());
        }
        add_all(&mut map, block.sparse())?;
        more = block.is_extended();
    }
    Ok((map, size))
}

fn add_all(map: &mut Map, parts: &[GnuSparseHeader]) -> Result<(), EntryError> {
    for part in parts.iter().filter(|part| part.offset[0] != 0 && part.numbytes[0] != 0) {
        let offset = super::records::numeric(&part.offset, "sparse map")?;
        map.push(offset, super::records::numeric(&part.numbytes, "sparse map")?)?;
    }
    Ok(())
}

/// The map of a pax entry, and how many bytes of its contents it took (format 1.0 keeps the map there).
pub(super) fn pax(keys: &SparseKeys, stored: u64, stream: &mut Stream<'_>) -> Result<Option<(Map, u64)>, Failure> {
    match (keys.major, keys.minor) {
        (Some(1), Some(0)) => leading(stored, stream).map(Some),
        (None | Some(0), _) if keys.has_map => {
            let mut map = Map::default();
            map.push_pairs(&keys.map)?;
            Ok(Some((map, 0)))
        }
        (None | Some(0), _) => Ok(None),
        _ => Err(EntryError::SparseMap("its version is unknown").into()),
    }
}

/// Decimal numbers, each closed by a line feed: a count, then offsets and lengths in turn, padded to a tar block.
fn leading(stored: u64, stream: &mut Stream<'_>) -> Result<(Map, u64), Failure> {
    const BLOCK: usize = 512;
    let mut map = Map::default();
    let (mut taken, mut pending, mut text) = (0, None, Vec::new());
    let mut left: Option<u64> = None;
    while left != Some(0) {
        if stored - taken < BLOCK as u64 {
            return Err(EntryError::SparseMap("it is longer than the entry").into());
        }
        let mut block = [0; BLOCK];
        if !stream.read(&mut block, "a sparse map")? {
            return Err(stream.truncated("a sparse map").into());
        }
        taken += BLOCK as u64;
        for byte in block {
            if left == Some(0) {
                break;
            }
            if byte != b'\n' {
                text.push(byte);
                if text.len() > 20 {
                    return Err(EntryError::Number { field: "sparse map" }.into());
                }
                continue;
            }
            let value = pax::number(&text).ok_or(EntryError::Number { field: "sparse map" })?;
            text.clear();
            match (&mut left, pending.take()) {
                (None, _) => left = Some(value),
                (Some(_), None) => pending = Some(value),
                (Some(left), Some(offset)) => {
                    map.push(offset, value)?;
                    *left -= 1;
                }
            }
        }
    }
    Ok((map, taken))
}
