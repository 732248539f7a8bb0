//! The blocking half of a layer: tar side, blob and tree in `tmp/`, then their place in the store.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use super::document::LayerSource;
use crate::image::config::ImageLimits;
use crate::image::digest::Digest;
use crate::image::error::{StoreError, is_disk_full};
use crate::image::layer::{self, BlobWriter, Compression, LayerLimits};
use crate::image::store::{LayerRecord, Store, TempPath};

/// A finished layer that is not in its place yet.
pub(super) struct Ingested {
    pub record: LayerRecord,
    pub blob: TempPath,
    pub tree: TempPath,
}

/// Why the tar side gave up.
#[derive(Debug)]
pub(super) enum IngestError {
    /// The stream is no layer.
    Layer(String),
    /// The stream is another layer.
    DiffId(Digest),
    /// Files.
    Store(StoreError),
}

/// How a media type says that a layer is packed.
pub(super) fn compression(media_type: &str) -> Result<Compression, String> {
    Ok(match media_type {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar"
        | "application/vnd.docker.image.rootfs.diff.tar" => Compression::None,
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip"
        | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Compression::Gzip,
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Compression::Zstd,
        other => {
            return Err(format!(
                "its media type {:?} is none of a layer's",
                other.chars().take(100).collect::<String>()
            ));
        }
    })
}

/// Reads a compressed layer to its end. What was written is gone again unless the result is placed.
pub(super) fn ingest(
    store: &Arc<Store>,
    source: &LayerSource,
    compression: Compression,
    limits: &ImageLimits,
    input: impl Read,
) -> Result<Ingested, IngestError> {
    let (blob, tree) = (TempPath::new(store), TempPath::new(store));
    let file = File::options().create_new(true).read(true).write(true).open(blob.path());
    let mut writer = BlobWriter::new(file.map_err(failed("creating", &blob))?);
    let limits =
        LayerLimits { entries: limits.layer_entries, uncompressed_bytes: limits.layer_bytes, ..LayerLimits::default() };
    let layer = layer::ingest(input, compression, &mut writer, &limits).map_err(|error| sort(&blob, error))?;
    let file = writer.finish().map_err(failed("writing", &blob))?;
    if layer.diff_id != source.diff_id {
        return Err(IngestError::DiffId(layer.diff_id));
    }
    let encoded = layer.tree.to_bytes();
    let mut out = File::create_new(tree.path()).map_err(failed("creating", &tree))?;
    out.write_all(&encoded).map_err(failed("writing", &tree))?;
    let blocks = |file: &File| file.metadata().map(|m| m.blocks() * 512);
    let disk_bytes = blocks(&file).and_then(|blob| Ok(blob + blocks(&out)?)).map_err(failed("reading", &blob))?;
    let record =
        LayerRecord { diff_id: layer.diff_id, blob_len: layer.blob_len, tree_len: encoded.len() as u64, disk_bytes };
    Ok(Ingested { record, blob, tree })
}

fn failed(doing: &'static str, path: &TempPath) -> impl Fn(io::Error) -> IngestError {
    let sort = StoreError::io(doing, path.path());
    move |error| IngestError::Store(sort(error))
}

/// A full disk is the store's trouble, not the layer's.
fn sort(blob: &TempPath, error: layer::LayerError) -> IngestError {
    if is_disk_full(&error) {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        return IngestError::Store(StoreError::io("writing", blob.path())(full));
    }
    IngestError::Layer(crate::error_text(&error))
}
