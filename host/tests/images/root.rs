//! What was pulled is what the kernel reads.

use std::fs::File;
use std::io;
use std::process::Command;

use super::fixture::{Content, Recipe, noise, tar};
use super::server::Server;
use super::{Place, pull};

/// A loop mount of a flat device, undone on drop.
struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        super::unmount(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kernel_mounts_the_files_end_to_end() {
    let (lower, upper) = (noise(16, 1_234_567), noise(17, 54_321));
    let built = Recipe::new(vec![
        tar(&[("keep", &lower), ("gone", b"x"), ("changed", b"old")]),
        tar(&[("changed", &upper), (".wh.gone", b"")]),
    ])
    .build();
    let server = Server::honest(Content::of("app", "1", &built));
    let place = Place::new(&server.host());
    let images = place.open().await;
    let id = pull(&images, &format!("{}/app:1", server.host())).await.unwrap();
    let mut root = images.open_root(&id).unwrap();

    let (flat, at) = (place.root().join("flat"), place.root().join("mounted"));
    let mut out = File::create(&flat).unwrap();
    for file in &mut root.files {
        assert_eq!(io::copy(&mut file.file, &mut out).unwrap(), file.len);
    }
    drop(out);
    std::fs::create_dir(&at).unwrap();
    let mount = Command::new("mount").args(["-t", "erofs", "-o", "loop,ro"]).arg(&flat).arg(&at).output().unwrap();
    if mount.status.success() {
        let mounted = Mounted(at.clone());
        assert!(std::fs::read(at.join("keep")).unwrap() == lower);
        assert!(std::fs::read(at.join("changed")).unwrap() == upper);
        assert!(!at.join("gone").exists());
        drop(mounted);
    } else {
        super::skipped(&format!("mount -t erofs -o loop: {}", String::from_utf8_lossy(&mount.stderr).trim()));
    }
    std::fs::remove_dir(&at).unwrap();
    std::fs::remove_file(&flat).unwrap();
    drop((root, images, server));
    place.close();
}
