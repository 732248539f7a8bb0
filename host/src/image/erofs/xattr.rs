//! Extended attributes behind an inode: `struct erofs_xattr_ibody_header`, then `struct erofs_xattr_entry` each.

use crate::image::layer::Xattr;

const HEADER: usize = 12;
const ENTRY: usize = 4;

/// `EROFS_XATTR_INDEX_*`: prefixes that are numbers on disk.
const PREFIXES: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];

fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|(index, prefix)| Some((*index, name.strip_prefix(*prefix)?)))
}

fn entry_size(name: &[u8], value: &[u8]) -> usize {
    (ENTRY + name.len() + value.len()).next_multiple_of(4)
}

/// Bytes that they take behind the inode; none if there are too many to count in 16 bits.
pub(super) fn size(xattrs: &[Xattr]) -> Option<u64> {
    let entries: usize = xattrs.iter().filter_map(|x| split(&x.name).map(|(_, name)| entry_size(name, &x.value))).sum();
    match entries {
        0 => Some(0),
        _ => u16::try_from(entries / 4 + 1).ok().map(|_| (HEADER + entries) as u64),
    }
}

/// `i_xattr_icount` for a size that [`size`] returned.
pub(super) fn count(size: u64) -> u16 {
    if size == 0 { 0 } else { ((size as usize - HEADER) / 4 + 1) as u16 }
}

/// Appends what [`size`] measured.
pub(super) fn put(bytes: &mut Vec<u8>, xattrs: &[Xattr]) {
    let mut known = xattrs.iter().filter_map(|x| Some((split(&x.name)?, &x.value))).peekable();
    if known.peek().is_none() {
        return;
    }
    bytes.extend_from_slice(&[0; HEADER]);
    for ((index, name), value) in known {
        let end = bytes.len() + entry_size(name, value);
        bytes.extend_from_slice(&[name.len() as u8, index]);
        bytes.extend_from_slice(&(value.len() as u16).to_le_bytes());
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(value);
        bytes.resize(end, 0);
    }
}
