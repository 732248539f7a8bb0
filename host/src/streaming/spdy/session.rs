//! One SPDY connection: its streams as they are opened, their bytes as they come.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, BufReader};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::frame::{Control, FLAG_FIN, FrameError, HEAD_LEN, Head, ResetReason};
use super::headers::{Decompressor, HeaderError, Headers};
use super::writer::{self, Frame, Gone, Output, Queue};
use crate::streaming::idle;
use crate::streaming::peer::{CHUNK, Link, Peer, STREAM_BACKLOG};

/// Streams that may wait to be accepted.
const ACCEPT_BACKLOG: usize = 16;
/// Longest wait for the client's end once everything has been said.
const FAREWELL: Duration = Duration::from_secs(10);

/// What a client may have.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Streams open at one time; further ones are refused.
    pub streams: usize,
    /// Longest time without a byte on any stream, in either direction.
    pub idle: Duration,
}

/// Why a connection was broken off.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Headers(#[from] HeaderError),
    #[error("stream {id} after stream {last}: numbers of a client are odd and grow")]
    StreamId { id: u32, last: u32 },
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Gone(#[from] Gone),
}

/// A stream that the client has opened. Dropping it lets bytes that still come be thrown away.
#[derive(Debug)]
pub struct Stream {
    /// What the client said about it.
    pub headers: Headers,
    /// Its bytes; the end is the client's half-close unless `reset` is cancelled.
    pub incoming: mpsc::Receiver<Bytes>,
    /// This side's half.
    pub output: Output,
    /// Cancelled when the client has ended it in both directions, or the connection has ended.
    pub reset: CancellationToken,
    _place: OwnedSemaphorePermit,
}

impl Stream {
    /// Tells the client that it is served.
    pub async fn accept(&self) -> Result<(), Gone> {
        self.output.queue.send(Frame::Reply(self.output.stream)).await
    }
}

/// A connection that is served by tasks of its own until it is dropped.
#[derive(Debug)]
pub struct Session {
    streams: mpsc::Receiver<Stream>,
    queue: Queue,
    gone: CancellationToken,
}

impl Session {
    /// Serves `link`, whose first bytes are a frame's.
    pub(in crate::streaming) fn start<S: AsyncRead + AsyncWrite + Send + 'static>(
        link: Link<S>,
        limits: Limits,
    ) -> Self {
        let (reader, writer) = tokio::io::split(link.io);
        let (queue, frames) = writer::queue();
        let (opened, streams) = mpsc::channel(ACCEPT_BACKLOG);
        let gone = CancellationToken::new();
        let activity = Arc::new(Notify::new());
        let reading = Reading {
            decompressor: Decompressor::default(),
            last: 0,
            open: HashMap::new(),
            opened,
            places: Arc::new(Semaphore::new(limits.streams)),
            queue: queue.clone(),
            gone: gone.clone(),
            activity: activity.clone(),
            peer: link.peer,
        };
        tokio::spawn(read(reading, reader, gone.clone()));
        tokio::spawn(write(writer, frames, activity.clone(), gone.clone()));
        tokio::spawn(idle::watch(activity, limits.idle, gone.clone()));
        Self { streams, queue, gone }
    }

    /// The next stream that the client opens; `None` when it has gone.
    pub async fn next(&mut self) -> Option<Stream> {
        self.streams.recv().await
    }

    /// Cancelled when the client has gone, was silent for too long or broke the protocol.
    #[must_use]
    pub fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }

    /// Ends the connection once all that was sent has left: a close with unread input would take back what the client
    /// has not read yet.
    pub async fn close(self) {
        if self.queue.send(Frame::Shutdown).await.is_ok() {
            let _ = tokio::time::timeout(FAREWELL, self.gone.cancelled()).await;
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.gone.cancel();
    }
}

async fn read<R: AsyncRead + Unpin>(mut reading: Reading, io: R, gone: CancellationToken) {
    let mut io = BufReader::new(io);
    let result = tokio::select! {
        result = reading.run(&mut io) => result,
        () = gone.cancelled() => Ok(()),
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a streaming client's connection is broken off");
    }
    // Before the streams' senders are dropped: an end that is not a half-close must be known as such.
    gone.cancel();
}

