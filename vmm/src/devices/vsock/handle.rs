//! How the rest of the process makes and takes connections.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::{mpsc, oneshot};

/// Connections that wait in a listener's channel before the guest is refused.
const BACKLOG: usize = 128;

/// Bytes of payload since the device was made.
#[derive(Debug, Default)]
pub struct VsockCounters {
    pub(super) to_guest: AtomicU64,
    pub(super) from_guest: AtomicU64,
}

impl VsockCounters {
    /// Bytes the guest received.
    #[must_use]
    pub fn to_guest_bytes(&self) -> u64 {
        self.to_guest.load(Ordering::Relaxed)
    }

    /// Bytes the guest sent.
    #[must_use]
    pub fn from_guest_bytes(&self) -> u64 {
        self.from_guest.load(Ordering::Relaxed)
    }
}

/// A connection asked for and not answered yet.
#[derive(Debug)]
pub(super) struct ConnectRequest {
    pub port: u32,
    pub reply: oneshot::Sender<io::Result<UnixStream>>,
}

/// What a device shares with its handles.
#[derive(Debug)]
pub(super) struct Shared {
    requests: Mutex<VecDeque<ConnectRequest>>,
    listeners: Mutex<HashMap<u32, mpsc::Sender<UnixStream>>>,
    /// Readable when `requests` has news for the device.
    pub wake: OwnedFd,
    pub gone: AtomicBool,
    pub counters: VsockCounters,
}

impl Shared {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            requests: Mutex::default(),
            listeners: Mutex::default(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            gone: AtomicBool::new(false),
            counters: VsockCounters::default(),
        })
    }

    /// Before requests are taken: whatever comes later makes `wake` readable again.
    pub fn clear_wake(&self) {
        let _ = rustix::io::read(&self.wake, &mut [0_u8; 8]);
    }

    /// The oldest request.
    pub fn next_request(&self) -> Option<ConnectRequest> {
        lock(&self.requests).pop_front()
    }

    /// Hands a guest's connection to the listener of this port; gives it back when there is none.
    pub fn offer(&self, port: u32, stream: UnixStream) -> Result<(), Offered> {
        let mut listeners = lock(&self.listeners);
        let Some(listener) = listeners.get(&port) else {
            return Err(Offered::NoListener);
        };
        match listener.try_send(stream) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => Err(Offered::Busy),
            Err(mpsc::error::TrySendError::Closed(_)) => {
                listeners.remove(&port);
                Err(Offered::NoListener)
            }
        }
    }

    /// Whether somebody listens on the port in this process.
    pub fn has_listener(&self, port: u32) -> bool {
        lock(&self.listeners).get(&port).is_some_and(|listener| !listener.is_closed())
    }

    /// Fails everything that waits and all that comes later, and closes the listeners.
    pub fn close(&self) {
        self.gone.store(true, Ordering::SeqCst);
        let waiting = std::mem::take(&mut *lock(&self.requests));
        for request in waiting {
            let _ = request.reply.send(Err(guest_gone()));
        }
        lock(&self.listeners).clear();
    }
}

/// Why nobody took a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offered {
    NoListener,
    Busy,
}

/// Makes and takes vsock connections from within this process. Clones share the device.
#[derive(Debug, Clone)]
pub struct VsockHandle {
    pub(super) shared: Arc<Shared>,
}

impl VsockHandle {
    /// Connects to a port in the guest. The request is made at once; the future resolves when the guest answered, with
    /// a non-blocking stream, or fails: `ConnectionRefused` (nobody listens there), `TimedOut` (the guest did not answer
    /// in time), `NotConnected` (the guest is gone). Dropping the future abandons the connection.
    pub fn connect(&self, port: u32) -> impl Future<Output = io::Result<UnixStream>> + Send + use<> {
        let answer = self.request(port);
        async move { answer.await.unwrap_or_else(|_| Err(guest_gone())) }
    }

    /// [`connect`](Self::connect) for threads without an executor.
    pub fn connect_blocking(&self, port: u32) -> io::Result<UnixStream> {
        self.request(port).blocking_recv().unwrap_or_else(|_| Err(guest_gone()))
    }

    fn request(&self, port: u32) -> oneshot::Receiver<io::Result<UnixStream>> {
        let (reply, answer) = oneshot::channel();
        lock(&self.shared.requests).push_back(ConnectRequest { port, reply });
        if self.shared.gone.load(Ordering::SeqCst) {
            self.shared.close();
        }
        // An eventfd refuses a write only when its counter is full, and then it is readable anyway.
        let _ = rustix::io::write(&self.shared.wake, &1_u64.to_ne_bytes());
        answer
    }

    /// Takes the guest's connections to CID 2, this port, as non-blocking streams, until the receiver is dropped or the
    /// guest is gone. Fails with `AddrInUse` while another receiver listens there.
    pub fn listen(&self, port: u32) -> io::Result<mpsc::Receiver<UnixStream>> {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let mut listeners = lock(&self.shared.listeners);
        if listeners.get(&port).is_some_and(|listener| !listener.is_closed()) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        if self.shared.gone.load(Ordering::SeqCst) {
            return Err(guest_gone());
        }
        listeners.insert(port, sender);
        Ok(receiver)
    }

    /// Payload since the device was made.
    #[must_use]
    pub fn counters(&self) -> &VsockCounters {
        &self.shared.counters
    }
}

pub(super) fn guest_gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the guest's vsock device is gone")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
