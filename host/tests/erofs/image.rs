//! Our side: layers into blobs and trees, merged, written, laid out flat, mounted.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use bulkhead::image::erofs::{self, BlobRef, MetadataImage, flat_layout};
use bulkhead::image::layer::{BlobWriter, Compression, Layer, LayerError, LayerLimits, Tree, ingest};

/// A directory for one test; nothing of it may be mounted or attached when it goes.
pub struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    /// Removes the directory and proves that nothing is left of it.
    pub fn close(self) {
        let path = self.directory.path().to_path_buf();
        let text = path.to_str().unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(text), "still mounted below {text}");
        let loops = Command::new("losetup").arg("--list").output().unwrap();
        assert!(!String::from_utf8_lossy(&loops.stdout).contains(text), "still a loop device for {text}");
        self.directory.close().unwrap();
        assert!(!path.exists());
    }
}

pub fn take(place: &Place, name: &str, tar: &[u8], compression: Compression) -> Result<Layer, LayerError> {
    let mut blob = BlobWriter::new(File::create_new(place.path(name)).unwrap());
    ingest(tar, compression, &mut blob, &LayerLimits::default())
}

/// An image on disk, flat.
pub struct Built {
    pub flat: PathBuf,
    pub metadata: MetadataImage,
    pub blob_lens: Vec<u64>,
}

/// Takes tar streams, lowest first, all the way to one flat file.
pub fn build(place: &Place, layers: &[Vec<u8>]) -> Built {
    let taken: Vec<Layer> = layers
        .iter()
        .enumerate()
        .map(|(i, tar)| take(place, &format!("blob-{i}"), tar, Compression::None).unwrap_or_else(|e| panic!("{e}")))
        .collect();
    // As the store does it: the trees go through their files.
    let trees: Vec<Tree> = taken.iter().map(|layer| Tree::from_bytes(&layer.tree.to_bytes()).unwrap()).collect();
    let merged = erofs::merge(&trees.iter().collect::<Vec<_>>()).unwrap_or_else(|e| panic!("{e}"));
    let blobs: Vec<BlobRef> =
        taken.iter().map(|layer| BlobRef { digest: layer.diff_id, len: layer.blob_len }).collect();
    let path = place.path("metadata");
    let mut out = File::options().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
    let metadata = erofs::write(&merged, &blobs, &mut out).unwrap();
    assert_eq!(out.metadata().unwrap().len(), metadata.len);
    let blob_lens: Vec<u64> = taken.iter().map(|layer| layer.blob_len).collect();
    let flat = place.path("flat");
    let parts = std::iter::once("metadata".to_owned()).chain((0..taken.len()).map(|i| format!("blob-{i}")));
    let parts: Vec<PathBuf> = parts.map(|name| place.path(&name)).collect();
    lay_flat(&flat, &parts, &flat_layout(metadata.len, &blob_lens));
    Built { flat, metadata, blob_lens }
}

/// Copies only what is no hole.
fn lay_flat(flat: &Path, parts: &[PathBuf], lens: &[u64]) {
    let total: u64 = lens.iter().sum();
    let out = File::create(flat).unwrap();
    out.set_len(total).unwrap();
    let mut start = 0;
    for (part, len) in parts.iter().zip(lens) {
        assert_eq!(fs::metadata(part).unwrap().len().next_multiple_of(4096), *len);
        copy_data(&File::open(part).unwrap(), &out, start);
        start += len;
    }
}

fn copy_data(from: &File, to: &File, start: u64) {
    use rustix::fs::{SeekFrom, seek};
    use std::os::unix::fs::FileExt;
    let mut end = 0;
    while let Ok(data) = seek(from, SeekFrom::Data(end)) {
        end = seek(from, SeekFrom::Hole(data)).unwrap();
        let mut at = data;
        let mut buffer = vec![0; 1 << 20];
        while at < end {
            let count = buffer.len().min((end - at) as usize);
            from.read_exact_at(&mut buffer[..count], at).unwrap();
            to.write_all_at(&buffer[..count], start + at).unwrap();
            at += count as u64;
        }
    }
}

/// A mounted image, unmounted on drop.
pub struct Mounted(PathBuf);

impl Mounted {
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// By a loop device, which the kernel gives back with the mount.
    pub fn by_loop(place: &Place, flat: &Path) -> Self {
        let at = place.path("mounted");
        fs::create_dir(&at).unwrap();
        let output = Command::new("mount").args(["-t", "erofs", "-o", "loop,ro"]).arg(flat).arg(&at).output().unwrap();
        assert!(output.status.success(), "mount: {}", String::from_utf8_lossy(&output.stderr));
        Self(at)
    }

    /// Straight from the file (Linux 6.12 and later, if built in).
    pub fn by_file(place: &Place, flat: &Path) -> io::Result<Self> {
        let at = place.path("mounted-file");
        fs::create_dir(&at).unwrap();
        let flags = rustix::mount::MountFlags::RDONLY;
        let mounted = rustix::mount::mount(flat, &at, "erofs", flags, None::<&std::ffi::CStr>);
        mounted.map(|()| Self(at)).map_err(Into::into)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A child that another test's thread is just spawning holds copies of all descriptors until its exec.
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            match rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::empty()) {
                Err(rustix::io::Errno::BUSY) if std::time::Instant::now() < until => std::thread::yield_now(),
                result => break result.unwrap(),
            }
        }
        fs::remove_dir(&self.0).unwrap();
    }
}
