//! Streams of processes: pipes and terminals on one side, framed connections on the other.

mod connection;
mod copies;
mod output;
mod peer;
mod port;

use std::io;
use std::os::fd::OwnedFd;

use bulkhead_proto::stdio::{FrameKind, HEADER_LEN, Header};
use rustix::io::Errno;
use rustix::termios::Winsize;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Mutex, mpsc};

pub use self::connection::serve;
use self::copies::Copies;
use self::output::Output;

/// A frame as it goes over the wire, header included.
type Frame = std::sync::Arc<[u8]>;

/// The agent's side of a process's standard streams.
#[derive(Debug)]
pub struct ProcessIo {
    input: Mutex<Option<AsyncFd<OwnedFd>>>,
    output: Mutex<Output>,
    terminal: Option<OwnedFd>,
    copies: Copies,
}

impl ProcessIo {
    /// For a process with pipes; `input` is missing when its stdin is /dev/null.
    ///
    /// # Errors
    /// When the runtime cannot watch them.
    pub fn pipes(input: Option<OwnedFd>, output: OwnedFd, error: OwnedFd) -> io::Result<Self> {
        let output = Output::new(watched(output)?, Some(watched(error)?));
        Ok(Self::new(input.map(watched).transpose()?, output, None))
    }

    /// For a process with a terminal; `input` says whether it may be typed into.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    pub fn terminal(controller: OwnedFd, input: bool) -> io::Result<Self> {
        let typed = if input { Some(watched(controller.try_clone()?)?) } else { None };
        let output = Output::new(watched(controller.try_clone()?)?, None);
        Ok(Self::new(typed, output, Some(controller)))
    }

    fn new(input: Option<AsyncFd<OwnedFd>>, output: Output, terminal: Option<OwnedFd>) -> Self {
        Self { input: Mutex::new(input), output: Mutex::new(output), terminal, copies: Copies::default() }
    }

    /// Changes the terminal's size; `None` when there is no terminal.
    ///
    /// # Errors
    /// The kernel's.
    pub fn resize(&self, rows: u16, columns: u16) -> Option<io::Result<()>> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        self.terminal.as_ref().map(|t| rustix::termios::tcsetwinsize(t, size).map_err(Into::into))
    }

    /// It has one.
    fn has_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// A copy of the output from now on.
    fn subscribe(&self) -> mpsc::Receiver<Frame> {
        self.copies.subscribe()
    }

    /// Hands a frame to every secondary connection.
    async fn copy(&self, frame: &Frame) {
        self.copies.send(frame).await;
    }

    /// The last byte of output has been sent.
    fn end_copies(&self) {
        self.copies.end();
    }

    fn copies_have_ended(&self) -> bool {
        self.copies.have_ended()
    }

    /// Writes all of `bytes` to the process, as fast as it reads; what it does not want is dropped.
    async fn feed(&self, mut bytes: &[u8]) {
        let mut input = self.input.lock().await;
        while !bytes.is_empty() {
            let Some(fd) = input.as_ref() else { return };
            let Ok(mut ready) = fd.writable().await else { return };
            match ready.try_io(|fd| rustix::io::write(fd, bytes).map_err(io::Error::from)) {
                Ok(Ok(written)) => bytes = &bytes[written..],
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                // The process has closed its end.
                Ok(Err(_)) => *input = None,
                Err(_would_block) => {}
            }
        }
    }

    /// Ends the process's stdin; a terminal stays open, as it does when a keyboard falls silent.
    async fn close_input(&self) {
        if self.terminal.is_none() {
            *self.input.lock().await = None;
        }
    }
}

fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    crate::sys::watch(fd)
}

/// One frame in one piece.
fn frame(kind: FrameKind, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
    bytes.extend_from_slice(&Header { kind, len: payload.len() }.encode());
    bytes.extend_from_slice(payload);
    bytes
}

/// What a read of a process's output says: bytes, the end, or a failure that is no end.
fn is_end(error: Errno) -> bool {
    // A terminal whose other side is closed.
    error == Errno::IO
}
