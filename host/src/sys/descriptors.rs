//! Descriptors over unix sockets, as `bulkhead_proto::launch` describes it.

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bulkhead_proto::launch::MAX_TOKEN;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, send, sendmsg,
};

/// The kernel's limit of descriptors in one message (SCM_MAX_FD).
pub const MAX_DESCRIPTORS: usize = 253;
/// Longest answer line that a peer may send.
const MAX_ANSWER: usize = 4096;
/// A peer that does not answer in this time is given up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A descriptor did not reach the per-pod process.
#[derive(Debug, thiserror::Error)]
pub enum DeliverError {
    /// Longer than `MAX_TOKEN`, or empty.
    #[error("descriptor token {token:?} is not 1 to {MAX_TOKEN} bytes long")]
    Token {
        /// As given.
        token: String,
    },
    /// Connecting, sending or waiting for the answer.
    #[error("cannot hand descriptor {token} to {socket}: {step} failed")]
    Io {
        /// The receiver's socket.
        socket: PathBuf,
        /// The descriptor's name.
        token: String,
        /// What was being done.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The receiver answered `error:`.
    #[error("{socket} refused descriptor {token}: {answer}")]
    Refused {
        /// The receiver's socket.
        socket: PathBuf,
        /// The descriptor's name.
        token: String,
        /// Its words.
        answer: String,
    },
}

/// Sends `bytes`, with `descriptors` attached to the first of them. Waits while the socket is full.
///
/// # Errors
/// Those of `sendmsg`; a message without bytes cannot carry descriptors.
pub fn send_with(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    if bytes.is_empty() || descriptors.len() > MAX_DESCRIPTORS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let message = SendAncillaryMessage::ScmRights(descriptors);
    let mut space = vec![MaybeUninit::uninit(); message.size()];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(message) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut sent =
        rustix::io::retry_on_intr(|| sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL))?;
    while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
        sent += rustix::io::retry_on_intr(|| send(&socket, rest, SendFlags::NOSIGNAL))?;
    }
    Ok(())
}

/// Receives one message of at most `buffer.len()` bytes and its descriptors (closed on exec), at most `limit`.
/// 0 bytes is the end of the stream.
///
/// # Errors
/// Those of `recvmsg`; more descriptors than `limit` is `InvalidData`, and all of them are closed.
pub fn receive_with(socket: impl AsFd, buffer: &mut [u8], limit: usize) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        recvmsg(&socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if descriptors.len() > limit {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{} descriptors where at most {limit} belong", descriptors.len()),
        ));
    }
    Ok((received.bytes, descriptors))
}

/// Hands `descriptor` to the process that listens on `socket`, under the name `token`. The receiver forgets it when the
/// returned connection closes, so keep it until the request that names the token has been answered.
///
/// # Errors
/// When the receiver is gone, refuses, or does not answer in 10 s.
pub fn deliver(socket: &Path, token: &str, descriptor: BorrowedFd<'_>) -> Result<UnixStream, DeliverError> {
    if token.is_empty() || token.len() > MAX_TOKEN {
        return Err(DeliverError::Token { token: token.to_owned() });
    }
    let failed =
        |step| move |source| DeliverError::Io { socket: socket.to_owned(), token: token.to_owned(), step, source };
    let mut stream = UnixStream::connect(socket).map_err(failed("connecting"))?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(failed("setting a time limit"))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT)).map_err(failed("setting a time limit"))?;
    send_with(&stream, token.as_bytes(), &[descriptor]).map_err(failed("sending"))?;
    let answer = read_line(&mut stream).map_err(failed("waiting for the answer"))?;
    if answer == "ok" {
        return Ok(stream);
    }
    let answer = answer.strip_prefix("error: ").unwrap_or(&answer).to_owned();
    Err(DeliverError::Refused { socket: socket.to_owned(), token: token.to_owned(), answer })
}

/// Reads one line of at most 4096 bytes, without its newline.
///
/// # Errors
/// Those of `read`; an end or a longer line is `InvalidData`.
pub fn read_line(stream: &mut impl Read) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < MAX_ANSWER {
        match stream.read(&mut byte) {
            Ok(0) => break,
            Ok(_) if byte == *b"\n" => return Ok(String::from_utf8_lossy(&line).into_owned()),
            Ok(_) => line.extend(byte),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    let text = String::from_utf8_lossy(&line).into_owned();
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("the peer closed or sent no line: {text:?}")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    fn pipe_with(text: &str) -> OwnedFd {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        std::fs::File::from(writer).write_all(text.as_bytes()).unwrap();
        reader
    }

    fn content(descriptor: OwnedFd) -> String {
        let mut text = String::new();
        std::fs::File::from(descriptor).read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn descriptors_arrive_in_order_with_their_message() {
        let (left, right) = UnixStream::pair().unwrap();
        let (first, second) = (pipe_with("one"), pipe_with("two"));
        send_with(&left, b"{}", &[first.as_fd(), second.as_fd()]).unwrap();
        let mut buffer = [0; 16];
        let (length, descriptors) = receive_with(&right, &mut buffer, 2).unwrap();
        assert_eq!(&buffer[..length], b"{}");
        assert_eq!(descriptors.into_iter().map(content).collect::<Vec<_>>(), ["one", "two"]);
    }

    #[test]
    fn more_descriptors_than_asked_for_are_refused() {
        let (left, right) = UnixStream::pair().unwrap();
        let pipe = pipe_with("x");
        send_with(&left, b"t", &[pipe.as_fd(), pipe.as_fd()]).unwrap();
        let error = receive_with(&right, &mut [0; 4], 1).unwrap_err();
        assert_eq!(error.to_string(), "2 descriptors where at most 1 belong");
    }

    #[test]
    fn a_refusal_is_told_in_the_receivers_words() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("descriptors");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut token = [0; MAX_TOKEN];
            let (length, descriptors) = receive_with(&stream, &mut token, 1).unwrap();
            stream.write_all(b"error: token is taken\n").unwrap();
            (token[..length].to_vec(), descriptors.len())
        });
        let pipe = pipe_with("x");
        let error = deliver(&path, "log:1", pipe.as_fd()).unwrap_err().to_string();
        assert_eq!(error, format!("{} refused descriptor log:1: token is taken", path.display()));
        assert_eq!(server.join().unwrap(), (b"log:1".to_vec(), 1));
    }
}
