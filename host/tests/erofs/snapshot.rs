//! What the kernel says about a tree.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use sha2::{Digest, Sha256};

/// Larger files are compared by size and samples.
const HASHED: u64 = 64 << 20;

/// All that two trees are compared by.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    kind: char,
    mode: u32,
    owner: (u32, u32),
    pub mtime: (i64, i64),
    links: u64,
    device: u64,
    pub xattrs: BTreeMap<String, Vec<u8>>,
    content: String,
    /// The first of the names that this inode has.
    same_as: String,
}

pub type Snapshot = BTreeMap<String, Seen>;

/// Everything at and below `root`, by escaped path.
pub fn snapshot(root: &Path) -> Snapshot {
    let mut seen = Snapshot::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(path) = todo.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().escape_ascii().to_string();
        let mut subdirectories = 0;
        if metadata.is_dir() {
            for child in fs::read_dir(&path).unwrap() {
                let child = child.unwrap();
                subdirectories += u64::from(child.file_type().unwrap().is_dir());
                todo.push(child.path());
            }
        }
        // Directory link counts are a matter of the file system, so they are checked, not compared.
        let links = if metadata.is_dir() { metadata.nlink() - subdirectories } else { metadata.nlink() };
        seen.insert(name, one(&path, &metadata, links));
    }
    name_links(&mut seen);
    seen
}

fn name_links(seen: &mut Snapshot) {
    let mut first: BTreeMap<u64, String> = BTreeMap::new();
    for (name, seen) in seen {
        let number: u64 = seen.same_as.parse().unwrap();
        seen.same_as = first.entry(number).or_insert_with(|| name.clone()).clone();
    }
}

fn one(path: &Path, metadata: &Metadata, links: u64) -> Seen {
    let kind = metadata.file_type();
    let (kind, content) = if kind.is_dir() {
        ('d', String::new())
    } else if kind.is_symlink() {
        ('l', fs::read_link(path).unwrap().as_os_str().as_bytes().escape_ascii().to_string())
    } else if kind.is_file() {
        ('f', format!("{} bytes, {}", metadata.len(), content(path, metadata.len())))
    } else if kind.is_char_device() {
        ('c', String::new())
    } else if kind.is_block_device() {
        ('b', String::new())
    } else {
        ('p', String::new())
    };
    let device = if matches!(kind, 'c' | 'b') { metadata.rdev() } else { 0 };
    let names = xattr::list(path).unwrap().map(|name| {
        let value = xattr::get(path, &name).unwrap().unwrap_or_default();
        (OsStr::as_bytes(&name).escape_ascii().to_string(), value)
    });
    Seen {
        kind,
        mode: metadata.mode() & 0o7777,
        owner: (metadata.uid(), metadata.gid()),
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        links,
        device,
        xattrs: names.collect(),
        content,
        same_as: metadata.ino().to_string(),
    }
}

fn content(path: &Path, len: u64) -> String {
    let mut hasher = Sha256::new();
    let mut file = File::open(path).unwrap();
    let mut buffer = vec![0; 1 << 20];
    if len <= HASHED {
        loop {
            let count = file.read(&mut buffer).unwrap();
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
        }
    } else {
        for i in 0..64 {
            let at = (len - buffer.len() as u64) / 63 * i;
            file.read_exact_at(&mut buffer, at).unwrap();
            hasher.update(&buffer);
        }
        let end = len - buffer.len() as u64;
        file.read_exact_at(&mut buffer, end).unwrap();
        hasher.update(&buffer);
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Panics with the first differences. Times of `made` (directories without an entry) are left out.
pub fn assert_same(ours: &mut Snapshot, theirs: &mut Snapshot, made: &[&str], who: &str) {
    for snapshot in [&mut *ours, &mut *theirs] {
        for name in made {
            snapshot.get_mut(*name).unwrap_or_else(|| panic!("{who}: no {name:?}")).mtime = (0, 0);
        }
    }
    let mut differences = Vec::new();
    for (name, seen) in &*ours {
        match theirs.get(name) {
            None => differences.push(format!("only in ours: {name}: {seen:?}")),
            Some(other) if other != seen => {
                differences.push(format!("{name}\n  ours:   {seen:?}\n  theirs: {other:?}"))
            }
            Some(_) => {}
        }
    }
    differences
        .extend(theirs.keys().filter(|name| !ours.contains_key(*name)).map(|name| format!("only in theirs: {name}")));
    let shown: Vec<_> = differences.iter().take(12).map(|text| text.chars().take(2000).collect::<String>()).collect();
    assert!(differences.is_empty(), "{} differences from {who}:\n{}", differences.len(), shown.join("\n"));
    assert!(ours.len() > 1, "nothing was compared with {who}");
}
