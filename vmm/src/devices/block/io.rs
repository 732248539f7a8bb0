//! What carries out the requests of one queue: io_uring, or the queue's own thread where there is none.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Once;

use super::QUEUE_SIZE;
use super::job::Job;
use super::ring::{Finished, Ring};

/// Requests of a queue at once.
const DEPTH: u16 = QUEUE_SIZE;

/// Carries out the requests of one queue.
#[derive(Debug)]
pub struct BlockIo {
    ring: Option<Ring>,
    finished: VecDeque<Finished>,
}

impl BlockIo {
    /// With io_uring where the kernel lets this process use it; the log tells once when it does not. In a jail nobody may make
    /// a ring any more.
    #[must_use]
    pub fn new() -> Self {
        static TOLD: Once = Once::new();
        let ring = Ring::new(DEPTH).inspect_err(|error| {
            TOLD.call_once(|| tracing::warn!("no io_uring for drives, which do one request at a time now: {error}"));
        });
        Self { ring: ring.ok(), finished: VecDeque::new() }
    }

    /// One request after the other, on the thread that processes the queue.
    #[must_use]
    pub fn synchronous() -> Self {
        Self { ring: None, finished: VecDeque::new() }
    }

    /// Readable while requests are done of which [`BlockDevice::process`](super::BlockDevice::process) has not heard; `None`
    /// when they are done in `process` itself.
    #[must_use]
    pub fn event(&self) -> Option<RawFd> {
        self.ring.as_ref().map(Ring::as_raw_fd)
    }

    /// Requests that are neither answered nor done.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.ring.as_ref().map_or(0, Ring::in_flight)
    }

    /// Waits until a request in flight is done.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait(&self) -> io::Result<()> {
        match &self.ring {
            Some(ring) if ring.in_flight() > 0 => ring.wait(),
            _ => Ok(()),
        }
    }

    /// Waits for what is in flight, and forgets it.
    pub fn drain(&mut self) {
        if let Some(ring) = &mut self.ring {
            ring.drain();
        }
        self.finished.clear();
    }

    /// Forgets what is done, for a queue that nobody can answer on.
    pub fn discard(&mut self) {
        self.reap();
        self.finished.clear();
    }

    /// Whether another request can be begun.
    pub(super) fn has_room(&self) -> bool {
        self.ring.as_ref().map_or(self.finished.is_empty(), |ring| ring.room() > 0)
    }

    pub(super) fn begin(&mut self, mut job: Job) {
        let finished = match &mut self.ring {
            Some(ring) => ring.begin(job),
            None => {
                let result = job.run();
                Some((job, result))
            }
        };
        self.finished.extend(finished);
    }

    pub(super) fn submit(&mut self) -> io::Result<()> {
        self.ring.as_mut().map_or(Ok(()), Ring::submit)
    }

    pub(super) fn has_unsubmitted(&mut self) -> bool {
        self.ring.as_mut().is_some_and(Ring::has_unsubmitted)
    }

    pub(super) fn reap(&mut self) {
        if let Some(ring) = &mut self.ring {
            ring.reap(&mut self.finished);
        }
    }

    /// The next one that is done.
    pub(super) fn take(&mut self) -> Option<Finished> {
        self.finished.pop_front()
    }
}

impl Default for BlockIo {
    fn default() -> Self {
        Self::new()
    }
}
