//! A file system behind a transport.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::session::{Ring, Session, SessionError};
use super::{DEVICE_TYPE, MAX_TAG, QUEUE_SIZE};
use crate::devices::virtio::{ActivateError, Activation, ActiveQueue, Interrupt, VirtioDevice};
use crate::devices::worker::{Handler, NotStarted, Stop, Worker, clear, new_eventfd};
use crate::devices::{GuestRam, RING_FEATURES};
use crate::state::{DeviceState, Own, QueueState, Snapshot, SnapshotError};

const NAME: &str = "file system";

/// Bytes of `virtio_fs_config`.
const CONFIG_LEN: usize = MAX_TAG + 4;
/// Token of the nested descriptor; interrupts have their queue's place.
const NEWS: u64 = 1 << 32;

/// What a guest sees of the file system.
#[derive(Debug, Clone)]
pub struct FsConfig {
    /// What the guest mounts; at most 36 bytes count.
    pub tag: String,
    /// Queues for requests, from 1; one more is for interrupted requests.
    pub request_queues: u16,
}

/// Connects to the file server. Called on the device's thread, which makes no sockets and sets no options of them.
pub type Connect = Box<dyn FnMut() -> io::Result<UnixStream> + Send>;

/// For a connection that is made already, though the server need not have accepted it.
#[must_use]
pub fn connected(stream: UnixStream) -> Connect {
    let mut stream = Some(stream);
    Box::new(move || stream.take().ok_or_else(|| io::ErrorKind::NotConnected.into()))
}

/// A file system and the thread between its server and the guest.
pub struct Fs {
    config: FsConfig,
    server: Option<Server>,
    worker: Option<Worker<FsWorker>>,
}

impl std::fmt::Debug for Fs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fs").field("config", &self.config).field("worker", &self.worker).finish_non_exhaustive()
    }
}

impl Fs {
    /// Not connected yet; `connect` is called at the guest's first request.
    #[must_use]
    pub fn new(config: FsConfig, connect: Connect) -> Self {
        Self { config, server: Some(Server { connect, session: None }), worker: None }
    }

    fn queues(&self) -> usize {
        usize::from(self.config.request_queues.max(1)) + 1
    }
}

/// The way to the server, and the connection once there is one: the server takes no second.
struct Server {
    connect: Connect,
    session: Option<Session>,
}

impl Server {
    fn session(&mut self, queues: usize) -> Result<&mut Session, SessionError> {
        let session = match self.session.take() {
            Some(session) => session,
            None => Session::new((self.connect)().map_err(SessionError::Connect)?, queues)?,
        };
        Ok(self.session.insert(session))
    }
}

/// See the module's drawing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Serving,
    Failed,
}

struct FsWorker {
    server: Server,
    queue_count: usize,
    state: State,
    ram: GuestRam,
    features: u64,
    queues: Vec<(ActiveQueue, EventFd)>,
    /// Watches the kicks until there is a connection, and then the connection.
    news: Epoll,
    interrupt: Arc<dyn Interrupt>,
}

impl std::fmt::Debug for FsWorker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FsWorker").field("state", &self.state).finish_non_exhaustive()
    }
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; self.queues()]
    }

    fn features(&self) -> u64 {
        RING_FEATURES
    }

    fn read_config(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut space = [0_u8; CONFIG_LEN];
        for (to, from) in space[..MAX_TAG].iter_mut().zip(self.config.tag.bytes()) {
            *to = from;
        }
        space[MAX_TAG..].copy_from_slice(&u32::from(self.config.request_queues.max(1)).to_le_bytes());
        (0..len).map(|at| offset.checked_add(at).and_then(|at| space.get(at)).copied().unwrap_or(0)).collect()
    }

    fn write_config(&mut self, _offset: usize, _bytes: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { ram, features, queues, interrupt } = activation;
        let failed = |source| ActivateError::Io { step: "start the thread of the file system", source };
        let news = Epoll::new().map_err(failed)?;
        let mut watched = Vec::new();
        for queue in queues {
            watch(&news, queue.kick.as_raw_fd(), ControlOperation::Add).map_err(failed)?;
            watched.push((queue, new_eventfd().map_err(failed)?));
        }
        let Some(server) = self.server.take() else {
            return Err(ActivateError::Other("the thread of the file system is lost".to_owned()));
        };
        let (queue_count, queues) = (self.queues(), watched);
        let state = State::Waiting;
        match Worker::start("fs", FsWorker { server, queue_count, state, ram, features, queues, news, interrupt }) {
            Ok(worker) => {
                self.worker = Some(worker);
                Ok(())
            }
            Err(NotStarted { source, handler }) => {
                // The server takes no second connection.
                self.server = Some(handler.server);
                Err(failed(source))
            }
        }
    }

    fn reset(&mut self) {
        let Some(mut worker) = self.worker.take().and_then(Worker::stop) else {
            return;
        };
        if worker.state == State::Serving {
            worker.take_rings_away();
        }
        self.server = Some(worker.server);
    }
}

