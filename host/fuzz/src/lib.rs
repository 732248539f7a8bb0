//! The daemon's parsers of what images and vendors of devices bring, without the daemon: so a fuzzer is built in a minute, not in twenty.

#![allow(dead_code)]

#[path = "../../src/container/cdi/spec.rs"]
mod cdi_specification;
pub mod image;

use image::digest::Digest;
use image::erofs::{BlobRef, merge, write};
use image::layer::Tree;

/// Whatever became a tree must survive its file, and be merged and written or refused.
pub fn use_tree(tree: &Tree, blob_len: u64) {
    assert_eq!(Tree::from_bytes(&tree.to_bytes()).as_ref(), Ok(tree));
    if let Ok(merged) = merge(&[tree, tree]) {
        let blob = BlobRef { digest: Digest::of(b""), len: blob_len };
        let mut out = tempfile::tempfile().expect("a temporary file");
        let _ = write(&merged, &[blob, blob], &mut out);
    }
}

/// A file that describes devices must be read or refused, whatever its name ends with.
pub fn read_cdi_specification(text: &str) {
    for is_json in [true, false] {
        if let Ok(specification) = cdi_specification::Specification::parse(text, is_json) {
            assert!(!specification.devices.is_empty());
        }
    }
}
