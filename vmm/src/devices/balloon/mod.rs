//! virtio-balloon (virtio 1.2, section 5.5): takes memory from the guest and gives it back.
//!
//! ```text
//! set_target --configuration interrupt--> driver --inflate: page numbers--> their memory is freed on the host
//!                                                --deflate-----------------> the guest touches them, the host fills them
//!                                                --reporting: free ranges--> their memory is freed on the host
//!                                                --stats, once for each request_stats
//! ```
//!
//! Freed memory reads as zeros when the guest touches it again.

mod device;
mod discard;
mod features;
mod queues;
mod stats;
mod virtio;

pub use device::{BalloonCounters, BalloonDevice, BalloonHandle};
pub use discard::discard;
pub use features::Role;
pub use queues::Held;
pub use stats::Stats;
pub use virtio::Balloon;

/// Virtio device type of a balloon.
pub const DEVICE_TYPE: u32 = 5;
/// Descriptors per queue.
pub const QUEUE_SIZE: u16 = 128;
/// Bytes of a page, whatever the guest's own (5.5.6).
pub const PAGE: u64 = 4096;

/// Whole pages in `bytes`: no more than the device's registers can say, which is 16 TiB.
#[must_use]
pub fn pages(bytes: u64) -> u32 {
    u32::try_from(bytes / PAGE).unwrap_or(u32::MAX)
}
