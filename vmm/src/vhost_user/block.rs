//! A block device as a vhost-user backend.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackend, VringEpollHandler, VringMutex, VringState, VringT};
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use super::server::{Adapter, ServeError, ServerHandle, SharedRam, serve};
use crate::devices::GuestRam;
use crate::devices::block::{BlockDevice, BlockIo};
use crate::devices::rate_limiter::RetryTimer;

/// VHOST_USER_F_PROTOCOL_FEATURES.
pub(super) const F_PROTOCOL_FEATURES: u64 = 1 << 30;
/// Longest queue a front end may ask for.
pub(super) const MAX_QUEUE_SIZE: usize = 1024;

struct BlockAdapter {
    device: Arc<BlockDevice>,
    /// Of each queue, and so of each thread, which alone locks it.
    lanes: Vec<Mutex<Lane>>,
    ram: SharedRam,
    stopping: Arc<AtomicBool>,
}

/// What a queue has beside its ring.
struct Lane {
    io: BlockIo,
    timer: RetryTimer,
}

/// Serves a block device to the first front end that connects, with one thread per request queue.
pub fn serve_block(device: Arc<BlockDevice>, listener: UnixListener, name: &str) -> Result<ServerHandle, ServeError> {
    let ram = GuestMemoryAtomic::new(GuestRam::new());
    let stopping = Arc::new(AtomicBool::new(false));
    let lane = |_| RetryTimer::new().map(|timer| Mutex::new(Lane { io: BlockIo::new(), timer }));
    let lanes = (0..device.queues()).map(lane).collect::<io::Result<_>>();
    let lanes = lanes.map_err(|error| ServeError::Start { name: name.to_owned(), what: error.to_string() })?;
    let adapter = Arc::new(BlockAdapter { device, lanes, ram: ram.clone(), stopping: stopping.clone() });
    serve(name, adapter, ram, listener, stopping)
}

/// Interrupts the guest. An eventfd fails only when its counter is full, and then the interrupt is pending anyway.
pub(super) fn signal(state: &VringState<SharedRam>) {
    let _ = state.signal_used_queue();
}

fn lock(lane: &Mutex<Lane>) -> std::sync::MutexGuard<'_, Lane> {
    lane.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BlockAdapter {
    /// Behind the numbers of queues and that of their threads' end.
    fn timer_event(&self) -> u64 {
        u64::from(self.device.queues()) + 1
    }

    /// Does all requests there are.
    fn run(&self, state: &mut VringState<SharedRam>, queue: usize, lane: &mut Lane) {
        let ram = self.ram.memory();
        while state.get_queue().ready() && !self.stopping.load(Ordering::Relaxed) {
            match self.device.process(&ram, state.get_queue_mut(), queue, &mut lane.io) {
                Ok(turn) => {
                    if turn.notify {
                        signal(state);
                    }
                    if let Some(wait) = turn.wait {
                        lane.timer.arm(wait);
                        break;
                    }
                    if !turn.more && (lane.io.in_flight() == 0 || lane.io.wait().is_err()) {
                        break;
                    }
                }
                Err(error) => {
                    tracing::warn!("block device: {error}");
                    state.get_queue_mut().set_ready(false);
                }
            }
        }
        // Whoever takes the ring away waits for its lock, and nothing must be in flight then.
        if state.get_queue().ready()
            && let Ok(true) = self.device.finish(&ram, state.get_queue_mut(), queue, &mut lane.io)
        {
            signal(state);
        }
        lane.io.drain();
    }
}

impl Adapter for BlockAdapter {
    fn attach(&self, workers: &[Arc<VringEpollHandler<Arc<Self>>>]) -> io::Result<()> {
        workers.iter().zip(&self.lanes).try_for_each(|(worker, lane)| {
            let timer = lock(lane).timer.as_fd().as_raw_fd();
            worker.register_listener(timer, EventSet::IN, self.timer_event())
        })
    }

    fn close(&self) {}
}

impl VhostUserBackend for BlockAdapter {
    type Bitmap = ();
    type Vring = VringMutex<SharedRam>;

    fn num_queues(&self) -> usize {
        usize::from(self.device.queues())
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        self.device.features() | F_PROTOCOL_FEATURES
    }

    fn acked_features(&self, features: u64) {
        self.device.set_acked_features(features);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.device.read_config(offset as usize, size as usize)
    }

    fn update_memory(&self, _ram: SharedRam) -> io::Result<()> {
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        (0..self.device.queues().min(64)).map(|queue| 1 << queue).collect()
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC).ok()
    }

    fn handle_event(&self, event: u16, _: EventSet, vrings: &[VringMutex<SharedRam>], thread: usize) -> io::Result<()> {
        // Each queue has a thread of its own.
        let (Some(vring), Some(lane)) = (vrings.first(), self.lanes.get(thread)) else {
            return Ok(());
        };
        let mut lane = lock(lane);
        if u64::from(event) == self.timer_event() {
            lane.timer.clear();
        }
        self.run(&mut vring.get_mut(), thread, &mut lane);
        Ok(())
    }
}
