//! virtio-net (virtio 1.2, section 5.1).
//!
//! ```text
//! tap ==readv==> [guest buffers | overflow of the host] --fits: given to the driver
//!                                                       --does not: kept until the driver offers more
//! guest buffers ==writev==> tap
//! ```
//!
//! Frames carry `virtio_net_hdr_v1`, which the tap device itself reads and writes: a frame's bytes are never copied here, and
//! what the guest says about checksums and segments is checked by the kernel.

mod backend;
mod control;
mod device;
mod features;
mod rx;
mod tap;
mod tx;
mod virtio;

pub use backend::NetBackend;
pub use device::{NetConfig, NetCounters, NetDevice, NetPair, Turn, Wait};
pub use tap::{Tap, TapError};
pub use virtio::Net;

/// Virtio device type of a network device.
pub const DEVICE_TYPE: u32 = 1;
/// Descriptors per queue.
pub const QUEUE_SIZE: u16 = 256;
/// Descriptors of the control queue.
pub const CONTROL_QUEUE_SIZE: u16 = 64;
/// Bytes of `virtio_net_hdr_v1`.
pub const HEADER_LEN: usize = 12;
/// Longest frame without its header: 64 KiB and an Ethernet header (5.1.6.3.1).
pub const MAX_FRAME: usize = 65536 + 14;
/// Shortest frame that anything takes: an Ethernet header.
pub const MIN_FRAME: usize = 14;
