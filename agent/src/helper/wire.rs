//! Messages between the agent and a set-up helper: JSON behind a length, with descriptors beside it.
//!
//! ```text
//! | payload length (LE u32) | descriptors (LE u32) | one byte per further batch of descriptors | payload |
//! ```

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Descriptors per `sendmsg`; the kernel takes 253.
const BATCH: usize = 200;
/// Most descriptors of one message.
const MAX_FDS: usize = 4096;
/// Longest payload.
const MAX_PAYLOAD: usize = 32 << 20;

/// Sends one message.
///
/// # Errors
/// The socket's, and `InvalidInput` for what exceeds the limits.
pub fn send<T: Serialize>(mut socket: &UnixStream, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let payload = serde_json::to_vec(message)?;
    if payload.len() > MAX_PAYLOAD || fds.len() > MAX_FDS {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "specification is too large"));
    }
    let mut header = [0; 8];
    header[..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    header[4..].copy_from_slice(&(fds.len() as u32).to_le_bytes());
    let mut batches = fds.chunks(BATCH);
    send_batch(socket, &header, batches.next().unwrap_or(&[]))?;
    for batch in batches {
        send_batch(socket, &[0], batch)?;
    }
    socket.write_all(&payload)
}

fn send_batch(socket: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let sent = retry_on_intr(|| {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Errno::INVAL);
        }
        // A header of eight bytes fits any stream socket that takes one byte.
        rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
    })?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives one message; `None` when the peer has closed.
///
/// # Errors
/// The socket's, and `InvalidData` for what is no message.
pub fn receive<T: DeserializeOwned>(mut socket: &UnixStream) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut header = [0; 8];
    let mut fds = Vec::new();
    if receive_batch(socket, &mut header, &mut fds)? == 0 {
        return Ok(None);
    }
    let [a, b, c, d, e, f, g, h] = header;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    let count = u32::from_le_bytes([e, f, g, h]) as usize;
    if length > MAX_PAYLOAD || count > MAX_FDS {
        return Err(io::ErrorKind::InvalidData.into());
    }
    while fds.len() < count {
        let before = fds.len();
        if receive_batch(socket, &mut [0], &mut fds)? == 0 || fds.len() == before {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let mut payload = vec![0; length];
    socket.read_exact(&mut payload)?;
    Ok(Some((serde_json::from_slice(&payload)?, fds)))
}

fn receive_batch(socket: &UnixStream, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
    let expected = bytes.len();
    let received = loop {
        match rustix::net::recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, flags) {
            Err(Errno::INTR) => {}
            other => break other?.bytes,
        }
    };
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received != 0 && received != expected {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(received)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn messages_carry_many_descriptors() {
        let (a, b) = UnixStream::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let fds = vec![file.as_fd(); 450];
        send(&a, &"hello", &fds).unwrap();
        drop(a);
        let (text, received): (String, _) = receive(&b).unwrap().unwrap();
        assert_eq!((text.as_str(), received.len()), ("hello", 450));
        assert!(receive::<String>(&b).unwrap().is_none());
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(&[0xff; 8]).unwrap();
        assert_eq!(receive::<String>(&b).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
