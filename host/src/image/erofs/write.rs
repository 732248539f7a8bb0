//! The metadata image.
//!
//! ```text
//! block 0: 1024 bytes, superblock, device table ...| inodes with attributes, chunk indexes and tails | whole blocks
//! ```

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};

use sha2::{Digest as _, Sha256};

use super::directory::Entries;
use super::disk::{self, InodeFields, Layout, Super};
use super::place::{Place, Plan, plan};
use super::{BlobRef, MetadataImage, flat_layout, xattr};
use crate::image::layer::{BLOCK, FileData, InodeId, Kind, Tree};

const BUFFER: usize = 256 << 10;

/// Why a metadata image was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The output.
    #[error("cannot write the EROFS metadata: {0}")]
    Io(#[from] io::Error),
    /// A directory names an inode that is not there.
    #[error("cannot write the EROFS metadata: a directory names inode {inode}, which the tree does not have")]
    NoInode {
        /// Its number.
        inode: InodeId,
    },
    /// Not a merged tree.
    #[error("cannot write the EROFS metadata: inode {inode} is a link into another layer; merge the layers first")]
    LowerLink {
        /// Its number.
        inode: InodeId,
    },
    /// More than 256 KiB of attributes.
    #[error("cannot write the EROFS metadata: inode {inode} has too many extended attributes")]
    Xattrs {
        /// Its number.
        inode: InodeId,
    },
    /// Contents outside the blobs.
    #[error("cannot write the EROFS metadata: inode {inode} has contents outside blob {blob}")]
    OutsideBlob {
        /// Its number.
        inode: InodeId,
        /// Which blob, from 0.
        blob: u16,
    },
    /// Block numbers have 32 bits, device numbers 16.
    #[error(
        "cannot write the EROFS metadata: metadata and {blobs} blobs take {bytes} bytes, more than 16 TiB or 65534 blobs"
    )]
    TooLarge {
        /// How many blobs.
        blobs: usize,
        /// All lengths together.
        bytes: u64,
    },
}

/// Writes the metadata image of a merged tree into `out`, from its beginning, and cuts `out` behind it.
///
/// Equal trees over equal blobs give equal bytes.
///
/// # Errors
/// See [`WriteError`].
pub fn write(tree: &Tree, blobs: &[BlobRef], out: &mut File) -> Result<MetadataImage, WriteError> {
    let plan = plan(tree)?;
    let geometry = Geometry::new(&plan, blobs)?;
    let mut sink = Sink { out, buffer: Vec::with_capacity(2 * BUFFER), position: 0, hasher: Sha256::new() };
    let head = geometry.head(blobs);
    sink.out.seek(SeekFrom::Start(0))?;
    sink.put(|bytes| bytes.extend_from_slice(&head))?;
    for (id, place) in plan.places.iter().enumerate() {
        put_inode(&mut sink, tree, &plan, &geometry, blobs, id as InodeId, place)?;
    }
    sink.pad_to(geometry.meta_start() + plan.inodes_len)?;
    for (id, place) in plan.places.iter().enumerate().filter(|(_, place)| place.blocks > 0) {
        let data = data(tree, &plan, id as InodeId, place);
        let len = (place.blocks * BLOCK).min(data.len() as u64) as usize;
        sink.put(|bytes| bytes.extend_from_slice(&data[..len]))?;
        let end = sink.position.next_multiple_of(BLOCK);
        sink.pad_to(end)?;
    }
    let digest = sink.finish(geometry.len())?;
    let uuid = uuid(&digest);
    let inodes = plan.places.len() as u64;
    geometry.finish_head(head, uuid, inodes, out)?;
    Ok(MetadataImage { len: geometry.len(), uuid, inodes })
}

/// Where the parts begin, in blocks, all within 32 bits.
struct Geometry {
    meta_block: u32,
    data_block: u32,
    blocks: u32,
    /// Of each blob: where it is mapped, and its blocks.
    blobs: Vec<(u32, u32)>,
}

impl Geometry {
    fn new(plan: &Plan, blobs: &[BlobRef]) -> Result<Self, WriteError> {
        let table_end = (disk::DEVICE_TABLE + blobs.len() * disk::DEVICE_SLOT) as u64;
        let meta_block = table_end.div_ceil(BLOCK);
        let data_block = meta_block + plan.inodes_len / BLOCK;
        let blocks = data_block + plan.data_blocks;
        let lens: Vec<u64> = blobs.iter().map(|blob| blob.len).collect();
        let bytes = lens.iter().fold(blocks * BLOCK, |sum, len| sum.saturating_add(*len).saturating_add(BLOCK));
        let too_large = || WriteError::TooLarge { blobs: blobs.len(), bytes };
        if bytes / BLOCK >= u64::from(disk::HOLE) || blobs.len() > usize::from(u16::MAX - 1) {
            return Err(too_large());
        }
        let block_count = |count: u64| u32::try_from(count).map_err(|_| too_large());
        let mut start = 0;
        let mut parts = Vec::with_capacity(blobs.len() + 1);
        for len in flat_layout(blocks * BLOCK, &lens) {
            parts.push((block_count(start)?, block_count(len / BLOCK)?));
            start += len / BLOCK;
        }
        parts.remove(0);
        let (meta_block, data_block) = (block_count(meta_block)?, block_count(data_block)?);
        Ok(Self { meta_block, data_block, blocks: block_count(blocks)?, blobs: parts })
    }

    fn meta_start(&self) -> u64 {
        u64::from(self.meta_block) * BLOCK
    }

    fn len(&self) -> u64 {
        u64::from(self.blocks) * BLOCK
    }

