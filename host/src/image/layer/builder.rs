//! Building a tree: finding directories by path, adding and replacing entries, with limits.

use super::error::printable;
use super::name::NAME_LEN;
use super::tree::{Inode, InodeId, Kind, Name, Tree};

/// What a path may lead through at most.
const MAX_SYMLINKS: usize = 40;
/// Directories below each other. Paths are shorter than that, but symbolic links can put one below the other.
const MAX_DEPTH: usize = 4096;
/// Directories that an entry's path may lead through on average.
const STEPS_PER_INODE: u64 = 64;
/// On top, so that small trees may be as deep as they like.
const FREE_STEPS: u64 = 1 << 20;

/// Why a path leads nowhere, or nothing more fits into the tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Something else is in a directory's place.
    #[error("its path leads through {name:?}, which is no directory")]
    NotADirectory {
        /// Escaped.
        name: String,
    },
    /// A part is missing.
    #[error("{name:?} does not exist")]
    NotFound {
        /// Escaped.
        name: String,
    },
    /// Links that lead to each other.
    #[error("its path leads through more than {MAX_SYMLINKS} symbolic links")]
    Symlinks,
    /// By way of symbolic links.
    #[error("its path leads more than {MAX_DEPTH} directories deep")]
    Depth,
    /// A link's target with a name that cannot be.
    #[error("its path leads through a name of {len} bytes")]
    NameLen {
        /// Bytes.
        len: usize,
    },
    /// Paths through links and deep directories, again and again.
    #[error("with it paths lead through more than the {limit} directories allowed, counted each time")]
    Steps {
        /// A multiple of the inodes allowed.
        limit: u64,
    },
    /// The tree's inodes.
    #[error("with it there are more than the {limit} inodes allowed")]
    Inodes {
        /// [`super::LayerLimits::entries`].
        limit: u64,
    },
    /// Names, link targets, attributes and extents.
    #[error("with it names and attributes take more than the {limit} bytes allowed")]
    Metadata {
        /// [`super::LayerLimits::metadata_bytes`].
        limit: u64,
    },
}

/// What to do about missing directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Make them, as nobody described.
    Make,
    /// Fail.
    Fail,
}

/// A tree in the making.
#[derive(Debug)]
pub struct TreeBuilder {
    tree: Tree,
    /// By inode number, for directories: the one that they are in.
    parents: Vec<InodeId>,
    max_inodes: u64,
    max_bytes: u64,
    bytes: u64,
    max_steps: u64,
    steps: u64,
}

impl TreeBuilder {
    /// An empty root with mode 0755 that takes this many inodes and bytes of names and attributes.
    #[must_use]
    pub fn new(max_inodes: u64, max_bytes: u64) -> Self {
        Self {
            tree: Tree::default(),
            parents: vec![Tree::ROOT],
            max_inodes: max_inodes.min(u64::from(u32::MAX - 1)),
            max_bytes,
            bytes: 0,
            max_steps: max_inodes.saturating_mul(STEPS_PER_INODE).saturating_add(FREE_STEPS),
            steps: 0,
        }
    }

    /// The tree, without inodes that lost their last name.
    #[must_use]
    pub fn finish(self) -> Tree {
        self.tree.compacted()
    }

    pub(crate) fn tree(&self) -> &Tree {
        &self.tree
    }

    pub(crate) fn inode_mut(&mut self, id: InodeId) -> Option<&mut Inode> {
        self.tree.inodes.get_mut(id as usize)
    }

    /// What `name` is in `directory`.
    pub(crate) fn child(&self, directory: InodeId, name: &[u8]) -> Option<InodeId> {
        self.tree.get(directory)?.directory()?.entries.get(name).copied()
    }

    /// Counts bytes that the tree is about to hold.
    pub(crate) fn charge(&mut self, bytes: usize) -> Result<(), PathError> {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        if self.bytes > self.max_bytes { Err(PathError::Metadata { limit: self.max_bytes }) } else { Ok(()) }
    }

    /// Counts directories that a path leads through: a few bytes of a layer can ask for a long way.
    fn step(&mut self, count: usize) -> Result<(), PathError> {
        self.steps = self.steps.saturating_add(count as u64);
        if self.steps > self.max_steps { Err(PathError::Steps { limit: self.max_steps }) } else { Ok(()) }
    }

