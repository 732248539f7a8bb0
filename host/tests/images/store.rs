//! The store's own promises: leases, one daemon, no room, damage.

use bulkhead::image::Images;

use super::fixture::{Content, Recipe, noise, tar};
use super::server::Server;
use super::{Place, assert_says, failure, pull};

#[tokio::test(flavor = "multi_thread")]
async fn an_open_root_keeps_its_files() {
    let built = Recipe::new(vec![tar(&[("a", &noise(9, 50_000))])]).build();
    let server = Server::honest(Content::of("app", "1", &built));
    let place = Place::new(&server.host());
    let images = place.open().await;
    let name = format!("{}/app:1", server.host());
    let id = pull(&images, &name).await.unwrap();

    let root = images.open_root(&id).unwrap();
    assert!(root.files.len() == 2 && root.files.iter().all(|f| f.len > 0 && f.len % 4096 == 0));
    images.remove(&name).await.unwrap();
    assert!(images.list().is_empty());
    assert_says(&images.open_root(&id).unwrap_err().to_string(), &[&id.to_string(), "pull it first"]);
    assert!(root.files.iter().all(|file| file.path.exists()));
    // Leased files count as there for the next pull.
    pull(&images, &name).await.unwrap();
    assert_eq!(server.asked(&built.layers[0].digest().to_string()).len(), 1);
    images.remove(&name).await.unwrap();
    drop(root);
    images.settle().await;
    place.assert_empty();
    drop((images, server));
    place.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_daemon_per_store() {
    let place = Place::new("");
    let images = place.open().await;
    let error = Images::open(place.config.clone()).await.unwrap_err().to_string();
    assert_says(&error, &[&place.root().display().to_string(), "in use by another process"]);
    drop(images);
    drop(place.open().await);
    place.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_files_cost_their_image_only() {
    let good = Recipe::new(vec![tar(&[("a", &noise(10, 9000))])]).build();
    let bad = Recipe::new(vec![tar(&[("b", &noise(11, 9000))])]).build();
    let server = Server::honest(Content::of("good", "1", &good).and("bad", "1", &bad));
    let place = Place::new(&server.host());
    let images = place.open().await;
    let (good_name, bad_name) = (format!("{}/good:1", server.host()), format!("{}/bad:1", server.host()));
    pull(&images, &good_name).await.unwrap();
    pull(&images, &bad_name).await.unwrap();
    let blob = images.find(&bad_name).unwrap().layers[0].diff_id.hex();
    drop(images);
    let file = std::fs::File::options().write(true).open(place.root().join("blobs/sha256").join(blob)).unwrap();
    file.set_len(4096).unwrap();
    let images = place.open().await;
    assert!(images.find(&bad_name).is_none() && images.find(&good_name).is_some());
    pull(&images, &bad_name).await.unwrap();
    drop((images, server));
    place.close();
}

/// A tmpfs of two MiB, unmounted on drop.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(at: std::path::PathBuf) -> Option<Self> {
        std::fs::create_dir(&at).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        match rustix::mount::mount("tmpfs", &at, "tmpfs", flags, Some(c"size=2m")) {
            Ok(()) => Some(Self(at)),
            Err(error) => {
                super::skipped(&format!("cannot mount a tmpfs: {error}"));
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        super::unmount(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_and_left_clean() {
    let big = Recipe::new(vec![tar(&[("a", &noise(12, 1_000_000))]), tar(&[("b", &noise(13, 3_000_000))])]).build();
    let small = Recipe::new(vec![tar(&[("c", &noise(14, 500_000))])]).build();
    let server = Server::honest(Content::of("big", "1", &big).and("small", "1", &small));
    let mut place = Place::new(&server.host());
    let Some(disk) = SmallDisk::mount(place.root().parent().unwrap().join("disk")) else { return };
    place.config.root = disk.0.join("images");
    let images = place.open().await;
    let error = pull(&images, &format!("{}/big:1", server.host())).await.unwrap_err();
    assert!(error.is_disk_full());
    let why = failure(&place, &images, &format!("{}/big:1", server.host())).await;
    assert_says(&why, &["disk full", "writing", &place.root().display().to_string(), "remove images"]);
    pull(&images, &format!("{}/small:1", server.host())).await.expect("there is room for a small one");
    drop((images, server, disk));
    place.close();
}
