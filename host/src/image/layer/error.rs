//! What can be wrong with a layer.

use std::io;

use super::Compression;
use super::builder::PathError;

/// Why a layer was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The source of the compressed bytes failed.
    #[error("cannot read the layer after {offset} bytes of its tar stream: {source}")]
    Input {
        /// Bytes of the tar stream that arrived.
        offset: u64,
        /// What the source said.
        source: io::Error,
    },
    /// The bytes are not what the media type says, or damaged, or cut off.
    #[error("cannot decompress the layer as {compression:?} after {offset} bytes of its tar stream: {source}")]
    Decompress {
        /// What it was taken for.
        compression: Compression,
        /// Bytes of the tar stream that arrived.
        offset: u64,
        /// What the decoder said.
        source: io::Error,
    },
    /// The tar stream ends inside something.
    #[error("the layer's tar stream ends at byte {offset}, inside {inside}")]
    Truncated {
        /// Length of the stream.
        offset: u64,
        /// What was being read.
        inside: String,
    },
    /// More bytes than allowed, or a decompression bomb.
    #[error("the layer's tar stream is longer than the {limit} bytes allowed")]
    TooLarge {
        /// [`super::LayerLimits::uncompressed_bytes`].
        limit: u64,
    },
    /// More entries than allowed.
    #[error("the layer has more than the {limit} entries allowed")]
    TooManyEntries {
        /// [`super::LayerLimits::entries`].
        limit: u64,
    },
    /// One entry cannot be taken.
    #[error("layer entry {name:?} (header at byte {offset} of the tar stream): {reason}")]
    Entry {
        /// The entry's name as far as it is known, escaped and shortened.
        name: String,
        /// Where its header is.
        offset: u64,
        /// What is wrong.
        reason: EntryError,
    },
    /// The blob file cannot be written.
    #[error("cannot write the layer's data blob: {0}")]
    Blob(#[source] io::Error),
}

/// What is wrong with one entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// No tar header where one must be.
    #[error("its header's checksum is wrong: not a tar stream, or a damaged one")]
    Checksum,
    /// A zero block, and no second one.
    #[error("it follows the stream's end mark")]
    AfterEnd,
    /// A numeric field.
    #[error("its {field} is no number that fits")]
    Number {
        /// Which field.
        field: &'static str,
    },
    /// An extended header.
    #[error("its extended header is malformed: {0}")]
    ExtendedHeader(&'static str),
    /// An extended header or long name above the limit.
    #[error("its extended header is {len} bytes long, {limit} are allowed")]
    ExtendedHeaderSize {
        /// As the header says.
        len: u64,
        /// What is allowed.
        limit: u64,
    },
    /// Extended headers without anything that they describe.
    #[error("an extended header describes nothing: the stream ends behind it")]
    DanglingHeader,
    /// No name.
    #[error("it has no name")]
    NoName,
    /// A zero byte in a name or link target.
    #[error("its {0} holds a NUL byte")]
    Nul(&'static str),
    /// `../x`.
    #[error("its path leads out of the root through '..'")]
    Escapes,
    /// Longer than Linux allows.
    #[error("its {what} is {len} bytes long, {limit} are allowed")]
    TooLong {
        /// Path, link target, or attribute.
        what: &'static str,
        /// Length.
        len: u64,
        /// What is allowed.
        limit: u64,
    },
    /// `.wh.` and nothing, or the directory itself.
    #[error("it is a whiteout of no name")]
    WhiteoutOfNothing,
    /// `.wh.x/y`.
    #[error("its path leads through a name that begins with '.wh.', which is reserved for whiteouts")]
    ReservedName,
    /// The root as a file.
    #[error("it would replace the root directory")]
    ReplacesRoot,
    /// A link without a target.
    #[error("it is a link without a target")]
    NoTarget,
    /// A hard link to a directory.
    #[error("it is a hard link to {target:?}, a directory")]
    LinkToDirectory {
        /// Escaped.
        target: String,
    },
    /// A type flag that means nothing to us.
    #[error("its type flag {0:?} is not supported")]
    Type(char),
    /// A device number that Linux cannot have.
    #[error("its device number {major}:{minor} does not fit: 4095:1048575 is the highest")]
    Device {
        /// Major.
        major: u64,
        /// Minor.
        minor: u64,
    },
    /// The map of a sparse file contradicts itself or the sizes.
    #[error("its sparse map is wrong: {0}")]
    SparseMap(&'static str),
    /// A file larger than the format can hold.
    #[error("its size, {size} bytes, is above the {limit} that a file may have")]
    FileTooLarge {
        /// As its header says.
        size: u64,
        /// Bytes.
        limit: u64,
    },
    /// Contents above the layer's limit.
    #[error("with it the layer's contents are longer than the {limit} bytes allowed")]
    BlobFull {
        /// [`super::LayerLimits::blob_bytes`].
        limit: u64,
    },
    /// Its path cannot be followed, or its names are too many.
    #[error(transparent)]
    Path(#[from] PathError),
}

/// A hostile name, fit for one line of a log.
pub(crate) fn printable(name: &[u8]) -> String {
    const SHOWN: usize = 200;
    match name.get(..SHOWN) {
        Some(start) => format!("{}...", String::from_utf8_lossy(start)),
        None => String::from_utf8_lossy(name).into_owned(),
    }
}