    /// Adds an inode without a name.
    pub(crate) fn add(&mut self, inode: Inode) -> Result<InodeId, PathError> {
        let id = self.tree.inodes.len() as u64;
        if id >= self.max_inodes {
            return Err(PathError::Inodes { limit: self.max_inodes });
        }
        self.tree.inodes.push(inode);
        self.parents.push(Tree::ROOT);
        Ok(id as InodeId)
    }

    /// Gives `id` a name in `directory`; a former bearer loses it.
    pub(crate) fn link(&mut self, directory: InodeId, name: &[u8], id: InodeId) -> Result<(), PathError> {
        self.charge(name.len())?;
        let entries = self.inode_mut(directory).and_then(Inode::directory_mut).ok_or_else(|| not_a_directory(name))?;
        entries.entries.insert(Name::from(name), id);
        if let Some(parent) = self.parents.get_mut(id as usize) {
            *parent = directory;
        }
        Ok(())
    }

    /// The directory at `path`, symbolic links on the way followed without ever leaving the root.
    pub(crate) fn directory<'p>(
        &mut self,
        path: impl DoubleEndedIterator<Item = &'p [u8]>,
        missing: Missing,
    ) -> Result<InodeId, PathError> {
        self.walk(vec![Tree::ROOT], path.rev().map(Name::from).collect(), missing)
    }

    /// Where `name` in `directory` leads, through symbolic links; made if it is missing.
    pub(crate) fn directory_in(&mut self, directory: InodeId, name: &[u8]) -> Result<InodeId, PathError> {
        let mut trail = vec![directory];
        while let Some(parent) =
            trail.last().filter(|id| **id != Tree::ROOT).and_then(|id| self.parents.get(*id as usize))
        {
            trail.push(*parent);
        }
        trail.reverse();
        self.step(trail.len())?;
        self.walk(trail, vec![name.into()], Missing::Make)
    }

    /// What is at a path, symbolic links in its last part not followed.
    pub(crate) fn find(&mut self, path: &[&[u8]]) -> Result<InodeId, PathError> {
        let Some((last, parents)) = path.split_last() else { return Ok(Tree::ROOT) };
        let directory = self.directory(parents.iter().copied(), Missing::Fail)?;
        self.child(directory, last).ok_or_else(|| PathError::NotFound { name: printable(last) })
    }

    /// Goes along `ahead` (next name last) from the end of `trail`, which begins at the root.
    fn walk(&mut self, mut trail: Vec<InodeId>, mut ahead: Vec<Name>, missing: Missing) -> Result<InodeId, PathError> {
        let mut symlinks = 0;
        while let Some(name) = ahead.pop() {
            self.step(1)?;
            let here = trail.last().copied().unwrap_or(Tree::ROOT);
            match &*name {
                b"" | b"." => continue,
                b".." => {
                    if trail.len() > 1 {
                        trail.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let Some(id) = self.child(here, &name) else {
                trail.push(self.make(here, &name, missing)?);
                if trail.len() > MAX_DEPTH {
                    return Err(PathError::Depth);
                }
                continue;
            };
            match self.tree.get(id).map(|inode| &inode.kind) {
                Some(Kind::Directory(_)) => trail.push(id),
                Some(Kind::Symlink(target)) => {
                    symlinks += 1;
                    if symlinks > MAX_SYMLINKS {
                        return Err(PathError::Symlinks);
                    }
                    if target.starts_with(b"/") {
                        trail.truncate(1);
                    }
                    ahead.extend(target.split(|byte| *byte == b'/').rev().map(Name::from));
                }
                _ => return Err(not_a_directory(&name)),
            }
        }
        Ok(trail.last().copied().unwrap_or(Tree::ROOT))
    }

    fn make(&mut self, directory: InodeId, name: &[u8], missing: Missing) -> Result<InodeId, PathError> {
        if missing == Missing::Fail {
            return Err(PathError::NotFound { name: printable(name) });
        }
        if name.len() > NAME_LEN {
            return Err(PathError::NameLen { len: name.len() });
        }
        let id = self.add(Inode::implied_directory())?;
        self.link(directory, name, id)?;
        Ok(id)
    }
}

fn not_a_directory(name: &[u8]) -> PathError {
    PathError::NotADirectory { name: printable(name) }
}
