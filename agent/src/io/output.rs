//! Taking a process's output, frame by frame.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use bulkhead_proto::stdio::{FrameKind, HEADER_LEN, Header, MAX_PAYLOAD};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::{Frame, is_end};
use crate::container::process::Status;

/// After the process has ended: silence that ends its output although somebody holds it open.
const QUIET: Duration = Duration::from_millis(100);
/// After the process has ended: longest time that others may keep writing.
const LINGER: Duration = Duration::from_secs(1);
/// More than two pipes hold, so that `LINGER` never cuts off what the process itself wrote.
const PIPES_HOLD: usize = 2 << 20;

/// Both streams, and what was taken from them but not delivered.
#[derive(Debug)]
pub(super) struct Output {
    stdout: Option<AsyncFd<OwnedFd>>,
    stderr: Option<AsyncFd<OwnedFd>>,
    /// A frame that a connection broke off in: the next one gets it whole.
    pub(super) undelivered: Option<Frame>,
    ended: Option<(Instant, usize)>,
    buffer: Vec<u8>,
}

impl Output {
    pub(super) fn new(stdout: AsyncFd<OwnedFd>, stderr: Option<AsyncFd<OwnedFd>>) -> Self {
        Self { stdout: Some(stdout), stderr, undelivered: None, ended: None, buffer: Vec::new() }
    }

    /// The next frame; `None` at the end of both streams. Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self, status: &mut watch::Receiver<Option<Status>>) -> Option<Frame> {
        loop {
            if self.stdout.is_none() && self.stderr.is_none() {
                return None;
            }
            let exited = status.borrow().is_some();
            let read = if exited {
                self.read_after_exit().await
            } else {
                tokio::select! {
                    read = read_either(&self.stdout, &self.stderr, &mut self.buffer) => Some(read),
                    _ = status.wait_for(Option::is_some) => continue,
                }
            };
            let Some((kind, read)) = read else {
                (self.stdout, self.stderr) = (None, None);
                return None;
            };
            match read {
                Ok(0) | Err(_) if kind == FrameKind::Stdout => self.stdout = None,
                Ok(0) | Err(_) => self.stderr = None,
                Ok(length) => {
                    if let Some((_, bytes)) = &mut self.ended {
                        *bytes += length;
                    }
                    self.buffer[..HEADER_LEN].copy_from_slice(&Header { kind, len: length }.encode());
                    return Some(self.buffer[..HEADER_LEN + length].into());
                }
            }
        }
    }

    async fn read_after_exit(&mut self) -> Option<(FrameKind, io::Result<usize>)> {
        let (since, bytes) = *self.ended.get_or_insert_with(|| (Instant::now(), 0));
        if since.elapsed() > LINGER && bytes > PIPES_HOLD {
            return None;
        }
        let read = read_either(&self.stdout, &self.stderr, &mut self.buffer);
        tokio::time::timeout(QUIET, read).await.ok()
    }
}

/// Reads from whichever stream has something, leaving room for the header.
async fn read_either(
    stdout: &Option<AsyncFd<OwnedFd>>,
    stderr: &Option<AsyncFd<OwnedFd>>,
    buffer: &mut Vec<u8>,
) -> (FrameKind, io::Result<usize>) {
    buffer.resize(HEADER_LEN + MAX_PAYLOAD, 0);
    loop {
        let (kind, ready) = tokio::select! {
            ready = readable(stdout) => (FrameKind::Stdout, ready),
            ready = readable(stderr) => (FrameKind::Stderr, ready),
        };
        let mut ready = match ready {
            Ok(ready) => ready,
            Err(error) => return (kind, Err(error)),
        };
        let read = ready.try_io(|fd| match rustix::io::read(fd, &mut buffer[HEADER_LEN..]) {
            Err(error) if is_end(error) => Ok(0),
            other => Ok(other?),
        });
        match read {
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(result) => return (kind, result),
            Err(_would_block) => {}
        }
    }
}

async fn readable(fd: &Option<AsyncFd<OwnedFd>>) -> io::Result<tokio::io::unix::AsyncFdReadyGuard<'_, OwnedFd>> {
    match fd {
        Some(fd) => fd.readable().await,
        None => std::future::pending().await,
    }
}
