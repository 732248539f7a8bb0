//! Any bytes as a layer. The first says how it is packed; checksums of headers are made right, so that more is reached.

#![no_main]

use bulkhead_fuzz::image::layer::{BlobWriter, Compression, LayerLimits, ingest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((first, rest)) = input.split_first() else { return };
    let mut bytes = rest.to_vec();
    let compression = match first % 8 {
        0 => Compression::Gzip,
        1 => Compression::Zstd,
        2 => Compression::None,
        _ => {
            for block in bytes.as_chunks_mut::<512>().0 {
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
                block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            }
            Compression::None
        }
    };
    let limits =
        LayerLimits { entries: 10_000, uncompressed_bytes: 16 << 20, blob_bytes: 1 << 40, metadata_bytes: 1 << 20 };
    let mut blob = BlobWriter::new(tempfile::tempfile().expect("a temporary file"));
    if let Ok(layer) = ingest(&bytes[..], compression, &mut blob, &limits) {
        bulkhead_fuzz::use_tree(&layer.tree, layer.blob_len);
    }
});
