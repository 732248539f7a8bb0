//! On-disk structures, named as in Linux's `fs/erofs/erofs_fs.h`. All numbers are little endian.

use crate::image::layer::{Inode, Kind};

/// Where the superblock begins.
pub(super) const SUPER_OFFSET: usize = 1024;
/// `struct erofs_super_block`
const SUPER_SIZE: usize = 128;
/// `struct erofs_deviceslot`
pub(super) const DEVICE_SLOT: usize = 128;
/// The device table follows the superblock at once.
pub(super) const DEVICE_TABLE: usize = SUPER_OFFSET + SUPER_SIZE;
/// `struct erofs_inode_extended`, which holds nanoseconds and 32-bit owners.
pub(super) const INODE_SIZE: u64 = 64;
/// Inode numbers count units of this.
pub(super) const INODE_SLOT: u64 = 32;
/// `struct erofs_inode_chunk_index`
pub(super) const CHUNK_INDEX: u64 = 8;
/// `EROFS_NULL_ADDR`
pub(super) const HOLE: u32 = u32::MAX;

const MAGIC: u32 = 0xe0f5_e1e2;
const COMPAT_SB_CHECKSUM: u32 = 1;
const COMPAT_MTIME: u32 = 2;
const INCOMPAT_CHUNKED_FILE: u32 = 4;
const INCOMPAT_DEVICE_TABLE: u32 = 8;
const BLOCK_BITS: u8 = 12;
const EXTENDED: u16 = 1;
const CHUNK_INDEXES: u16 = 0x20;

/// How an inode's data is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Whole blocks.
    Plain = 0,
    /// The last part behind the inode, the rest in whole blocks.
    Inline = 2,
    /// An index of chunks behind the inode.
    Chunks = 4,
}

/// What the superblock says.
#[derive(Debug)]
pub(super) struct Super {
    pub inodes: u64,
    pub blocks: u32,
    pub meta_block: u32,
    pub devices: u16,
    pub uuid: [u8; 16],
}

fn put<const N: usize>(block: &mut [u8], offset: usize, bytes: [u8; N]) {
    block[offset..offset + N].copy_from_slice(&bytes);
}

/// `struct erofs_super_block` into the first block, which holds the beginning of the device table already.
pub(super) fn put_super(block: &mut [u8], fields: &Super) {
    let at = |offset: usize| SUPER_OFFSET + offset;
    put(block, at(0), MAGIC.to_le_bytes());
    put(block, at(8), (COMPAT_SB_CHECKSUM | COMPAT_MTIME).to_le_bytes());
    block[at(12)] = BLOCK_BITS;
    put(block, at(16), fields.inodes.to_le_bytes());
    put(block, at(36), fields.blocks.to_le_bytes());
    put(block, at(40), fields.meta_block.to_le_bytes());
    put(block, at(48), fields.uuid);
    let incompat = if fields.devices == 0 { 0 } else { INCOMPAT_DEVICE_TABLE };
    put(block, at(80), (INCOMPAT_CHUNKED_FILE | incompat).to_le_bytes());
    put(block, at(86), fields.devices.to_le_bytes());
    put(block, at(88), ((DEVICE_TABLE / DEVICE_SLOT) as u16).to_le_bytes());
    // Over the rest of the block with this field zero, and without the closing inversion of CRC-32C.
    let checksum = !crc32c::crc32c(&block[SUPER_OFFSET..]);
    put(block, at(4), checksum.to_le_bytes());
}

/// `struct erofs_deviceslot`
pub(super) fn device_slot(tag: &str, blocks: u32, mapped: u32) -> [u8; DEVICE_SLOT] {
    let mut slot = [0; DEVICE_SLOT];
    let tag = &tag.as_bytes()[..tag.len().min(64)];
    slot[..tag.len()].copy_from_slice(tag);
    put(&mut slot, 64, blocks.to_le_bytes());
    put(&mut slot, 68, mapped.to_le_bytes());
    slot
}

/// What an inode says beyond the tree's.
#[derive(Debug)]
pub(super) struct InodeFields {
    pub layout: Layout,
    pub xattr_count: u16,
    pub size: u64,
    /// `i_u`
    pub union: u32,
    pub number: u32,
    pub links: u32,
}

/// `struct erofs_inode_extended`
pub(super) fn inode(inode: &Inode, fields: &InodeFields) -> [u8; INODE_SIZE as usize] {
    let mut bytes = [0; INODE_SIZE as usize];
    put(&mut bytes, 0, (EXTENDED | (fields.layout as u16) << 1).to_le_bytes());
    put(&mut bytes, 2, fields.xattr_count.to_le_bytes());
    put(&mut bytes, 4, (file_type(&inode.kind).1 | inode.mode).to_le_bytes());
    put(&mut bytes, 8, fields.size.to_le_bytes());
    put(&mut bytes, 16, fields.union.to_le_bytes());
    put(&mut bytes, 20, fields.number.to_le_bytes());
    put(&mut bytes, 24, inode.uid.to_le_bytes());
    put(&mut bytes, 28, inode.gid.to_le_bytes());
    put(&mut bytes, 32, inode.mtime.seconds.to_le_bytes());
    put(&mut bytes, 40, inode.mtime.nanoseconds.to_le_bytes());
    put(&mut bytes, 44, fields.links.to_le_bytes());
    bytes
}

/// `i_u` of a chunk-based file: `struct erofs_inode_chunk_info`.
pub(super) fn chunk_info(chunk_bits: u8) -> u32 {
    u32::from(CHUNK_INDEXES | u16::from(chunk_bits))
}

/// `i_u` of a device, encoded as by Linux's `new_encode_dev`.
pub(super) fn device_number(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | major << 8 | (minor & !0xff) << 12
}

/// `struct erofs_inode_chunk_index`
pub(super) fn chunk_index(device: u16, block: u32) -> [u8; CHUNK_INDEX as usize] {
    let mut bytes = [0; CHUNK_INDEX as usize];
    put(&mut bytes, 2, device.to_le_bytes());
    put(&mut bytes, 4, block.to_le_bytes());
    bytes
}

/// The type that a directory entry names, and the bits of `st_mode`.
pub(super) fn file_type(kind: &Kind) -> (u8, u16) {
    match kind {
        // A merged tree has no links to other layers; as a file it would be refused before it is written.
        Kind::File(_) | Kind::LowerLink(_) => (1, 0o100_000),
        Kind::Directory(_) => (2, 0o040_000),
        Kind::CharDevice { .. } => (3, 0o020_000),
        Kind::BlockDevice { .. } => (4, 0o060_000),
        Kind::Fifo => (5, 0o010_000),
        Kind::Symlink(_) => (7, 0o120_000),
    }
}
