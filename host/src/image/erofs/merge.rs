//! Laying layers over each other, as the image specification's "Applying Changesets" says.

use crate::image::layer::{Directory, Inode, InodeId, Kind, PathError, Tree, TreeBuilder};

/// Why layers do not fit on each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// A hard link to something that no layer below has.
    #[error("layer {layer} has a hard link to {target:?}, which neither it nor a layer below has: {reason}")]
    LinkTarget {
        /// Position, lowest first, from 0.
        layer: usize,
        /// Escaped.
        target: String,
        /// What is in the way.
        reason: PathError,
    },
    /// A hard link to a directory of a layer below.
    #[error("layer {layer} has a hard link to {target:?}, a directory of a layer below")]
    LinkToDirectory {
        /// Position, lowest first, from 0.
        layer: usize,
        /// Escaped.
        target: String,
    },
    /// An entry whose directory is something else below.
    #[error("an entry of layer {layer} cannot be placed: {reason}")]
    Path {
        /// Position, lowest first, from 0.
        layer: usize,
        /// What is in the way.
        reason: PathError,
    },
    /// More layers than device numbers.
    #[error("an image of {count} layers cannot be merged, 65534 is the most")]
    Layers {
        /// How many there are.
        count: usize,
    },
    /// The tree's numbers point outside it.
    #[error("the tree of layer {layer} is inconsistent")]
    Inconsistent {
        /// Position, lowest first, from 0.
        layer: usize,
    },
}

/// The tree that `layers`, lowest first, make together. Its files' blob numbers are their layers' positions.
///
/// Whiteouts and opaque directories take away what layers below have, never what their own layer has, wherever in it they
/// stand. A directory of an upper layer replaces the attributes of one below, anything else replaces whatever was there.
/// A directory that an upper layer only implies goes where a symbolic link of the same name below leads.
///
/// # Errors
/// See [`MergeError`].
pub fn merge(layers: &[&Tree]) -> Result<Tree, MergeError> {
    // Links that lead to what is not there can make more directories than the layers have inodes, but not many more.
    let inodes: u64 = layers.iter().map(|layer| layer.inodes().len() as u64).sum();
    let mut builder = TreeBuilder::new(2 * inodes + 10_000, u64::MAX);
    for (position, layer) in layers.iter().enumerate() {
        let blob = u16::try_from(position).ok().filter(|blob| *blob < u16::MAX - 1);
        let blob = blob.ok_or(MergeError::Layers { count: layers.len() })?;
        let overlay =
            Overlay { builder: &mut builder, layer, position, blob, new_ids: Vec::new(), through: Vec::new() };
        overlay.apply()?;
    }
    Ok(builder.finish())
}

/// One layer going onto those below.
struct Overlay<'a> {
    builder: &'a mut TreeBuilder,
    layer: &'a Tree,
    position: usize,
    blob: u16,
    /// By the layer's inode number: the merged tree's.
    new_ids: Vec<Option<InodeId>>,
    /// Implied directories over symbolic links: the path and the layer's directory.
    through: Vec<(InodeId, Box<[u8]>, InodeId)>,
}

