//! SPDY/3.1 frames to and from bytes. Pure.
//!
//! ```text
//! control: |1| version 3 (15) | type (16) |    data: |0| stream (31)           |
//!          | flags (8) | length (24)      |          | flags (8) | length (24) |
//! ```

/// Bytes before each payload.
pub const HEAD_LEN: usize = 8;
/// Longest payload of a control frame that is taken, in bytes.
pub const MAX_CONTROL: usize = 64 * 1024;
/// Nothing follows on the stream from this side.
pub const FLAG_FIN: u8 = 1;
/// Longest payload of a frame (24 bits).
const MAX_LEN: usize = (1 << 24) - 1;
const VERSION: u16 = 3;

/// Why a stream is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ResetReason {
    /// The other side broke the protocol.
    ProtocolError = 1,
    /// It is not wanted, or there are too many.
    RefusedStream = 3,
    /// This side failed.
    InternalError = 6,
}

/// What cannot be understood; the connection ends with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum FrameError {
    #[error("SPDY version {0}, where only version 3 is spoken")]
    Version(u16),
    #[error("a control frame of type {kind} has {len} bytes, more than {MAX_CONTROL}")]
    TooLong { kind: u16, len: usize },
    #[error("a {kind} frame of {len} bytes is too short")]
    TooShort { kind: &'static str, len: usize },
}

/// The first eight bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// `len` bytes of payload follow.
    Control {
        /// Type.
        kind: u16,
        /// Flags.
        flags: u8,
        /// At most [`MAX_CONTROL`].
        len: usize,
    },
    /// `len` bytes of a stream follow.
    Data {
        /// Never zero bits more than 31.
        stream: u32,
        /// See [`FLAG_FIN`].
        flags: u8,
        /// Up to 16 MiB.
        len: usize,
    },
}

impl Head {
    /// Reads it; a control frame that is too long is an error, since its payload has to be held whole.
    pub fn decode(bytes: [u8; HEAD_LEN]) -> Result<Self, FrameError> {
        let first = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let len = u32::from_be_bytes([0, bytes[5], bytes[6], bytes[7]]) as usize;
        let flags = bytes[4];
        if first >> 31 == 0 {
            return Ok(Self::Data { stream: first, flags, len });
        }
        let version = u16::from_be_bytes([bytes[0] & 0x7f, bytes[1]]);
        let kind = u16::from_be_bytes([bytes[2], bytes[3]]);
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        if len > MAX_CONTROL {
            return Err(FrameError::TooLong { kind, len });
        }
        Ok(Self::Control { kind, flags, len })
    }
}

/// A control frame that was received.
#[derive(Debug, PartialEq, Eq)]
pub enum Control<'a> {
    /// Opens a stream.
    SynStream {
        /// Its number.
        stream: u32,
        /// The sender says nothing more on it.
        fin: bool,
        /// Compressed headers.
        block: &'a [u8],
    },
    /// More headers, or an answer's; only decompressed to keep step with the sender.
    Headers {
        /// The sender says nothing more on it.
        fin: bool,
        /// The stream.
        stream: u32,
        /// Compressed headers.
        block: &'a [u8],
    },
    /// Ends a stream in both directions.
    Reset {
        /// The stream.
        stream: u32,
    },
    /// Wants to be sent back.
    Ping(u32),
    /// SETTINGS, GOAWAY, WINDOW_UPDATE and whatever else: flow control is TCP's, as with all clients of Kubernetes.
    Ignored,
}

impl<'a> Control<'a> {
    /// Reads the payload of a control frame.
    pub fn decode(kind: u16, flags: u8, payload: &'a [u8]) -> Result<Self, FrameError> {
        let fin = flags & FLAG_FIN != 0;
        Ok(match kind {
            1 => {
                let (stream, rest) = number(payload, "SYN_STREAM")?;
                let block = rest.get(6..).ok_or(FrameError::TooShort { kind: "SYN_STREAM", len: payload.len() })?;
                Self::SynStream { stream, fin, block }
            }
            2 | 8 => {
                let (stream, block) = number(payload, "HEADERS")?;
                Self::Headers { fin, stream, block }
            }
            3 => Self::Reset { stream: number(payload, "RST_STREAM")?.0 },
            6 => {
                let id = payload.first_chunk().ok_or(FrameError::TooShort { kind: "PING", len: payload.len() })?;
                Self::Ping(u32::from_be_bytes(*id))
            }
            _ => Self::Ignored,
        })
    }
}

