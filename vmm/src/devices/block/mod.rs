//! virtio-blk (virtio 1.2, section 5.2).
//!
//! ```text
//! queue --chain--> plan: checks it, makes a Job of steps --> BlockIo: io_uring, or this thread --> status, used ring
//!                    `- what is wrong or trivial is answered at once -----------------------------------^
//! ```
//!
//! Requests end in any order. A flush covers the writes that were answered before it was offered (5.2.6.2), so it waits for
//! no other.

mod backend;
mod device;
mod image_drive;
mod io;
mod job;
mod plan;
mod raw_file;
mod request;
mod ring;
mod virtio;

pub use backend::{BlockBackend, Place};
pub use device::{BlockConfig, BlockCounters, BlockDevice, DEVICE_TYPE, QUEUE_SIZE, Turn};
pub use image_drive::{Extent, ImageDrive, ImageDriveError};
pub use io::BlockIo;
pub use raw_file::{FlushPolicy, RawFile};
pub use virtio::VirtioBlock;

/// Bytes of a virtio-blk sector, whatever the block size.
pub const SECTOR: u64 = 512;
