//! Any bytes as the payload of a tree file.

#![no_main]

use bulkhead_fuzz::image::layer::Tree;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|payload: &[u8]| {
    let mut bytes = b"BHTREE\x01\x00".to_vec();
    bytes.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    bytes.extend_from_slice(payload);
    if let Ok(tree) = Tree::from_bytes(&bytes) {
        bulkhead_fuzz::use_tree(&tree, 1 << 30);
    }
});
