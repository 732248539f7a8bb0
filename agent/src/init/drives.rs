//! The guest's virtio drives.

use std::fs;
use std::io;
use std::path::Path;

const BLOCK_DEVICES: &str = "/sys/block";

/// A virtio-blk device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Drive {
    /// "vda"
    pub(super) name: String,
    /// "254:0"
    pub(super) number: String,
    readonly: bool,
}

/// The image drive: the first that the host offers read-only.
pub(super) fn image() -> io::Result<Option<Drive>> {
    Ok(list(Path::new(BLOCK_DEVICES))?.into_iter().find(|drive| drive.readonly))
}

/// The scratch drive: the first that the host offers writable.
pub(super) fn scratch() -> io::Result<Option<Drive>> {
    Ok(list(Path::new(BLOCK_DEVICES))?.into_iter().find(|drive| !drive.readonly))
}

fn list(directory: &Path) -> io::Result<Vec<Drive>> {
    let mut drives = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("vd") {
            let read = |file| fs::read_to_string(entry.path().join(file));
            drives.push(Drive { number: read("dev")?.trim().into(), readonly: read("ro")?.trim() == "1", name });
        }
    }
    drives.sort_by(|a, b| (a.name.len(), &a.name).cmp(&(b.name.len(), &b.name)));
    Ok(drives)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drives_are_told_apart_by_their_write_protection() {
        let dir = tempfile::tempdir().unwrap();
        for (name, number, readonly) in [("vdb", "254:16", "1"), ("vda", "254:0", "0"), ("loop0", "7:0", "0")] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("dev"), format!("{number}\n")).unwrap();
            fs::write(dir.path().join(name).join("ro"), format!("{readonly}\n")).unwrap();
        }
        let found = list(dir.path()).unwrap();
        let names: Vec<_> = found.iter().map(|d| (d.name.as_str(), d.number.as_str(), d.readonly)).collect();
        assert_eq!(names, [("vda", "254:0", false), ("vdb", "254:16", true)]);
    }
}
