//! virtio-blk (virtio 1.2, section 5.2).

mod backend;
mod device;
mod image_drive;
mod raw_file;
mod request;
mod virtio;

pub use backend::BlockBackend;
pub use device::{BlockConfig, BlockCounters, BlockDevice, DEVICE_TYPE, Progress, QUEUE_SIZE};
pub use image_drive::{Extent, ImageDrive, ImageDriveError};
pub use raw_file::{FlushPolicy, RawFile};
pub use virtio::VirtioBlock;

/// Bytes of a virtio-blk sector, whatever the block size.
pub const SECTOR: u64 = 512;