async fn write<W: AsyncWrite + Unpin>(
    io: W,
    frames: mpsc::Receiver<Frame>,
    activity: Arc<Notify>,
    gone: CancellationToken,
) {
    let result = tokio::select! {
        result = writer::run(io, frames, activity) => result,
        () = gone.cancelled() => Ok(()),
    };
    if result.is_err() {
        gone.cancel();
    }
}

/// The client's half of a stream.
#[derive(Debug)]
struct Open {
    incoming: mpsc::Sender<Bytes>,
    reset: CancellationToken,
}

struct Reading {
    decompressor: Decompressor,
    last: u32,
    /// Streams on which the client may still send.
    open: HashMap<u32, Open>,
    opened: mpsc::Sender<Stream>,
    places: Arc<Semaphore>,
    queue: Queue,
    gone: CancellationToken,
    activity: Arc<Notify>,
    peer: Arc<Peer>,
}

impl Reading {
    async fn run<R: AsyncRead + Unpin>(&mut self, io: &mut R) -> Result<(), Error> {
        loop {
            let mut head = [0; HEAD_LEN];
            match io.read_exact(&mut head).await {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                other => other?,
            };
            match Head::decode(head)? {
                Head::Control { kind, flags, len } => {
                    let mut payload = vec![0; len];
                    io.read_exact(&mut payload).await?;
                    self.control(Control::decode(kind, flags, &payload)?).await?;
                }
                Head::Data { stream, flags, len } => {
                    self.data(stream, len, io).await?;
                    self.activity.notify_one();
                    if flags & FLAG_FIN != 0 {
                        self.open.remove(&stream);
                    }
                }
            }
        }
    }

    async fn control(&mut self, frame: Control<'_>) -> Result<(), Error> {
        match frame {
            Control::SynStream { stream, fin, block } => {
                let headers = self.decompressor.next(block)?;
                self.activity.notify_one();
                self.open(stream, fin, headers).await?;
            }
            Control::Headers { fin, stream, block } => {
                self.decompressor.next(block)?;
                if fin {
                    self.open.remove(&stream);
                }
            }
            Control::Reset { stream } => {
                if let Some(open) = self.open.remove(&stream) {
                    open.reset.cancel();
                }
            }
            // Even numbers answer pings of this side, which sends none.
            Control::Ping(id) if id % 2 == 1 => self.queue.send(Frame::Ping(id)).await?,
            Control::Ping(_) | Control::Ignored => {}
        }
        Ok(())
    }

    async fn open(&mut self, id: u32, fin: bool, headers: Headers) -> Result<(), Error> {
        if id.is_multiple_of(2) || id <= self.last {
            return Err(Error::StreamId { id, last: self.last });
        }
        self.last = id;
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            return Ok(self.queue.send(Frame::Reset(id, ResetReason::RefusedStream)).await?);
        };
        let (sender, incoming) = mpsc::channel(STREAM_BACKLOG);
        let reset = self.gone.child_token();
        if !fin {
            // Streams whose other half is forgotten take no place in the table.
            self.open.retain(|_, open| !open.incoming.is_closed());
            self.open.insert(id, Open { incoming: sender, reset: reset.clone() });
        }
        let output = Output { stream: id, queue: self.queue.clone() };
        let stream = Stream { headers, incoming, output, reset, _place: place };
        Ok(self.opened.send(stream).await.map_err(|_| Gone)?)
    }

    /// Hands the payload on piece by piece; what nobody reads is thrown away.
    async fn data<R: AsyncRead + Unpin>(&mut self, stream: u32, mut len: usize, io: &mut R) -> Result<(), Error> {
        while len > 0 {
            let mut chunk = vec![0; len.min(CHUNK)];
            io.read_exact(&mut chunk).await?;
            len -= chunk.len();
            if let Some(open) = self.open.get(&stream) {
                let probe = || self.queue.probe(stream);
                self.peer.hand_on(&open.incoming, chunk.into(), probe).await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
