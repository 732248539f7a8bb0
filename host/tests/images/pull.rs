//! What honest registries serve: a real one for whole life cycles, ours where requests are counted.

use bulkhead::image::{Digest, ImageUser, Progress, RegistryRule};
use std::sync::Mutex;

use super::fixture::{Content, Pack, Recipe, index, noise, tar};
use super::registry::Registry;
use super::server::Server;
use super::{Place, assert_says, failure, pull};

#[tokio::test(flavor = "multi_thread")]
async fn the_life_of_an_image() {
    let Some(registry) = Registry::start(false) else { return };
    let built = Recipe::new(vec![tar(&[("etc/a", b"one")]), tar(&[("etc/b", &noise(1, 300_000))])]).build();
    registry.push("team/app", "1", &built);
    let mut place = Place::new("");
    // Nothing in the configuration says that it has no TLS: loopback falls back by itself.
    place.config.plain_http.clear();
    let images = place.open().await;
    let name = format!("{}/team/app:1", registry.host());

    let seen = Mutex::new(Vec::new());
    let id = images.pull(&name, None, |p: Progress| seen.lock().unwrap().push(p)).await.unwrap();
    assert_eq!(id, built.id());
    let last = seen.into_inner().unwrap().pop().expect("progress");
    assert_eq!((last.layers, last.bytes), (2, built.layers.iter().map(|l| l.bytes.len() as u64).sum()));

    let image = images.find(&name).expect("by name");
    let by_digest = format!("{}/team/app@{}", registry.host(), built.manifest.digest());
    assert_eq!(image.repo_tags, std::slice::from_ref(&name));
    assert_eq!(image.repo_digests, std::slice::from_ref(&by_digest));
    for way in [id.to_string(), id.hex(), id.hex()[..12].into(), by_digest] {
        assert_eq!(images.find(&way).expect(&way).id, id);
    }
    assert!(images.find(&format!("{}/team/app:2", registry.host())).is_none());
    assert_eq!(image.config.image_user(), Some(ImageUser::Uid(1000)));
    assert_eq!(
        (image.config.env, image.config.cmd),
        (vec!["A=b".to_owned()], vec!["-c".to_owned(), "true".to_owned()])
    );
    assert_eq!(image.config.exposed_ports, ["80/tcp"]);
    assert_eq!(image.created.as_deref(), Some("2026-01-02T03:04:05Z"));
    assert!(image.size_bytes >= 300_000 && image.size_bytes < 400_000, "{}", image.size_bytes);
    let usage = images.fs_usage();
    assert!(usage.mountpoint.is_dir() && usage.used_bytes >= 300_000 && usage.inodes_used > 8);
    assert_eq!(usage.inodes_used, place.files().len() as u64 + 1);

    drop(images);
    let images = place.open().await;
    assert_eq!(images.list().len(), 1, "images survive a restart");
    assert_eq!(pull(&images, &name).await.unwrap(), id);
    images.remove(&id.to_string()).await.unwrap();
    images.remove(&name).await.unwrap();
    assert!(images.list().is_empty());
    place.assert_empty();

    let (pid, data) = (registry.pid(), registry.directory().to_owned());
    drop((registry, images));
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists() && !data.exists());
    place.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_packing_and_both_formats() {
    let Some(registry) = Registry::start(false) else { return };
    let place = Place::new(registry.host());
    let images = place.open().await;
    let contents = tar(&[("file", b"contents")]);
    for (docker, packs) in [(false, vec![Pack::Plain, Pack::Gzip, Pack::Zstd]), (true, vec![Pack::Gzip])] {
        for pack in packs {
            let recipe = Recipe { docker, layers: vec![(contents.clone(), pack)], ..Recipe::new(vec![]) };
            let built = recipe.build();
            registry.push("formats", "x", &built);
            let id = pull(&images, &format!("{}/formats:x", registry.host())).await.unwrap();
            assert_eq!(images.find(&id.to_string()).unwrap().layers[0].diff_id, Digest::of(&contents));
        }
    }
    drop((images, registry));
    place.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_gives_the_platforms_image() {
    for docker in [false, true] {
        let Some(registry) = Registry::start(false) else { return };
        let of = |architecture| {
            Recipe { docker, architecture, ..Recipe::new(vec![tar(&[("a", architecture.as_bytes())])]) }.build()
        };
        let (arm, amd) = (of("arm64"), of("amd64"));
        registry.push("multi", "arm", &arm);
        registry.push("multi", "amd", &amd);
        let list = index(docker, &[("arm64", &arm), ("amd64", &amd)]);
        registry.push_manifest("multi", "all", &list);
        registry.push_manifest("multi", "arms", &index(docker, &[("arm64", &arm)]));

        let place = Place::new(registry.host());
        let images = place.open().await;
        let why = failure(&place, &images, &format!("{}/multi:arms", registry.host())).await;
        assert_says(&why, &["multi:arms is not made for linux/amd64", "it has only linux/arm64"]);
        let why = failure(&place, &images, &format!("{}/multi:arm", registry.host())).await;
        assert_says(&why, &["is not made for linux/amd64", "only linux/arm64"]);

        let name = format!("{}/multi:all", registry.host());
        assert_eq!(pull(&images, &name).await.unwrap(), amd.id());
        let image = images.find(&name).unwrap();
        assert_eq!(image.repo_digests, [format!("{}/multi@{}", registry.host(), list.digest())]);
        let by_digest = image.repo_digests[0].clone();
        assert_eq!(pull(&images, &by_digest).await.unwrap(), amd.id());
        assert_eq!(images.find(&name).unwrap().repo_tags, [name]);
        drop((images, registry));
        place.close();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shared_layers_are_fetched_and_stored_once() {
    let base = tar(&[("base", &noise(2, 50_000))]);
    let one = Recipe::new(vec![base.clone(), tar(&[("one", b"1")])]).build();
    // Twice the same layer in one image is legal, and builders do it.
    let two = Recipe::new(vec![base.clone(), tar(&[("two", b"2")]), base.clone()]).build();
    let server = Server::honest(Content::of("one", "1", &one).and("two", "1", &two));
    let place = Place::new(&server.host());
    let images = place.open().await;
    let name = |image: &str| format!("{}/{image}:1", server.host());

    pull(&images, &name("one")).await.unwrap();
    pull(&images, &name("two")).await.unwrap();
    assert_eq!(server.asked(&one.layers[0].digest().to_string()).len(), 1);
    let before = server.asked("").len();
    pull(&images, &name("two")).await.unwrap();
    assert_eq!(server.asked("").len(), before + 1, "the manifest alone says that nothing has changed");

    images.remove(&name("one")).await.unwrap();
    let blobs = place.files().into_iter().filter(|f| f.starts_with("blobs/sha256/")).count();
    assert_eq!(blobs, 4, "the other image's two layers with their trees: {:?}", place.files());
    images.remove(&name("two")).await.unwrap();
    images.settle().await;
    place.assert_empty();
    drop((images, server));
    place.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moved() {
    let Some(registry) = Registry::start(false) else { return };
    let (old, new) = (Recipe::new(vec![tar(&[("v", b"1")])]).build(), Recipe::new(vec![tar(&[("v", b"2")])]).build());
    let place = Place::new(registry.host());
    let images = place.open().await;
    let name = format!("{}/moving:latest", registry.host());
    registry.push("moving", "latest", &old);
    pull(&images, &name).await.unwrap();
    registry.push("moving", "latest", &new);
    pull(&images, &name).await.unwrap();

    assert_eq!(images.find(&name).unwrap().id, new.id());
    let left = images.find(&old.id().to_string()).unwrap();
    assert!(left.repo_tags.is_empty());
    assert_eq!(left.repo_digests, [format!("{}/moving@{}", registry.host(), old.manifest.digest())]);
    drop((images, registry));
    place.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_sends_a_registry_elsewhere() {
    let built = Recipe::new(vec![tar(&[("a", b"1")])]).build();
    let server = Server::honest(Content::of("mirror/k8s/pause", "3", &built));
    let mut place = Place::new(&server.host());
    let location = format!("{}/mirror/k8s", server.host());
    place.config.registry = vec![RegistryRule { prefix: "registry.example".into(), location }];
    let images = place.open().await;
    pull(&images, "registry.example/pause:3").await.unwrap();
    assert_eq!(images.list()[0].repo_tags, ["registry.example/pause:3"]);
    drop((images, server));
    place.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_none() {
    let place = Place::new("");
    let images = place.open().await;
    assert_says(&failure(&place, &images, "Team/App").await, &["\"Team/App\"", "upper-case letters"]);
    assert_says(&failure(&place, &images, "app@sha256:12").await, &["64 lower-case hexadecimal digits"]);
    drop(images);
    place.close();
}
