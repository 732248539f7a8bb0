//! Scratch drives: sparse files copied from a formatted template.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{SeekFrom, copy_file_range, ftruncate, ioctl_ficlone, seek};
use rustix::io::Errno;

/// Why there is no scratch drive.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ScratchError {
    #[error("cannot make the scratch drive's template {}", path.display())]
    Template { path: PathBuf, source: io::Error },
    #[error("mkfs.ext4 could not format the scratch drive's template {}: {detail}", path.display())]
    Format { path: PathBuf, detail: String },
    #[error("cannot make a scratch drive below {}{}", dir.display(), if source.kind() == io::ErrorKind::StorageFull { "; free some disk space (unused images: crictl rmi --prune)" } else { "" })]
    Copy { dir: PathBuf, source: io::Error },
}

/// An empty ext4 file system of one size.
#[derive(Debug, Clone)]
pub struct ScratchTemplate {
    path: PathBuf,
    dir: PathBuf,
}

impl ScratchTemplate {
    /// Makes the template below `root` unless it stands there already.
    pub fn prepare(root: &Path, mib: u64) -> Result<Self, ScratchError> {
        let dir = root.join("scratch");
        let path = dir.join(format!("template-1-{mib}.ext4"));
        let fail = |source| ScratchError::Template { path: path.clone(), source };
        std::fs::create_dir_all(&dir).map_err(fail)?;
        if !path.exists() {
            let half = tempfile::NamedTempFile::new_in(&dir).map_err(fail)?;
            half.as_file().set_len(mib * 1024 * 1024).map_err(fail)?;
            format(half.path())?;
            half.as_file().sync_all().map_err(fail)?;
            half.persist(&path).map_err(|e| fail(e.error))?;
        }
        Ok(Self { path, dir })
    }

    /// Where drives lie.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.dir
    }

    /// A new drive: a file without a name, gone with its last descriptor.
    pub fn instantiate(&self) -> Result<File, ScratchError> {
        let fail = |source: io::Error| ScratchError::Copy { dir: self.dir.clone(), source };
        let template = File::open(&self.path).map_err(fail)?;
        let drive = tempfile::tempfile_in(&self.dir).map_err(fail)?;
        copy_sparse(&template, &drive).map_err(|e| fail(e.into()))?;
        Ok(drive)
    }
}

/// No journal and no reserved blocks: the drive lives as long as its pod.
fn format(path: &Path) -> Result<(), ScratchError> {
    let output = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-m", "0", "-O", "^has_journal,^resize_inode,extra_isize", "-E"])
        .arg("lazy_itable_init=1,nodiscard,root_owner=0:0,hash_seed=00000000-0000-4000-8000-000000000001")
        .args(["-i", "32768", "-L", "scratch"])
        .arg(path)
        .output();
    let detail = match output {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(e) => format!("{e}; install e2fsprogs"),
    };
    Err(ScratchError::Format { path: path.to_owned(), detail })
}

fn copy_sparse(from: &File, to: &File) -> Result<(), Errno> {
    if ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let len = seek(from, SeekFrom::End(0))?;
    ftruncate(to, len)?;
    let mut at = 0;
    while at < len {
        let start = match seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(e) => return Err(e),
        };
        let end = seek(from, SeekFrom::Hole(start))?;
        copy_range(from, to, start, end)?;
        at = end;
    }
    Ok(())
}

fn copy_range(from: &impl AsFd, to: &impl AsFd, start: u64, end: u64) -> Result<(), Errno> {
    let (mut read_at, mut write_at) = (start, start);
    while read_at < end {
        let len = usize::try_from(end - read_at).unwrap_or(usize::MAX);
        if copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), len)? == 0 {
            return Err(Errno::IO);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn copies_keep_holes_and_data() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let from = File::options().create_new(true).read(true).write(true).open(&path).unwrap();
        from.set_len(64 << 20).unwrap();
        from.write_all_at(b"first", 0).unwrap();
        from.write_all_at(b"last", (40 << 20) + 17).unwrap();
        let to = tempfile::tempfile_in(dir.path()).unwrap();
        copy_sparse(&from, &to).unwrap();
        let mut bytes = [0u8; 4];
        to.read_exact_at(&mut bytes, (40 << 20) + 17).unwrap();
        assert_eq!((&bytes, to.metadata().unwrap().len()), (b"last", 64 << 20));
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20);
    }
}
