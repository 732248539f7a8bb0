//! The image service against real and hostile registries, all on 127.0.0.1.
//!
//! Every test has its own registry, store and directory, and proves at its end that none of it is left.

#![allow(clippy::unwrap_used)] // a test says by panicking that it failed

mod auth;
mod bench;
mod concurrent;
mod crash;
mod fixture;
mod hostile;
mod network;
mod pull;
mod registry;
mod root;
mod server;
mod store;
mod tls;

use std::io::Write;
use std::path::Path;

use bulkhead::image::{ImageId, ImageStoreConfig, Images, PlatformConfig, PullError};

/// Says that a test did not run, past the test harness's capture.
pub(crate) fn skipped(why: &str) {
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    let _ = writeln!(std::io::stderr(), "test {name} ... skipped: {why}");
}

/// A store in a directory of its own.
pub(crate) struct Place {
    directory: tempfile::TempDir,
    pub(crate) config: ImageStoreConfig,
}

impl Place {
    /// For a registry without TLS at `host`.
    pub(crate) fn new(host: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let config = ImageStoreConfig {
            root: directory.path().join("images"),
            platform: PlatformConfig { os: "linux".into(), architecture: "amd64".into(), variant: String::new() },
            plain_http: Some(host.to_owned()).filter(|host| !host.is_empty()).into_iter().collect(),
            stall_timeout_s: 1,
            attempts: 2,
            retry_delay_ms: 1,
            keep_layers_s: 0,
            ..ImageStoreConfig::default()
        };
        Self { directory, config }
    }

    pub(crate) async fn open(&self) -> Images {
        Images::open(self.config.clone()).await.expect("the store opens")
    }

    pub(crate) fn root(&self) -> &Path {
        &self.config.root
    }

    /// Files and directories below the store's root, sorted.
    pub(crate) fn files(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut to_read = vec![self.root().to_owned()];
        while let Some(directory) = to_read.pop() {
            for entry in std::fs::read_dir(&directory).expect("a directory of the store").flatten() {
                let path = entry.path();
                found.push(path.strip_prefix(self.root()).expect("below the root").display().to_string());
                if path.is_dir() {
                    to_read.push(path);
                }
            }
        }
        found.sort();
        found
    }

    /// What a store without images consists of, and nothing else, is there.
    pub(crate) fn assert_empty(&self) {
        let expected = ["blobs", "blobs/sha256", "images", "index.json", "lock", "tmp"];
        let files: Vec<_> = self.files().into_iter().filter(|f| f != "index.json").collect();
        assert_eq!(files, expected.into_iter().filter(|f| *f != "index.json").collect::<Vec<_>>());
    }

    /// Nothing of the test is left: no file, no mount.
    pub(crate) fn close(self) {
        let path = self.directory.path().to_owned();
        self.directory.close().expect("the directory can be removed");
        assert!(!path.exists());
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
        assert!(!mounts.contains(&path.display().to_string()), "mounts left below {}", path.display());
    }
}

/// A pull without credentials and without interest in its progress.
pub(crate) async fn pull(images: &Images, name: &str) -> Result<ImageId, PullError> {
    images.pull(name, None, |_| ()).await
}

/// The text of a pull that must fail; the store is as empty as before.
pub(crate) async fn failure(place: &Place, images: &Images, name: &str) -> String {
    let error = pull(images, name).await.expect_err("the pull fails");
    place.assert_empty();
    assert!(images.list().is_empty() && images.find(name).is_none());
    error.to_string()
}

/// Takes a mount of a test away; it must not be busy, unless the test has failed already.
pub(crate) fn unmount(at: &Path) {
    use rustix::mount::{UnmountFlags, unmount};
    if std::thread::panicking() {
        let _ = unmount(at, UnmountFlags::DETACH);
    } else {
        unmount(at, UnmountFlags::empty()).expect("unmount");
    }
}

/// All words are there.
#[track_caller]
pub(crate) fn assert_says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is missing in: {text}");
    }
}