impl Snapshot for Fs {
    fn suspend(&mut self) -> Result<DeviceState, SnapshotError> {
        let mut state = DeviceState { device_type: DEVICE_TYPE, features: 0, queues: Vec::new(), own: Own::Nothing };
        if let Some(worker) = self.worker.take() {
            let mut worker = worker.stop().ok_or(SnapshotError::Lost(NAME))?;
            if worker.state == State::Serving {
                worker.take_rings_away();
                self.server = Some(worker.server);
                return Err(SnapshotError::Mounted);
            }
            state.features = worker.features;
            state.queues.extend(worker.queues.iter().map(|(active, _)| QueueState::of(active.index, &active.queue)));
            self.server = Some(worker.server);
        }
        Ok(state)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), SnapshotError> {
        state.check(self, NAME)
    }
}

impl FsWorker {
    /// The guest has asked for something: the server takes over.
    fn begin_serving(&mut self) {
        for (queue, _) in &self.queues {
            // From now on the server's.
            let _ = watch(&self.news, queue.kick.as_raw_fd(), ControlOperation::Delete);
        }
        let rings: Vec<Ring<'_>> = self
            .queues
            .iter()
            .map(|(active, call)| Ring { index: active.index, queue: &active.queue, kick: &active.kick, call })
            .collect();
        let started = self.server.session(self.queue_count).and_then(|session| {
            session.start(&self.ram, self.features, &rings)?;
            watch(&self.news, session.as_raw_fd(), ControlOperation::Add).map_err(SessionError::Connect)
        });
        match started {
            Ok(()) => self.state = State::Serving,
            Err(error) => self.fail(&error.to_string()),
        }
    }

    fn fail(&mut self, why: &str) {
        self.state = State::Failed;
        self.server.session = None;
        self.interrupt.needs_reset(&format_args!("the guest's file system stops: {why}"));
    }

    /// The socket is readable, though nothing was asked.
    fn hear_server(&mut self) {
        if let Some(session) = &self.server.session {
            let _ = watch(&self.news, session.as_raw_fd(), ControlOperation::Delete);
        }
        self.fail("the file server has closed its connection");
    }

    /// The driver is reset: its memory must not be touched any more.
    fn take_rings_away(&mut self) {
        let Some(session) = &mut self.server.session else {
            return;
        };
        for (active, _) in &self.queues {
            if let Err(error) = session.stop(active.index) {
                tracing::error!("cannot stop the file server's work for the guest: {error}");
                self.server.session = None;
                return;
            }
        }
    }
}

fn watch(epoll: &Epoll, fd: RawFd, operation: ControlOperation) -> io::Result<()> {
    epoll.ctl(operation, fd, EpollEvent::new(EventSet::IN, 0))
}

impl Handler for FsWorker {
    fn watched(&self) -> Vec<(RawFd, u64)> {
        let calls = self.queues.iter().zip(0..).map(|((_, call), token)| (call.as_raw_fd(), token));
        calls.chain([(self.news.as_raw_fd(), NEWS)]).collect()
    }

    fn handle(&mut self, token: u64, _stop: &Stop) {
        if token == NEWS {
            match self.state {
                State::Waiting => self.begin_serving(),
                State::Serving => self.hear_server(),
                State::Failed => {}
            }
        } else if let Some((active, call)) = usize::try_from(token).ok().and_then(|at| self.queues.get(at)) {
            clear(call);
            self.interrupt.queue(active.index);
        }
    }
}
