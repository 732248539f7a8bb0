//! Directory data: blocks of `struct erofs_dirent`, each followed by its names, all sorted by bytes.

use std::ops::Range;

use super::disk::file_type;
use crate::image::layer::{BLOCK, Directory, InodeId, Tree};

const ENTRY: usize = 12;

/// A directory's entries with `.` and `..`, in order.
#[derive(Debug)]
pub(super) struct Entries<'t> {
    sorted: Vec<(&'t [u8], InodeId)>,
}

impl<'t> Entries<'t> {
    pub(super) fn new(directory: &'t Directory, own: InodeId, parent: InodeId) -> Self {
        let mut sorted = Vec::with_capacity(directory.entries.len() + 2);
        sorted.extend(directory.entries.iter().map(|(name, id)| (&**name, *id)));
        for (name, id) in [(&b"."[..], own), (b"..", parent)] {
            let place = sorted.partition_point(|(other, _)| *other < name);
            sorted.insert(place, (name, id));
        }
        Self { sorted }
    }

    /// The entries of each block and the bytes that it uses.
    fn blocks(&self) -> impl Iterator<Item = (Range<usize>, usize)> {
        let mut start = 0;
        std::iter::from_fn(move || {
            let mut used = 0;
            let rest = self.sorted.get(start..).filter(|rest| !rest.is_empty())?;
            let fits = rest.iter().take_while(|(name, _)| {
                used += ENTRY + name.len();
                used <= BLOCK as usize
            });
            let end = start + fits.count();
            let used = self.sorted[start..end].iter().map(|(name, _)| ENTRY + name.len()).sum();
            Some((std::mem::replace(&mut start, end)..end, used))
        })
    }

    /// Bytes of the directory: whole blocks, and what the last one uses.
    pub(super) fn size(&self) -> u64 {
        let (count, last) = self.blocks().fold((0, 0), |(count, _), (_, used)| (count + 1, used as u64));
        (count - 1) * BLOCK + last
    }

    /// Appends the directory's data; inode numbers on disk come from `nid`.
    pub(super) fn put(&self, bytes: &mut Vec<u8>, tree: &Tree, nid: impl Fn(InodeId) -> u64) {
        for (range, _) in self.blocks() {
            bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
            let entries = &self.sorted[range];
            let mut name_offset = entries.len() * ENTRY;
            for (name, id) in entries {
                let kind = tree.get(*id).map_or(0, |inode| file_type(&inode.kind).0);
                bytes.extend_from_slice(&nid(*id).to_le_bytes());
                bytes.extend_from_slice(&(name_offset as u16).to_le_bytes());
                bytes.extend_from_slice(&[kind, 0]);
                name_offset += name.len();
            }
            entries.iter().for_each(|(name, _)| bytes.extend_from_slice(name));
        }
    }
}
