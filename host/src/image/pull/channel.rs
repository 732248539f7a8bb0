//! From the asynchronous network side to the blocking tar side: a bounded channel that reads as a file.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

/// Chunks on the way, each of at most some hundred KiB.
const CHUNKS: usize = 16;

/// What crosses the channel.
enum Message {
    Data(Bytes),
    End,
}

/// The network's end.
pub(super) struct Sender(mpsc::Sender<Message>);

/// The blocking end. A sender that goes without saying so is an error, not an end of file.
pub(super) struct Receiver {
    channel: mpsc::Receiver<Message>,
    current: Bytes,
    ended: bool,
}

/// The receiver is gone.
#[derive(Debug)]
pub(super) struct Gone;

pub(super) fn channel() -> (Sender, Receiver) {
    let (sender, channel) = mpsc::channel(CHUNKS);
    (Sender(sender), Receiver { channel, current: Bytes::new(), ended: false })
}

impl Sender {
    /// Hands bytes over, once there is room.
    pub async fn send(&self, bytes: Bytes) -> Result<(), Gone> {
        self.0.send(Message::Data(bytes)).await.map_err(|_| Gone)
    }

    /// Says that this was all.
    pub async fn end(self) -> Result<(), Gone> {
        self.0.send(Message::End).await.map_err(|_| Gone)
    }
}

impl Read for Receiver {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.channel.blocking_recv() {
                Some(Message::Data(bytes)) => self.current = bytes,
                Some(Message::End) => self.ended = true,
                None => return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the download was broken off")),
            }
        }
        let len = self.current.len().min(out.len());
        out[..len].copy_from_slice(&self.current[..len]);
        self.current.advance(len);
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reads_to_the_end_and_no_further() {
        let (sender, mut receiver) = channel();
        let read = tokio::task::spawn_blocking(move || {
            let mut all = Vec::new();
            receiver.read_to_end(&mut all).map(|_| all)
        });
        sender.send(Bytes::from_static(b"ab")).await.unwrap();
        sender.send(Bytes::new()).await.unwrap();
        sender.send(Bytes::from_static(b"c")).await.unwrap();
        sender.end().await.unwrap();
        assert_eq!(read.await.unwrap().unwrap(), b"abc");
    }

    #[tokio::test]
    async fn a_lost_sender_is_no_end() {
        let (sender, mut receiver) = channel();
        sender.send(Bytes::from_static(b"ab")).await.unwrap();
        drop(sender);
        let error = tokio::task::spawn_blocking(move || receiver.read_to_end(&mut Vec::new())).await.unwrap();
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }
}
