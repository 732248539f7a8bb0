//! One pass over a layer: compressed bytes in, a data blob and a tree of what the layer holds out.
//!
//! Nothing is unpacked. File contents are appended to the layer's blob at multiples of [`BLOCK`]; names, modes and the
//! like become a [`Tree`], which is kept beside the blob and merged with the trees of other layers by
//! [`crate::image::erofs::merge`].
//!
//! ```text
//! input -> decompress -> hash, count -> tar records -> contents: BlobWriter
//!                                                   -> the rest: TreeBuilder -> Tree
//! ```

mod apply;
mod blob;
mod builder;
mod codec;
mod content;
mod error;
mod ingest;
mod name;
mod pax;
mod records;
mod sparse;
mod stream;
mod tree;

#[cfg(test)]
#[path = "../../../tests/erofs/archive.rs"]
pub(crate) mod archive;
#[cfg(test)]
mod tests;

pub(crate) use error::printable;

pub use blob::BlobWriter;
pub use builder::{PathError, TreeBuilder};
pub use codec::TreeError;
pub use error::{EntryError, LayerError};
pub use ingest::ingest;
pub use tree::{Directory, Extent, FileData, Inode, InodeId, Kind, Name, Time, Tree, Xattr};

use crate::image::digest::Digest;

/// Bytes of a block, of which everything in blobs and metadata is a multiple.
pub const BLOCK: u64 = 4096;

/// How a layer's bytes are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// A plain tar stream.
    None,
    /// One or more gzip members.
    Gzip,
    /// One or more zstd frames.
    Zstd,
}

/// What one layer may be at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerLimits {
    /// Tar entries, and inodes that they make.
    pub entries: u64,
    /// Bytes of the tar stream.
    pub uncompressed_bytes: u64,
    /// Length of the blob: contents padded to blocks, holes smaller than a chunk included.
    pub blob_bytes: u64,
    /// Bytes of names, link targets, extended attributes and extent lists together.
    pub metadata_bytes: u64,
}

impl Default for LayerLimits {
    fn default() -> Self {
        Self { entries: 2_000_000, uncompressed_bytes: 64 << 30, blob_bytes: 128 << 30, metadata_bytes: 512 << 20 }
    }
}

/// What a layer turned out to be.
#[derive(Debug)]
pub struct Layer {
    /// Everything but the contents.
    pub tree: Tree,
    /// Digest of the uncompressed stream.
    pub diff_id: Digest,
    /// Bytes of the uncompressed stream.
    pub uncompressed_len: u64,
    /// Length of the blob, a multiple of [`BLOCK`].
    pub blob_len: u64,
}
