//! Virtio devices, written once and driven by any transport.
//!
//! A device works on guest memory and split virtqueues that its transport hands it; it knows neither registers nor
//! vhost-user messages. [`virtio`] is what a transport asks of it, [`worker`] the threads that serve its queues there.
//! What a guest wrote is hostile until checked: [`chain`] turns a descriptor chain into buffers that lie inside guest memory, or into an error.

pub mod balloon;
pub mod block;
pub mod chain;
pub mod console;
pub mod fs;
pub mod limit;
pub mod net;
pub mod queue;
pub mod rate_limiter;
pub mod rng;
pub mod slices;
pub mod virtio;
pub mod vsock;
pub mod worker;

/// Guest RAM as the devices see it.
pub type GuestRam = vm_memory::GuestMemoryMmap<()>;

/// Feature bits every device here offers: VIRTIO_F_VERSION_1, VIRTIO_F_RING_INDIRECT_DESC, VIRTIO_F_RING_EVENT_IDX.
pub const RING_FEATURES: u64 = 1 << 32 | 1 << 28 | 1 << 29;

/// A queue whose rings cannot be used any more; only a reset by the driver helps.
#[derive(Debug, thiserror::Error)]
#[error("virtqueue {queue}: {what}; the guest must reset the device")]
pub struct BrokenQueue {
    /// The queue's index.
    pub queue: usize,
    /// What the driver did.
    pub what: String,
}
