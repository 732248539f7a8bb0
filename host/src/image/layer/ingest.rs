//! The pass over a layer.

use std::cell::Cell;
use std::io::Read;

use super::blob::BlobWriter;
use super::builder::TreeBuilder;
use super::content;
use super::error::{EntryError, LayerError, printable};
use super::records::{Record, Records, Type, padding};
use super::sparse::Failure;
use super::stream::Stream;
use super::tree::FileData;
use super::{Compression, Layer, LayerLimits, apply};

/// Reads a layer to its end: contents go to `blob`, the rest into the tree. Blocks; run it on a thread that may.
///
/// `input` is read to its end even behind the archive's end mark, so that whoever hashes it on the way sees all of it.
///
/// # Errors
/// See [`LayerError`]. What the blob then holds is of no use.
pub fn ingest(
    input: impl Read,
    compression: Compression,
    blob: &mut BlobWriter,
    limits: &LayerLimits,
) -> Result<Layer, LayerError> {
    let input_failed = Cell::new(false);
    let mut stream = Stream::new(input, compression, &input_failed, limits)?;
    let mut builder = TreeBuilder::new(limits.entries, limits.metadata_bytes);
    let mut entries = 0;
    while let Some(mut record) = (Records { stream: &mut stream }).next()? {
        entries += 1;
        if entries > limits.entries {
            return Err(LayerError::TooManyEntries { limit: limits.entries });
        }
        let (offset, name) = (record.offset, shown(&record));
        take(&mut record, &mut stream, blob, &mut builder, limits).map_err(|failure| match failure {
            Failure::Layer(LayerError::Truncated { offset, inside }) => {
                LayerError::Truncated { offset, inside: format!("{inside} of {:?}", printable(&name)) }
            }
            Failure::Layer(error) => error,
            Failure::Entry(reason) => LayerError::Entry { name: printable(&name), offset, reason },
        })?;
    }
    let (diff_id, uncompressed_len) = stream.finish()?;
    let blob_len = blob.complete().map_err(LayerError::Blob)?;
    Ok(Layer { tree: builder.finish(), diff_id, uncompressed_len, blob_len })
}

/// As much of the name as an error would show.
fn shown(record: &Record) -> Vec<u8> {
    record.path.iter().take(256).copied().collect()
}

fn take(
    record: &mut Record,
    stream: &mut Stream<'_>,
    blob: &mut BlobWriter,
    builder: &mut TreeBuilder,
    limits: &LayerLimits,
) -> Result<(), Failure> {
    let stored = record.stored;
    let contents = if apply::wants_content(record)? {
        content::store(record, stream, blob, limits.blob_bytes)?
    } else if record.kind == Type::File {
        stream.skip(stored, "an entry's contents")?;
        FileData::default()
    } else {
        FileData::default()
    };
    stream.skip(padding(stored), "the padding")?;
    Ok(apply::apply(builder, record, contents)?)
}

impl From<super::PathError> for Failure {
    fn from(error: super::PathError) -> Self {
        Self::Entry(EntryError::Path(error))
    }
}