fn number<'a>(payload: &'a [u8], kind: &'static str) -> Result<(u32, &'a [u8]), FrameError> {
    let (first, rest) = payload.split_first_chunk().ok_or(FrameError::TooShort { kind, len: payload.len() })?;
    Ok((u32::from_be_bytes(*first) & 0x7fff_ffff, rest))
}

fn control(kind: u16, flags: u8, payload: &[&[u8]]) -> Vec<u8> {
    let len: usize = payload.iter().map(|part| part.len()).sum();
    let mut frame = Vec::with_capacity(HEAD_LEN + len);
    frame.extend_from_slice(&(0x8000 | VERSION).to_be_bytes());
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.extend_from_slice(&flags_and_len(flags, len));
    payload.iter().for_each(|part| frame.extend_from_slice(part));
    frame
}

fn flags_and_len(flags: u8, len: usize) -> [u8; 4] {
    debug_assert!(len <= MAX_LEN);
    (u32::from(flags) << 24 | u32::try_from(len.min(MAX_LEN)).unwrap_or(0)).to_be_bytes()
}

/// Opens a stream; what clients send.
#[cfg(test)]
#[must_use]
pub fn syn_stream(stream: u32, flags: u8, block: &[u8]) -> Vec<u8> {
    control(1, flags, &[&stream.to_be_bytes(), &[0; 6], block])
}

/// Accepts a stream.
#[must_use]
pub fn syn_reply(stream: u32, block: &[u8]) -> Vec<u8> {
    control(2, 0, &[&stream.to_be_bytes(), block])
}

/// Ends a stream in both directions.
#[must_use]
pub fn reset(stream: u32, reason: ResetReason) -> Vec<u8> {
    control(3, 0, &[&stream.to_be_bytes(), &(reason as u32).to_be_bytes()])
}

/// Asks for an answer, or is one.
#[must_use]
pub fn ping(id: u32) -> Vec<u8> {
    control(6, 0, &[&id.to_be_bytes()])
}

/// What stands before `len` bytes of a stream.
#[must_use]
pub fn data_head(stream: u32, fin: bool, len: usize) -> [u8; HEAD_LEN] {
    let (id, rest) = (stream.to_be_bytes(), flags_and_len(if fin { FLAG_FIN } else { 0 }, len));
    [id[0], id[1], id[2], id[3], rest[0], rest[1], rest[2], rest[3]]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(frame: &[u8]) -> Control<'_> {
        let head = Head::decode(frame[..HEAD_LEN].try_into().unwrap()).unwrap();
        let Head::Control { kind, flags, len } = head else { panic!("{head:?}") };
        assert_eq!(len, frame.len() - HEAD_LEN);
        Control::decode(kind, flags, &frame[HEAD_LEN..]).unwrap()
    }

    #[test]
    fn what_is_written_is_read_back() {
        assert_eq!(decode(&syn_stream(5, FLAG_FIN, b"x")), Control::SynStream { stream: 5, fin: true, block: b"x" });
        assert_eq!(decode(&syn_reply(5, b"y")), Control::Headers { fin: false, stream: 5, block: b"y" });
        assert_eq!(decode(&reset(7, ResetReason::RefusedStream)), Control::Reset { stream: 7 });
        assert_eq!(decode(&ping(9)), Control::Ping(9));
        let head = Head::decode(data_head(3, true, 70_000)).unwrap();
        assert_eq!(head, Head::Data { stream: 3, flags: FLAG_FIN, len: 70_000 });
    }

    #[test]
    fn what_is_too_long_too_short_or_another_version_is_refused() {
        assert_eq!(Head::decode([0x80, 2, 0, 1, 0, 0, 0, 0]), Err(FrameError::Version(2)));
        let long = Head::decode([0x80, 3, 0, 1, 0, 1, 0, 1]);
        assert_eq!(long, Err(FrameError::TooLong { kind: 1, len: MAX_CONTROL + 1 }));
        for kind in [1, 2, 3, 6, 8] {
            assert!(Control::decode(kind, 0, &[0; 3]).is_err(), "type {kind}");
        }
        assert!(Control::decode(1, 0, &[0; 9]).is_err());
    }
}
