//! A block device as a vhost-user backend.

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackend, VringEpollHandler, VringMutex, VringState, VringT};
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use super::server::{Adapter, ServeError, ServerHandle, SharedRam, serve};
use crate::devices::GuestRam;
use crate::devices::block::{BlockDevice, Progress};

/// VHOST_USER_F_PROTOCOL_FEATURES.
pub(super) const F_PROTOCOL_FEATURES: u64 = 1 << 30;
/// Longest queue a front end may ask for.
pub(super) const MAX_QUEUE_SIZE: usize = 1024;

struct BlockAdapter {
    device: Arc<BlockDevice>,
    ram: SharedRam,
    stopping: Arc<AtomicBool>,
}

/// Serves a block device to the first front end that connects, with one thread per request queue.
pub fn serve_block(device: Arc<BlockDevice>, listener: UnixListener, name: &str) -> Result<ServerHandle, ServeError> {
    let ram = GuestMemoryAtomic::new(GuestRam::new());
    let stopping = Arc::new(AtomicBool::new(false));
    let adapter = Arc::new(BlockAdapter { device, ram: ram.clone(), stopping: stopping.clone() });
    serve(name, adapter, ram, listener, stopping)
}

/// Interrupts the guest. An eventfd fails only when its counter is full, and then the interrupt is pending anyway.
pub(super) fn signal(state: &VringState<SharedRam>) {
    let _ = state.signal_used_queue();
}

impl Adapter for BlockAdapter {
    fn attach(&self, _workers: &[Arc<VringEpollHandler<Arc<Self>>>]) -> io::Result<()> {
        Ok(())
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
        let Some(vring) = vrings.get(usize::from(event)) else {
            return Ok(());
        };
        // Each queue has a thread of its own. The lock is this queue's: taking the ring away waits for the request.
        let mut state = vring.get_mut();
        let ram = self.ram.memory();
        while state.get_queue().ready() && !self.stopping.load(Ordering::Relaxed) {
            match self.device.process_next(&ram, state.get_queue_mut(), thread) {
                // Nobody sets limits here: this loop has no timer.
                Ok(Progress::Idle | Progress::Throttled(_)) => break,
                Ok(Progress::Done { notify: true }) => signal(&state),
                Ok(Progress::Done { notify: false }) => {}
                Err(error) => {
                    tracing::warn!("block device: {error}");
                    state.get_queue_mut().set_ready(false);
                }
            }
        }
        Ok(())
    }
}
