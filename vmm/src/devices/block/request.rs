//! What a driver may ask of a block device (virtio 1.2, section 5.2.6).

use crate::devices::slices::GuestSlices;

/// Bytes of the header before each request's data.
pub const HEADER_LEN: usize = 16;
/// Bytes of a DISCARD or WRITE_ZEROES segment.
pub const SEGMENT_LEN: usize = 16;
/// Most segments in one DISCARD or WRITE_ZEROES.
pub const MAX_SEGMENTS: usize = 32;
/// Bytes of the answer to GET_ID.
pub const ID_LEN: usize = 20;

/// The status byte that ends each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// VIRTIO_BLK_S_OK.
    Ok = 0,
    /// VIRTIO_BLK_S_IOERR.
    IoError = 1,
    /// VIRTIO_BLK_S_UNSUPP.
    Unsupported = 2,
}

/// VIRTIO_BLK_T_*.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    Flush,
    GetId,
    Discard,
    WriteZeroes,
    Unknown(u32),
}

/// A request's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    pub sector: u64,
}

impl Header {
    /// The header in front of the readable buffers; `None` when they are too short.
    pub fn read(readable: &GuestSlices<'_>) -> Option<Self> {
        let mut bytes = [0_u8; HEADER_LEN];
        if !readable.read_exact(&mut bytes) {
            return None;
        }
        let (kind, rest) = bytes.split_first_chunk::<4>()?;
        let sector = rest.last_chunk::<8>()?;
        let kind = match u32::from_le_bytes(*kind) {
            0 => Kind::Read,
            1 => Kind::Write,
            4 => Kind::Flush,
            8 => Kind::GetId,
            11 => Kind::Discard,
            13 => Kind::WriteZeroes,
            other => Kind::Unknown(other),
        };
        Some(Self { kind, sector: u64::from_le_bytes(*sector) })
    }
}

/// A range to discard or to zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub sector: u64,
    pub sectors: u32,
    pub flags: u32,
}

/// The segments of a DISCARD or WRITE_ZEROES; `None` when there are none, too many, or a piece of one.
pub fn read_segments(data: &GuestSlices<'_>) -> Option<Vec<Segment>> {
    if data.is_empty() || !data.len().is_multiple_of(SEGMENT_LEN) || data.len() > MAX_SEGMENTS * SEGMENT_LEN {
        return None;
    }
    let mut bytes = [0_u8; MAX_SEGMENTS * SEGMENT_LEN];
    let bytes = &mut bytes[..data.len()];
    if !data.read_exact(bytes) {
        return None;
    }
    bytes
        .chunks_exact(SEGMENT_LEN)
        .map(|chunk| {
            Some(Segment {
                sector: u64::from_le_bytes(*chunk.first_chunk()?),
                sectors: u32::from_le_bytes(*chunk[8..].first_chunk()?),
                flags: u32::from_le_bytes(*chunk[12..].first_chunk()?),
            })
        })
        .collect()
}
