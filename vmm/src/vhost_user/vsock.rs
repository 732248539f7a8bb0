//! A socket device as a vhost-user backend.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackend, VringEpollHandler, VringMutex, VringT};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use super::block::{F_PROTOCOL_FEATURES, MAX_QUEUE_SIZE, signal};
use super::server::{Adapter, ServeError, ServerHandle, SharedRam, serve};
use crate::devices::vsock::{RX_QUEUE, TX_QUEUE, VsockDevice};
use crate::devices::{BrokenQueue, GuestRam};

/// The front end keeps the event queue to itself.
const QUEUES: usize = 2;
/// Event id of the device's host side; up to `QUEUES` they belong to the queues and the exit event.
const HOST_EVENT: u64 = QUEUES as u64 + 1;
/// How long slow readers may take for a dead guest's last bytes.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

struct VsockAdapter {
    /// Locked by the one worker, and by the control thread when the driver changes.
    device: Mutex<VsockDevice>,
    ram: SharedRam,
    stopping: Arc<AtomicBool>,
}

/// Serves a socket device to the first front end that connects, with one thread for its queues and sockets. Handles of
/// the device fail once the front end is gone.
pub fn serve_vsock(device: VsockDevice, listener: UnixListener, name: &str) -> Result<ServerHandle, ServeError> {
    let ram = GuestMemoryAtomic::new(GuestRam::new());
    let stopping = Arc::new(AtomicBool::new(false));
    let adapter = VsockAdapter { device: Mutex::new(device), ram: ram.clone(), stopping: stopping.clone() };
    serve(name, Arc::new(adapter), ram, listener, stopping)
}

impl VsockAdapter {
    fn device(&self) -> MutexGuard<'_, VsockDevice> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves packets both ways until nothing is left to move.
    fn pump(&self, device: &mut VsockDevice, vrings: &[VringMutex<SharedRam>]) {
        loop {
            self.run_queue(vrings, TX_QUEUE, |ram, tx| device.process_tx(ram, tx));
            self.run_queue(vrings, RX_QUEUE, |ram, rx| device.process_rx(ram, rx));
            if !device.has_more_work() || self.stopping.load(Ordering::Relaxed) || !vrings.iter().all(is_running) {
                return;
            }
            // A guest that never stops sending must not keep the host's side waiting.
            device.process_host();
        }
    }

    fn run_queue(
        &self,
        vrings: &[VringMutex<SharedRam>],
        index: usize,
        process: impl FnOnce(&GuestRam, &mut Queue) -> Result<bool, BrokenQueue>,
    ) {
        let Some(vring) = vrings.get(index).filter(|vring| is_running(vring)) else {
            return;
        };
        let ram = self.ram.memory();
        let mut state = vring.get_mut();
        match process(&ram, state.get_queue_mut()) {
            Ok(true) => signal(&state),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!("vsock device: {error}");
                state.get_queue_mut().set_ready(false);
            }
        }
    }
}

fn is_running(vring: &VringMutex<SharedRam>) -> bool {
    let state = vring.get_ref();
    state.is_enabled() && state.get_queue().ready()
}

impl Adapter for VsockAdapter {
    fn attach(&self, workers: &[Arc<VringEpollHandler<Arc<Self>>>]) -> io::Result<()> {
        let device = self.device();
        let fd = device.host_events().as_raw_fd();
        workers.iter().try_for_each(|worker| worker.register_listener(fd, EventSet::IN, HOST_EVENT))
    }

    fn close(&self) {
        self.device().disconnect();
    }

    fn drain(&self) {
        let end = Instant::now() + DRAIN_TIMEOUT;
        let mut device = self.device();
        while !device.is_drained() {
            let Some(left) = end.checked_duration_since(Instant::now()) else {
                tracing::warn!(connections = device.connections(), "gave up on readers of a dead guest's last bytes");
                return;
            };
            wait_readable(device.host_events(), left);
            device.process_host();
        }
    }
}

impl VhostUserBackend for VsockAdapter {
    type Bitmap = ();
    type Vring = VringMutex<SharedRam>;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        self.device().features() | F_PROTOCOL_FEATURES
    }

    fn acked_features(&self, features: u64) {
        let mut device = self.device();
        // Features are set once by each driver that starts: connections of the one before are gone.
        device.reset();
        device.set_acked_features(features);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.device().read_config(offset as usize, size as usize)
    }

    fn update_memory(&self, _ram: SharedRam) -> io::Result<()> {
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC).ok()
    }

    fn handle_event(&self, event: u16, _: EventSet, vrings: &[VringMutex<SharedRam>], _: usize) -> io::Result<()> {
        let mut device = self.device();
        if u64::from(event) == HOST_EVENT {
            device.process_host();
        }
        self.pump(&mut device, vrings);
        Ok(())
    }
}

fn wait_readable(fd: BorrowedFd<'_>, at_most: Duration) {
    let timeout =
        Timespec { tv_sec: at_most.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: at_most.subsec_nanos().into() };
    let _ = rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout));
}
