//! A device's thread: waits for descriptors, hands what is readable to the device, ends when told.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, SendError, Sender};
use std::thread::JoinHandle;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::jail::{self, Role};

/// The stop descriptor's; the handler's own are smaller.
const STOP: u64 = u64::MAX;
/// Events taken at once.
const BATCH: usize = 16;

/// What runs on a [`Worker`].
pub trait Handler: Send + 'static {
    /// The descriptors to watch, level-triggered, each with the token that [`handle`](Self::handle) gets. Asked once, at
    /// the start; the descriptors stay open while the worker runs.
    fn watched(&self) -> Vec<(RawFd, u64)>;

    /// Descriptors to watch for becoming readable or writable, which is told once: one that stays so, while nobody can do
    /// anything about it, does not wake the thread again. Otherwise like [`watched`](Self::watched).
    fn watched_for_edges(&self) -> Vec<(RawFd, u64)> {
        Vec::new()
    }

    /// On the worker's thread, before anything else.
    fn begin(&mut self, _stop: &Stop) {}

    /// A descriptor is ready. What takes long looks at `stop` in between.
    fn handle(&mut self, token: u64, stop: &Stop);

    /// On the worker's thread, after everything else.
    fn end(&mut self) {}
}

/// Whether a worker is to end.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// True when it is.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A thread that serves a handler. Dropped, it ends the thread and waits for it.
#[derive(Debug)]
pub struct Worker<H> {
    stop: Stop,
    wake: EventFd,
    thread: Option<JoinHandle<Option<H>>>,
}

/// There is no descriptor or thread to be had.
#[derive(Debug)]
pub struct NotStarted<H> {
    /// Why.
    pub source: io::Error,
    /// As it was given: it may hold what cannot be made again.
    pub handler: H,
}

impl<H> From<NotStarted<H>> for io::Error {
    fn from(failed: NotStarted<H>) -> Self {
        failed.source
    }
}

impl<H: Handler> Worker<H> {
    /// Starts the thread.
    ///
    /// # Errors
    /// When there is no descriptor or thread to be had.
    pub fn start(name: &str, handler: H) -> Result<Self, NotStarted<H>> {
        match Self::start_empty(name, &handler) {
            Ok((worker, give)) => match give.send(handler) {
                Ok(()) => Ok(worker),
                Err(SendError(handler)) => {
                    Err(NotStarted { source: io::Error::other("the thread ended before its work"), handler })
                }
            },
            Err(source) => Err(NotStarted { source, handler }),
        }
    }

    /// A thread that waits for its handler: one that does not start would take it along.
    fn start_empty(name: &str, handler: &H) -> io::Result<(Self, Sender<H>)> {
        let epoll = Epoll::new()?;
        let wake = new_eventfd()?;
        watch(&epoll, wake.as_raw_fd(), STOP, EventSet::IN)?;
        for (fd, token) in handler.watched() {
            watch(&epoll, fd, token, EventSet::IN)?;
        }
        for (fd, token) in handler.watched_for_edges() {
            watch(&epoll, fd, token, EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED)?;
        }
        let stop = Stop::default();
        let flag = stop.clone();
        let (give, given) = mpsc::channel::<H>();
        let thread = jail::spawn(name, Role::Device, move || {
            let mut handler = given.recv().ok()?;
            serve(&epoll, &mut handler, &flag);
            handler.end();
            Some(handler)
        })?;
        Ok((Self { stop, wake, thread: Some(thread) }, give))
    }

    /// Ends the thread after what it is doing, and gives the handler back; `None` when the thread panicked.
    pub fn stop(mut self) -> Option<H> {
        self.end()
    }
}

impl<H> Worker<H> {
    fn end(&mut self) -> Option<H> {
        self.stop.0.store(true, Ordering::Relaxed);
        // Fails only when its counter is full, and then it is readable anyway.
        let _ = self.wake.write(1);
        self.thread.take().and_then(|thread| thread.join().ok()).flatten()
    }
}

impl<H> Drop for Worker<H> {
    fn drop(&mut self) {
        self.end();
    }
}

/// Does not block, closed on exec.
///
/// # Errors
/// When there are no more descriptors.
pub fn new_eventfd() -> io::Result<EventFd> {
    EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)
}

/// Makes an event descriptor unreadable again.
pub fn clear(event: &EventFd) {
    // Nothing to read is as good.
    let _ = event.read();
}

fn watch(epoll: &Epoll, fd: RawFd, token: u64, events: EventSet) -> io::Result<()> {
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, token))
}

fn serve<H: Handler>(epoll: &Epoll, handler: &mut H, stop: &Stop) {
    handler.begin(stop);
    let mut events = [EpollEvent::default(); BATCH];
    while !stop.is_set() {
        let count = match epoll.wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => {
                tracing::error!("a device's thread cannot wait: {error}");
                return;
            }
        };
        for event in events.iter().take(count) {
            if event.data() != STOP && !stop.is_set() {
                handler.handle(event.data(), stop);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Count {
        kick: EventFd,
        heard: mpsc::Sender<u64>,
        total: u64,
    }

    impl Handler for Count {
        fn watched(&self) -> Vec<(RawFd, u64)> {
            vec![(self.kick.as_raw_fd(), 7)]
        }

        fn handle(&mut self, token: u64, _: &Stop) {
            self.total += self.kick.read().unwrap();
            self.heard.send(token).unwrap();
        }
    }

    #[test]
    fn a_handler_comes_back_when_its_thread_does_not_start() {
        // A regular file cannot be watched.
        #[derive(Debug)]
        struct Unwatchable(std::fs::File, u64);
        impl Handler for Unwatchable {
            fn watched(&self) -> Vec<(RawFd, u64)> {
                vec![(self.0.as_raw_fd(), 0)]
            }
            fn handle(&mut self, _: u64, _: &Stop) {}
        }
        let handler = Unwatchable(tempfile::tempfile().unwrap(), 7);
        let failed = Worker::start("t", handler).map(drop).unwrap_err();
        assert_eq!((failed.source.raw_os_error(), failed.handler.1), (Some(libc::EPERM), 7));
    }

    #[test]
    fn a_worker_hears_kicks_and_gives_its_handler_back() {
        let kick = new_eventfd().unwrap();
        let (heard, tokens) = mpsc::channel();
        let worker = Worker::start("t", Count { kick: kick.try_clone().unwrap(), heard, total: 0 }).unwrap();
        for _ in 0..3 {
            kick.write(2).unwrap();
            assert_eq!(tokens.recv().unwrap(), 7);
        }
        assert_eq!(worker.stop().unwrap().total, 6);
        assert!(kick.write(1).is_ok());
    }
}