impl Overlay<'_> {
    fn apply(mut self) -> Result<(), MergeError> {
        self.new_ids = vec![None; self.layer.inodes().len()];
        self.resolve_links()?;
        self.descend(Tree::ROOT, Tree::ROOT)?;
        while let Some((directory, name, from)) = self.through.pop() {
            let onto = self.builder.directory_in(directory, &name).map_err(|reason| self.path_error(reason))?;
            self.descend(onto, from)?;
        }
        Ok(())
    }

    fn path_error(&self, reason: PathError) -> MergeError {
        MergeError::Path { layer: self.position, reason }
    }

    fn inconsistent(&self) -> MergeError {
        MergeError::Inconsistent { layer: self.position }
    }

    /// Links to files below mean what is there before this layer changes anything.
    fn resolve_links(&mut self) -> Result<(), MergeError> {
        for (id, inode) in self.layer.inodes().iter().enumerate() {
            let Kind::LowerLink(target) = &inode.kind else { continue };
            let names: Vec<&[u8]> = target.split(|byte| *byte == b'/').collect();
            let shown = || crate::image::layer::printable(target);
            let missing = |reason| MergeError::LinkTarget { layer: self.position, target: shown(), reason };
            let found = self.builder.find(&names).map_err(missing)?;
            if self.builder.tree().get(found).is_some_and(|inode| inode.directory().is_some()) {
                return Err(MergeError::LinkToDirectory { layer: self.position, target: shown() });
            }
            self.new_ids[id] = Some(found);
        }
        Ok(())
    }

    /// Lays the layer's directory `from` and everything below over `onto`.
    fn descend(&mut self, onto: InodeId, from: InodeId) -> Result<(), MergeError> {
        let mut todo = vec![(onto, from)];
        while let Some((onto, from)) = todo.pop() {
            let layer = self.layer;
            let inode = layer.get(from).ok_or_else(|| self.inconsistent())?;
            let above = inode.directory().ok_or_else(|| self.inconsistent())?;
            self.cover(onto, inode, above)?;
            for (name, id) in &above.entries {
                let child = layer.get(*id).ok_or_else(|| self.inconsistent())?;
                match child.directory() {
                    Some(directory) => {
                        if let Some(below) = self.directory_below(onto, name, directory, *id)? {
                            todo.push((below, *id));
                        }
                    }
                    None => {
                        let new = self.copy(child, *id)?;
                        self.builder.link(onto, name, new).map_err(|reason| self.path_error(reason))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Gives the directory the layer's attributes and takes away what the layer hides.
    fn cover(&mut self, onto: InodeId, inode: &Inode, above: &Directory) -> Result<(), MergeError> {
        let inconsistent = self.inconsistent();
        let below = self.builder.inode_mut(onto).ok_or(inconsistent)?;
        if !above.implied {
            (below.mode, below.uid, below.gid, below.mtime) = (inode.mode, inode.uid, inode.gid, inode.mtime);
            below.xattrs.clone_from(&inode.xattrs);
        }
        if let Some(below) = below.directory_mut() {
            below.implied &= above.implied;
            if above.opaque {
                below.entries.clear();
            }
            for name in &above.whiteouts {
                below.entries.remove(name);
            }
        }
        Ok(())
    }

    /// The directory that the layer's directory `id` goes onto; none if that is to be found later.
    fn directory_below(
        &mut self,
        onto: InodeId,
        name: &[u8],
        above: &Directory,
        id: InodeId,
    ) -> Result<Option<InodeId>, MergeError> {
        let present = self.builder.child(onto, name);
        match present.and_then(|present| Some((present, &self.builder.tree().get(present)?.kind))) {
            Some((present, Kind::Directory(_))) => return Ok(Some(present)),
            Some((_, Kind::Symlink(_))) if above.implied => {
                self.through.push((onto, name.into(), id));
                return Ok(None);
            }
            Some(_) if above.implied => {
                let name = crate::image::layer::printable(name);
                return Err(self.path_error(PathError::NotADirectory { name }));
            }
            _ => {}
        }
        let new = self.builder.add(Inode::implied_directory()).map_err(|reason| self.path_error(reason))?;
        self.builder.link(onto, name, new).map_err(|reason| self.path_error(reason))?;
        Ok(Some(new))
    }

    /// The merged tree's inode for one of the layer's that is no directory: the same for each of its names.
    fn copy(&mut self, inode: &Inode, id: InodeId) -> Result<InodeId, MergeError> {
        if let Some(Some(new)) = self.new_ids.get(id as usize) {
            return Ok(*new);
        }
        let mut inode = inode.clone();
        if let Kind::File(file) = &mut inode.kind {
            file.blob = self.blob;
        }
        let new = self.builder.add(inode).map_err(|reason| self.path_error(reason))?;
        if let Some(slot) = self.new_ids.get_mut(id as usize) {
            *slot = Some(new);
        }
        Ok(new)
    }
}
