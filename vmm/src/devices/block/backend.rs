//! What a block device stores its bytes in.

use std::fmt::Debug;
use std::fs::File;
use std::sync::Arc;

/// Storage behind a block device: says which bytes of which files it consists of; the device moves them. Offsets and lengths
/// are in bytes, multiples of 512, and within [`len`](Self::len): the device checks them before it asks.
pub trait BlockBackend: Debug + Send + Sync {
    /// Size in bytes, a multiple of 512; constant.
    fn len(&self) -> u64;

    /// Whether writes are refused; constant.
    fn is_read_only(&self) -> bool;

    /// Whether ranges can be discarded and zeroed; constant.
    fn can_discard(&self) -> bool {
        false
    }

    /// What lies from `offset` on.
    fn locate(&self, offset: u64) -> Place;

    /// The file to sync so that every write that was answered is durable; `None` when there is nothing to do for as much
    /// durability as this storage promises.
    fn to_sync(&self) -> Option<Arc<File>>;

    /// No bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What lies at an offset.
#[derive(Debug, Clone)]
pub enum Place {
    /// So many bytes of this file, from this offset in it; what lies past its end reads as zeros.
    File {
        /// Which.
        file: Arc<File>,
        /// Offset in it.
        at: u64,
        /// Bytes.
        len: u64,
    },
    /// So many bytes that read as zeros.
    Hole {
        /// Bytes.
        len: u64,
    },
}

impl Place {
    /// Bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::File { len, .. } | Self::Hole { len } => *len,
        }
    }

    /// No bytes at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