    /// The blocks before the inodes: an empty superblock and the device table.
    fn head(&self, blobs: &[BlobRef]) -> Vec<u8> {
        let mut head = vec![0; disk::DEVICE_TABLE];
        for (blob, (mapped, blocks)) in blobs.iter().zip(&self.blobs) {
            head.extend_from_slice(&disk::device_slot(&blob.digest.hex(), *blocks, *mapped));
        }
        head.resize(self.meta_start() as usize, 0);
        head
    }

    fn finish_head(&self, mut head: Vec<u8>, uuid: [u8; 16], inodes: u64, out: &mut File) -> io::Result<()> {
        let devices = self.blobs.len() as u16;
        let fields = Super { inodes, blocks: self.blocks, meta_block: self.meta_block, devices, uuid };
        let first = &mut head[..BLOCK as usize];
        disk::put_super(first, &fields);
        out.seek(SeekFrom::Start(0))?;
        out.write_all(first)
    }
}

fn put_inode(
    sink: &mut Sink<'_>,
    tree: &Tree,
    plan: &Plan,
    geometry: &Geometry,
    blobs: &[BlobRef],
    id: InodeId,
    place: &Place,
) -> Result<(), WriteError> {
    let inode = tree.get(id).ok_or(WriteError::NoInode { inode: id })?;
    let xattrs = xattr::size(&inode.xattrs).ok_or(WriteError::Xattrs { inode: id })?;
    let union = match &inode.kind {
        Kind::File(file) if file.size > 0 => disk::chunk_info(file.chunk_bits),
        Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => disk::device_number(*major, *minor),
        // Within 32 bits, as all blocks are.
        _ if place.blocks > 0 => geometry.data_block + place.first_block as u32,
        _ => 0,
    };
    let fields = InodeFields {
        layout: place.layout,
        xattr_count: xattr::count(xattrs),
        size: place.size,
        union,
        number: id.wrapping_add(1),
        links: place.links,
    };
    sink.pad_to(geometry.meta_start() + place.offset)?;
    sink.put(|bytes| {
        bytes.extend_from_slice(&disk::inode(inode, &fields));
        xattr::put(bytes, &inode.xattrs);
    })?;
    match (&inode.kind, place.layout) {
        (Kind::File(file), Layout::Chunks) => {
            let start = sink.position.next_multiple_of(disk::CHUNK_INDEX);
            sink.pad_to(start)?;
            put_chunks(sink, file, id, blobs)
        }
        (_, Layout::Inline) => {
            let data = data(tree, plan, id, place);
            let tail = data.get((place.blocks * BLOCK) as usize..).unwrap_or_default();
            Ok(sink.put(|bytes| bytes.extend_from_slice(tail))?)
        }
        _ => Ok(()),
    }
}

fn put_chunks(sink: &mut Sink<'_>, file: &FileData, id: InodeId, blobs: &[BlobRef]) -> Result<(), WriteError> {
    let outside = || WriteError::OutsideBlob { inode: id, blob: file.blob };
    let blob_blocks = blobs.get(usize::from(file.blob)).ok_or_else(outside)?.len.div_ceil(BLOCK);
    let mut indexes = vec![disk::HOLE; file.chunk_count() as usize];
    for extent in &file.extents {
        let end = u64::from(extent.chunk) + u64::from(extent.chunks);
        let used =
            (end << file.chunk_bits).min(file.size.div_ceil(BLOCK)) - (u64::from(extent.chunk) << file.chunk_bits);
        if u64::from(extent.block) + used > blob_blocks {
            return Err(outside());
        }
        let slots = indexes.get_mut(extent.chunk as usize..end as usize).ok_or_else(outside)?;
        for (i, slot) in slots.iter_mut().enumerate() {
            *slot = extent.block + ((i as u32) << file.chunk_bits);
        }
    }
    Ok(sink.put(|bytes| {
        for block in indexes {
            let device = if block == disk::HOLE { 0 } else { file.blob + 1 };
            bytes.extend_from_slice(&disk::chunk_index(device, block));
        }
    })?)
}

/// What a directory or symbolic link holds.
fn data(tree: &Tree, plan: &Plan, id: InodeId, place: &Place) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(place.size as usize);
    match tree.get(id).map(|inode| &inode.kind) {
        Some(Kind::Directory(directory)) => {
            let nid = |id: InodeId| plan.places.get(id as usize).map_or(0, Place::nid);
            Entries::new(directory, id, place.parent).put(&mut bytes, tree, nid);
        }
        Some(Kind::Symlink(target)) => bytes.extend_from_slice(target),
        _ => {}
    }
    bytes
}

/// A version 8 UUID (RFC 9562) of a digest's first bytes.
fn uuid(digest: &[u8; 32]) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&digest[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

/// Buffered output that knows its position and hashes what passes.
struct Sink<'o> {
    out: &'o mut File,
    buffer: Vec<u8>,
    position: u64,
    hasher: Sha256,
}

impl Sink<'_> {
    fn put(&mut self, fill: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let before = self.buffer.len();
        fill(&mut self.buffer);
        self.position += (self.buffer.len() - before) as u64;
        if self.buffer.len() >= BUFFER {
            self.flush()?;
        }
        Ok(())
    }

    fn pad_to(&mut self, position: u64) -> io::Result<()> {
        let count = position.saturating_sub(self.position) as usize;
        self.put(|bytes| bytes.resize(bytes.len() + count, 0))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.hasher.update(&self.buffer);
        self.out.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self, len: u64) -> io::Result<[u8; 32]> {
        self.pad_to(len)?;
        self.flush()?;
        self.out.set_len(len)?;
        Ok(self.hasher.finalize().into())
    }
}
