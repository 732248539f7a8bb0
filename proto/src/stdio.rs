//! Framing of process streams.
//!
//! A connection to the agent's stdio port begins with one [`FrameKind::Hello`] from the caller (payload:
//! `StdioHello` of agent.proto). The agent answers with output frames, then one [`FrameKind::Exit`] (payload:
//! `ExitStatus`) after the last of them, or one [`FrameKind::Error`] (payload: UTF-8 text), and closes. A hello that
//! names a port carries a TCP connection instead: `Stdin` and `StdinClosed` go to the port, `Stdout` and
//! `OutputClosed` come from it, there is no `Exit`. Each frame is
//!
//! ```text
//! 0      1        4             8
//! | kind | 0 0 0  | length (LE) | payload ...
//! ```

/// Bytes before each payload.
pub const HEADER_LEN: usize = 8;
/// Longest payload, in bytes; a longer one is a protocol error.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// Caller to agent, first: whose streams.
    Hello = 0,
    /// Caller to agent: bytes for the process.
    Stdin = 1,
    /// Caller to agent: no more stdin; empty payload.
    StdinClosed = 2,
    /// Agent to caller. With a terminal, all output.
    Stdout = 3,
    /// Agent to caller.
    Stderr = 4,
    /// Agent to caller, last: how the process ended.
    Exit = 5,
    /// Agent to caller, last: why there is no stream.
    Error = 6,
    /// Agent to caller: the port sends no more, but still takes; empty payload.
    OutputClosed = 7,
}

impl FrameKind {
    /// The kind with this number, if there is one.
    #[must_use]
    pub fn from_u8(value: u8) -> Option<Self> {
        Some(match value {
            0 => Self::Hello,
            1 => Self::Stdin,
            2 => Self::StdinClosed,
            3 => Self::Stdout,
            4 => Self::Stderr,
            5 => Self::Exit,
            6 => Self::Error,
            7 => Self::OutputClosed,
            _ => return None,
        })
    }
}

/// A frame's first eight bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What follows.
    pub kind: FrameKind,
    /// Payload bytes, at most [`MAX_PAYLOAD`].
    pub len: usize,
}

/// Bytes that are no frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadHeader(pub [u8; HEADER_LEN]);

impl std::fmt::Display for BadHeader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "not a stdio frame header: {:02x?}", self.0)
    }
}

impl std::error::Error for BadHeader {}

impl Header {
    /// The bytes that stand before the payload.
    #[must_use]
    pub fn encode(self) -> [u8; HEADER_LEN] {
        debug_assert!(self.len <= MAX_PAYLOAD);
        let len = u32::try_from(self.len).unwrap_or(u32::MAX).to_le_bytes();
        [self.kind as u8, 0, 0, 0, len[0], len[1], len[2], len[3]]
    }

    /// Checks kind, padding and length.
    pub fn decode(bytes: [u8; HEADER_LEN]) -> Result<Self, BadHeader> {
        let len = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) as usize;
        match FrameKind::from_u8(bytes[0]) {
            Some(kind) if bytes[1..4] == [0; 3] && len <= MAX_PAYLOAD => Ok(Self { kind, len }),
            _ => Err(BadHeader(bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_a_round_trip() {
        for kind in 0..=7 {
            let kind = FrameKind::from_u8(kind).unwrap();
            let header = Header { kind, len: 4097 };
            assert_eq!(Header::decode(header.encode()), Ok(header));
        }
    }

    #[test]
    fn bad_headers_are_refused() {
        for bytes in [[8, 0, 0, 0, 0, 0, 0, 0], [3, 1, 0, 0, 0, 0, 0, 0], [3, 0, 0, 0, 1, 0, 1, 0]] {
            assert_eq!(Header::decode(bytes), Err(BadHeader(bytes)));
        }
    }
}
