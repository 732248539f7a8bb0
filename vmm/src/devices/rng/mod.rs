//! virtio-rng (virtio 1.2, section 5.4): random bytes of the host's kernel.

mod device;
mod virtio;

pub use device::{MAX_REQUEST, Progress, RngDevice};
pub use virtio::Rng;

/// Virtio device type of an entropy device.
pub const DEVICE_TYPE: u32 = 4;
/// Descriptors of the queue.
pub const QUEUE_SIZE: u16 = 64;
