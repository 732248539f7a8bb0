//! Tar streams, written by hand so that they can hold anything.

use tar::{EntryType, Header};

/// One entry; a struct update of a kind's constructor changes what a test cares about.
#[derive(Clone)]
pub struct Entry {
    pub path: Vec<u8>,
    pub kind: EntryType,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: (i64, u32),
    pub link: Vec<u8>,
    pub device: (u32, u32),
    pub xattrs: Vec<(&'static str, Vec<u8>)>,
    pub data: Vec<u8>,
}

fn entry(path: impl AsRef<[u8]>, kind: EntryType, mode: u32) -> Entry {
    Entry {
        path: path.as_ref().to_vec(),
        kind,
        mode,
        uid: 0,
        gid: 0,
        mtime: (1_700_000_000, 123_456_789),
        link: Vec::new(),
        device: (0, 0),
        xattrs: Vec::new(),
        data: Vec::new(),
    }
}

pub fn file(path: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Entry {
    Entry { data: data.as_ref().to_vec(), ..entry(path, EntryType::Regular, 0o644) }
}

pub fn dir(path: impl AsRef<[u8]>) -> Entry {
    entry(path, EntryType::Directory, 0o755)
}

pub fn symlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
    Entry { link: target.as_ref().to_vec(), ..entry(path, EntryType::Symlink, 0o777) }
}

pub fn hardlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
    Entry { link: target.as_ref().to_vec(), ..entry(path, EntryType::Link, 0o644) }
}

pub fn device(path: impl AsRef<[u8]>, kind: EntryType, device: (u32, u32)) -> Entry {
    Entry { device, ..entry(path, kind, 0o600) }
}

/// A whole layer.
pub fn layer(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::new();
    entries.iter().for_each(|entry| put(&mut bytes, entry));
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn put(bytes: &mut Vec<u8>, entry: &Entry) {
    let mut records = Vec::new();
    record(&mut records, "mtime", time(entry.mtime).as_bytes());
    if entry.path.len() > 100 {
        record(&mut records, "path", &entry.path);
    }
    if entry.link.len() > 100 {
        record(&mut records, "linkpath", &entry.link);
    }
    for (key, id) in [("uid", entry.uid), ("gid", entry.gid)] {
        if id > 0o7_777_777 {
            record(&mut records, key, id.to_string().as_bytes());
        }
    }
    for (name, value) in &entry.xattrs {
        record(&mut records, &format!("SCHILY.xattr.{name}"), value);
    }
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::XHeader);
    header.set_mode(0o644);
    member(bytes, header, b"PaxHeaders/x", &records);

    let mut header = Header::new_ustar();
    header.set_entry_type(entry.kind);
    header.set_mode(entry.mode);
    header.set_uid(entry.uid.min(0o7_777_777));
    header.set_gid(entry.gid.min(0o7_777_777));
    header.set_mtime(entry.mtime.0.max(0) as u64);
    let link = &entry.link[..entry.link.len().min(100)];
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
    header.set_device_major(entry.device.0).expect("a ustar header");
    header.set_device_minor(entry.device.1).expect("a ustar header");
    member(bytes, header, &entry.path[..entry.path.len().min(100)], &entry.data);
}

/// A header with this name, its checksum made right, and padded contents.
pub fn member(bytes: &mut Vec<u8>, mut header: Header, name: &[u8], data: &[u8]) {
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_size(data.len() as u64);
    header.set_cksum();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
}

/// A record of an extended header, whose length counts its own digits.
pub fn record(records: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let len = (rest..).find(|len| rest + len.to_string().len() == *len).expect("a length that counts itself");
    records.extend_from_slice(format!("{len} {key}=").as_bytes());
    records.extend_from_slice(value);
    records.push(b'\n');
}

fn time((seconds, nanoseconds): (i64, u32)) -> String {
    if seconds < 0 && nanoseconds > 0 {
        return format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds);
    }
    format!("{seconds}.{nanoseconds:09}")
}
