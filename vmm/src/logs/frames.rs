//! Taking stdio frames out of a stream of bytes, piece by piece as they come.

use bulkhead_proto::stdio::{BadHeader, FrameKind, HEADER_LEN, Header};

use super::format::Stream;

/// A piece of what the agent sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Output, not necessarily a whole frame.
    Output(Stream, &'a [u8]),
    /// The whole payload of an `Exit` frame.
    Exit(Vec<u8>),
    /// The whole payload of an `Error` frame.
    Error(Vec<u8>),
}

/// What an agent must not send.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No header.
    #[error(transparent)]
    Header(#[from] BadHeader),
    /// A frame that only callers send.
    #[error("the agent sent a {0:?} frame")]
    Direction(FrameKind),
}

/// Where in the stream of frames we are.
#[derive(Debug, Default)]
pub struct Decoder {
    header: [u8; HEADER_LEN],
    header_len: usize,
    /// Kind of the frame that is being read, and bytes of it still to come.
    frame: Option<(FrameKind, usize)>,
    /// Payload so far of an `Exit` or `Error` frame, at most `MAX_PAYLOAD`.
    payload: Vec<u8>,
}

impl Decoder {
    /// Takes the next piece off the front of `bytes`; `None` when more bytes are needed.
    ///
    /// # Errors
    /// When the bytes are no frames, or frames that the agent must not send.
    pub fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Piece<'a>>, FrameError> {
        loop {
            let Some((kind, left)) = self.frame else {
                if !self.read_header(bytes)? {
                    return Ok(None);
                }
                continue;
            };
            let (now, later) = bytes.split_at(bytes.len().min(left));
            *bytes = later;
            let left = left - now.len();
            self.frame = (left > 0).then_some((kind, left));
            match kind {
                FrameKind::Stdout | FrameKind::Stderr => {
                    let stream = if kind == FrameKind::Stdout { Stream::Stdout } else { Stream::Stderr };
                    if !now.is_empty() {
                        return Ok(Some(Piece::Output(stream, now)));
                    }
                }
                _ => {
                    self.payload.extend_from_slice(now);
                    if left == 0 {
                        let payload = std::mem::take(&mut self.payload);
                        return Ok(Some(if kind == FrameKind::Exit {
                            Piece::Exit(payload)
                        } else {
                            Piece::Error(payload)
                        }));
                    }
                }
            }
            if left > 0 {
                return Ok(None);
            }
        }
    }

    fn read_header(&mut self, bytes: &mut &[u8]) -> Result<bool, FrameError> {
        let (now, later) = bytes.split_at(bytes.len().min(HEADER_LEN - self.header_len));
        self.header[self.header_len..self.header_len + now.len()].copy_from_slice(now);
        self.header_len += now.len();
        *bytes = later;
        if self.header_len < HEADER_LEN {
            return Ok(false);
        }
        self.header_len = 0;
        let header = Header::decode(self.header)?;
        match header.kind {
            FrameKind::Stdout | FrameKind::Stderr | FrameKind::Exit | FrameKind::Error => {
                self.frame = Some((header.kind, header.len));
                Ok(true)
            }
            other => Err(FrameError::Direction(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: FrameKind, payload: &[u8]) -> Vec<u8> {
        [&Header { kind, len: payload.len() }.encode(), payload].concat()
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(cuts in proptest::collection::vec(1_usize..9, 1..60)) {
            let stream = [
                frame(FrameKind::Stdout, b"hello "),
                frame(FrameKind::Stdout, b""),
                frame(FrameKind::Stderr, b"oops"),
                frame(FrameKind::Stdout, b"world"),
                frame(FrameKind::Exit, b"\x08\x01"),
            ].concat();
            let (mut decoder, mut rest, mut cuts) = (Decoder::default(), stream.as_slice(), cuts.iter().cycle());
            let (mut out, mut err, mut exit) = (Vec::new(), Vec::new(), None);
            while !rest.is_empty() {
                let (mut now, later) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                rest = later;
                while let Some(piece) = decoder.next(&mut now).unwrap() {
                    match piece {
                        Piece::Output(Stream::Stdout, bytes) => out.extend_from_slice(bytes),
                        Piece::Output(Stream::Stderr, bytes) => err.extend_from_slice(bytes),
                        Piece::Exit(payload) => exit = Some(payload),
                        Piece::Error(_) => unreachable!(),
                    }
                }
                prop_assert!(now.is_empty());
            }
            prop_assert_eq!((out, err, exit), (b"hello world".to_vec(), b"oops".to_vec(), Some(b"\x08\x01".to_vec())));
        }

        #[test]
        fn any_bytes_are_refused_or_understood(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (mut decoder, mut rest) = (Decoder::default(), bytes.as_slice());
            while let Ok(Some(_)) = decoder.next(&mut rest) {}
        }
    }

    #[test]
    fn callers_frames_are_refused() {
        let bytes = frame(FrameKind::Stdin, b"x");
        assert_eq!(Decoder::default().next(&mut bytes.as_slice()), Err(FrameError::Direction(FrameKind::Stdin)));
    }
}
