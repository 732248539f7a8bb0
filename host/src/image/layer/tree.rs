//! The tree: inodes in one table, directories that name them by index.

use std::collections::{BTreeMap, BTreeSet};

/// A file name, or a link target: bytes without NUL.
pub type Name = Box<[u8]>;

/// Index of an inode in its tree.
pub type InodeId = u32;

/// What a layer holds, or the merged layers of an image.
///
/// Inode 0 is the root, always a directory. A directory has one name, other inodes may have several (hard links), and the
/// number of a directory is above its parent's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    pub(crate) inodes: Vec<Inode>,
}

/// All of a file but its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// The lower twelve bits of `st_mode`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the contents.
    pub mtime: Time,
    /// Extended attributes, sorted by name, each name once.
    pub xattrs: Box<[Xattr]>,
    /// What it is.
    pub kind: Kind,
}

/// A point in time, before 1970 too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord)]
pub struct Time {
    /// Whole seconds since 1970, rounded down.
    pub seconds: i64,
    /// 0 to 999,999,999 more.
    pub nanoseconds: u32,
}

/// One extended attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xattr {
    /// With its prefix: `security.capability`.
    pub name: Name,
    /// At most 65,535 bytes.
    pub value: Box<[u8]>,
}

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory(Box<Directory>),
    /// A regular file.
    File(FileData),
    /// A symbolic link to these bytes.
    Symlink(Name),
    /// A character device.
    CharDevice {
        /// At most 12 bits.
        major: u32,
        /// At most 20 bits.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// At most 12 bits.
        major: u32,
        /// At most 20 bits.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// Another name for a file of a layer below, by its path there. Never in a merged tree.
    LowerLink(Name),
}

/// A directory's entries, and what it does to the same directory of the layers below.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Directory {
    /// Name to inode.
    pub entries: BTreeMap<Name, InodeId>,
    /// Names of the layers below that are gone.
    pub whiteouts: BTreeSet<Name>,
    /// All names of the layers below are gone.
    pub opaque: bool,
    /// No entry of its own in the stream, only things in it: mode, owner and time come from below where there is one.
    pub implied: bool,
}

/// Where a regular file's contents are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileData {
    /// Bytes.
    pub size: u64,
    /// Which blob: 0 in a layer's tree, the layer's position in a merged one.
    pub blob: u16,
    /// A chunk is `1 << chunk_bits` blocks, at most 31.
    pub chunk_bits: u8,
    /// Contents in file order; chunks in none of them are holes.
    pub extents: Box<[Extent]>,
}

/// Chunks of a file that follow each other in the blob too. The file's last chunk may be cut short at the file's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First chunk.
    pub chunk: u32,
    /// Number of chunks, at least 1.
    pub chunks: u32,
    /// The blob's block where the first chunk begins.
    pub block: u32,
}

impl FileData {
    /// Number of chunks, holes included.
    #[must_use]
    pub fn chunk_count(&self) -> u64 {
        self.size.div_ceil(super::BLOCK << self.chunk_bits)
    }
}

impl Inode {
    /// A directory nobody described: mode 0755, root's, 1970.
    #[must_use]
    pub fn implied_directory() -> Self {
        let directory = Directory { implied: true, ..Directory::default() };
        Self {
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            xattrs: Box::default(),
            kind: Kind::Directory(Box::new(directory)),
        }
    }

    /// The directory's entries, if it is one.
    #[must_use]
    pub fn directory(&self) -> Option<&Directory> {
        match &self.kind {
            Kind::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    pub(crate) fn directory_mut(&mut self) -> Option<&mut Directory> {
        match &mut self.kind {
            Kind::Directory(directory) => Some(directory),
            _ => None,
        }
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self { inodes: vec![Inode::implied_directory()] }
    }
}

impl Tree {
    /// The root's number.
    pub const ROOT: InodeId = 0;

    /// All inodes; their index is their number.
    #[must_use]
    pub fn inodes(&self) -> &[Inode] {
        &self.inodes
    }

    /// An inode, if the tree has that number.
    #[must_use]
    pub fn get(&self, id: InodeId) -> Option<&Inode> {
        self.inodes.get(id as usize)
    }

    /// Numbers the inodes anew, directory by directory from the root, and drops those without a name.
    pub(crate) fn compacted(self) -> Self {
        const NONE: InodeId = InodeId::MAX;
        let mut new_ids = vec![NONE; self.inodes.len()];
        let mut order = vec![Self::ROOT];
        if let Some(first) = new_ids.first_mut() {
            *first = Self::ROOT;
        }
        let mut next = 0;
        while let Some(id) = order.get(next).copied() {
            next += 1;
            let Some(directory) = self.get(id).and_then(Inode::directory) else { continue };
            for child in directory.entries.values() {
                if let Some(slot) = new_ids.get_mut(*child as usize).filter(|slot| **slot == NONE) {
                    *slot = u32::try_from(order.len()).unwrap_or(NONE);
                    order.push(*child);
                }
            }
        }
        let mut old: Vec<Option<Inode>> = self.inodes.into_iter().map(Some).collect();
        let mut inodes: Vec<Inode> =
            order.iter().filter_map(|id| old.get_mut(*id as usize).and_then(Option::take)).collect();
        for directory in inodes.iter_mut().filter_map(Inode::directory_mut) {
            for child in directory.entries.values_mut() {
                *child = new_ids.get(*child as usize).copied().unwrap_or(NONE);
            }
        }
        Self { inodes }
    }
}
