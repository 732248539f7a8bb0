//! Where each inode and each directory's blocks go.

use super::directory::Entries;
use super::disk::{CHUNK_INDEX, INODE_SIZE, INODE_SLOT, Layout};
use super::write::WriteError;
use super::xattr;
use crate::image::layer::{BLOCK, Inode, InodeId, Kind, Tree};

/// An inode's place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// From the beginning of the inode area.
    pub offset: u64,
    pub layout: Layout,
    /// `i_size`
    pub size: u64,
    /// First block in the area of whole blocks, and how many there.
    pub first_block: u64,
    pub blocks: u64,
    pub links: u32,
    /// The directory that it is in; of use for directories.
    pub parent: InodeId,
}

impl Place {
    /// The inode's number on disk.
    pub(super) fn nid(&self) -> u64 {
        self.offset / INODE_SLOT
    }
}

/// All places, and the lengths of the two areas.
#[derive(Debug)]
pub(super) struct Plan {
    pub places: Vec<Place>,
    /// Bytes of the inode area, whole blocks.
    pub inodes_len: u64,
    /// Blocks behind it.
    pub data_blocks: u64,
}

/// Lays inodes out in the tree's order, which puts a directory's children beside each other.
pub(super) fn plan(tree: &Tree) -> Result<Plan, WriteError> {
    let mut plan = Plan { places: links(tree)?, inodes_len: 0, data_blocks: 0 };
    let mut end = 0;
    for (id, inode) in tree.inodes().iter().enumerate() {
        let place = &mut plan.places[id];
        let xattrs = xattr::size(&inode.xattrs).ok_or(WriteError::Xattrs { inode: id as InodeId })?;
        let head = INODE_SIZE + xattrs;
        let (size, layout, tail) = shape(inode, id as InodeId, place.parent, head)?;
        (place.size, place.layout) = (size, layout);
        if matches!(inode.kind, Kind::Directory(_) | Kind::Symlink(_)) {
            place.blocks = if layout == Layout::Inline { (size - tail) / BLOCK } else { size.div_ceil(BLOCK) };
            place.first_block = plan.data_blocks;
            plan.data_blocks += place.blocks;
        }
        place.offset = fit(end, if layout == Layout::Inline { head + tail } else { INODE_SIZE });
        end = match layout {
            Layout::Chunks => (place.offset + head).next_multiple_of(CHUNK_INDEX) + tail,
            _ => place.offset + head + tail,
        };
    }
    plan.inodes_len = end.next_multiple_of(BLOCK);
    Ok(plan)
}

/// The next place where `len` bytes lie within one block.
fn fit(end: u64, len: u64) -> u64 {
    let start = end.next_multiple_of(INODE_SLOT);
    if start % BLOCK + len <= BLOCK { start } else { start.next_multiple_of(BLOCK) }
}

/// Size, layout, and bytes behind inode and attributes.
fn shape(inode: &Inode, id: InodeId, parent: InodeId, head: u64) -> Result<(u64, Layout, u64), WriteError> {
    let size = match &inode.kind {
        Kind::Directory(directory) => Entries::new(directory, id, parent).size(),
        Kind::Symlink(target) => target.len() as u64,
        Kind::File(file) if file.size > 0 => {
            return Ok((file.size, Layout::Chunks, file.chunk_count() * CHUNK_INDEX));
        }
        Kind::LowerLink(_) => return Err(WriteError::LowerLink { inode: id }),
        _ => return Ok((0, Layout::Plain, 0)),
    };
    let tail = size % BLOCK;
    let inline = tail > 0 && head + tail <= BLOCK;
    Ok(if inline { (size, Layout::Inline, tail) } else { (size, Layout::Plain, 0) })
}

/// Counts links and finds parents.
fn links(tree: &Tree) -> Result<Vec<Place>, WriteError> {
    let nowhere =
        Place { offset: 0, layout: Layout::Plain, size: 0, first_block: 0, blocks: 0, links: 0, parent: Tree::ROOT };
    let mut places = vec![nowhere; tree.inodes().len()];
    for (id, inode) in tree.inodes().iter().enumerate() {
        let Some(directory) = inode.directory() else { continue };
        let mut subdirectories = 0;
        for child in directory.entries.values() {
            let is_directory = tree.get(*child).is_some_and(|child| child.directory().is_some());
            let place = places.get_mut(*child as usize).ok_or(WriteError::NoInode { inode: *child })?;
            place.links += 1;
            if is_directory {
                subdirectories += 1;
                place.parent = id as InodeId;
            }
        }
        places[id].links += 1 + subdirectories;
    }
    // The root has no name in a directory, but counts as if.
    if let Some(root) = places.first_mut() {
        root.links += 1;
    }
    Ok(places)
}
