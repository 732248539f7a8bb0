//! EROFS metadata images over layer blobs.
//!
//! An image's layer trees [`merge`] into one tree, and [`write()`] makes of it a metadata image whose files point into the
//! layers' blobs as extra devices. With the parts laid behind each other as [`flat_layout`] says, Linux 6.4 and later
//! mounts the whole as one device without any `device=` option, because the device table says where each blob begins.
//!
//! The on-disk format's reference is Linux's `fs/erofs/erofs_fs.h`; structure names in comments here are its.

mod directory;
mod disk;
mod merge;
mod place;
mod write;
mod xattr;

#[cfg(test)]
mod tests;

pub use merge::{MergeError, merge};
pub use write::{WriteError, write};

use crate::image::digest::Digest;
use crate::image::layer::BLOCK;

/// A blob that a tree's files refer to by position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobRef {
    /// What the device table calls it.
    pub digest: Digest,
    /// Bytes.
    pub len: u64,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetadataImage {
    /// Bytes, a multiple of [`BLOCK`].
    pub len: u64,
    /// The volume's, made from the contents: the same tree over the same blobs has the same.
    pub uuid: [u8; 16],
    /// Inodes.
    pub inodes: u64,
}

/// The lengths that the metadata and each blob take on the flat device, in this order, each padded to whole blocks.
#[must_use]
pub fn flat_layout(metadata_len: u64, blob_lens: &[u64]) -> Vec<u64> {
    std::iter::once(&metadata_len).chain(blob_lens).map(|len| len.next_multiple_of(BLOCK)).collect()
}
