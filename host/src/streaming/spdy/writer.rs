//! What goes out on a SPDY connection: one task writes, everybody else queues.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};

use super::frame::{self, ResetReason};
use super::headers::{Compressor, HeaderError};

/// Frames that may wait for the connection.
const BACKLOG: usize = 16;

/// The connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client has gone")]
pub struct Gone;

#[derive(Debug)]
pub(super) enum Frame {
    Reply(u32),
    Data {
        stream: u32,
        bytes: Bytes,
        fin: bool,
    },
    Reset(u32, ResetReason),
    Ping(u32),
    /// No bytes on a stream: no client answers, but the kernel of one that has gone does.
    Probe(u32),
    /// Nothing follows.
    Shutdown,
}

/// The queue of what is to be written.
#[derive(Debug, Clone)]
pub(super) struct Queue(mpsc::Sender<Frame>);

impl Queue {
    /// See [`Frame::Probe`]; not needed while other frames wait, which are as good.
    pub(super) fn probe(&self, stream: u32) {
        let _ = self.0.try_send(Frame::Probe(stream));
    }

    pub(super) async fn send(&self, frame: Frame) -> Result<(), Gone> {
        self.0.send(frame).await.map_err(|_| Gone)
    }
}

pub(super) fn queue() -> (Queue, mpsc::Receiver<Frame>) {
    let (sender, receiver) = mpsc::channel(BACKLOG);
    (Queue(sender), receiver)
}

/// This side's half of a stream.
#[derive(Debug, Clone)]
pub struct Output {
    pub(super) stream: u32,
    pub(super) queue: Queue,
}

impl Output {
    /// The stream's number.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.stream
    }

    /// Sends bytes, when the connection has room for them.
    pub async fn send(&self, bytes: Bytes) -> Result<(), Gone> {
        self.queue.send(Frame::Data { stream: self.stream, bytes, fin: false }).await
    }

    /// Says that nothing more is sent.
    pub async fn finish(&self) -> Result<(), Gone> {
        self.queue.send(Frame::Data { stream: self.stream, bytes: Bytes::new(), fin: true }).await
    }

    /// Ends the stream in both directions.
    pub async fn reset(&self, reason: ResetReason) -> Result<(), Gone> {
        self.queue.send(Frame::Reset(self.stream, reason)).await
    }
}

/// Writes until it is told that nothing follows, or the client has gone.
pub(super) async fn run<W: AsyncWrite + Unpin>(
    mut io: W,
    mut frames: mpsc::Receiver<Frame>,
    activity: Arc<Notify>,
) -> io::Result<()> {
    let mut compressor = Compressor::new().map_err(io::Error::other)?;
    while let Some(frame) = frames.recv().await {
        match frame {
            Frame::Data { stream, bytes, fin } => {
                io.write_all(&frame::data_head(stream, fin, bytes.len())).await?;
                io.write_all(&bytes).await?;
                activity.notify_one();
            }
            Frame::Probe(stream) => io.write_all(&frame::data_head(stream, false, 0)).await?,
            Frame::Shutdown => break,
            other => io.write_all(&encode(&other, &mut compressor).map_err(io::Error::other)?).await?,
        }
        if frames.is_empty() {
            io.flush().await?;
        }
    }
    io.shutdown().await
}

fn encode(frame: &Frame, compressor: &mut Compressor) -> Result<Vec<u8>, HeaderError> {
    Ok(match frame {
        Frame::Reply(stream) => frame::syn_reply(*stream, &compressor.next(&[])?),
        Frame::Reset(stream, reason) => frame::reset(*stream, *reason),
        Frame::Ping(id) => frame::ping(*id),
        Frame::Data { .. } | Frame::Probe(_) | Frame::Shutdown => Vec::new(),
    })
}
