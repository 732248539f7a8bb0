//! What a start finds: half-made files, files that nothing names, images whose files are gone.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::index::{Index, LayerRecord};
use super::temp::remove;
use super::{METADATA, Store};
use crate::image::digest::Digest;
use crate::image::error::StoreError;
use crate::image::image::Image;

impl Store {
    /// Makes files and index agree. Nobody else may use the store yet.
    pub(super) fn reconcile(
        root: &Path,
        index: &mut Index,
        layers: &mut HashMap<Digest, LayerRecord>,
    ) -> Result<(), StoreError> {
        let damaged: Vec<_> =
            index.images().filter_map(|image| Some((image.id, missing(root, image, layers)?))).collect();
        for (id, reason) in &damaged {
            tracing::error!(image = %id, reason, "image is damaged and leaves the store: pull it again");
            index.remove(id);
        }
        layers.retain(|diff_id, _| index.uses_layer(diff_id));
        if !damaged.is_empty() {
            index.write(root, layers)?;
        }
        let blobs = layers.keys().flat_map(|d| [super::blob(root, d), super::tree(root, d)]);
        sweep(&super::blobs(root), &blobs.collect())?;
        sweep(&super::images(root), &index.images().map(|image| super::image(root, &image.id)).collect())
    }
}

/// Removes all entries of a directory but those to keep.
pub(super) fn sweep(directory: &Path, keep: &HashSet<PathBuf>) -> Result<(), StoreError> {
    let failed = StoreError::io("reading", directory);
    for entry in std::fs::read_dir(directory).map_err(&failed)? {
        let path = entry.map_err(&failed)?.path();
        if !keep.contains(&path) {
            tracing::info!(path = %path.display(), "removing a file that no image needs");
            remove(&path);
        }
    }
    Ok(())
}

/// What an image lacks, if anything.
fn missing(root: &Path, image: &Image, layers: &HashMap<Digest, LayerRecord>) -> Option<String> {
    let mut files = vec![(super::image(root, &image.id).join(METADATA), image.metadata_len)];
    for layer in &image.layers {
        let Some(record) = layers.get(&layer.diff_id) else {
            return Some(format!("the index lacks layer {}", layer.diff_id));
        };
        files.push((super::blob(root, &layer.diff_id), record.blob_len));
        files.push((super::tree(root, &layer.diff_id), record.tree_len));
    }
    files.into_iter().find_map(|(path, expected)| match std::fs::metadata(&path) {
        Ok(found) if found.len() == expected => None,
        Ok(found) => Some(format!("{} has {} bytes instead of {expected}", path.display(), found.len())),
        Err(error) => Some(format!("{}: {error}", path.display())),
    })
}
