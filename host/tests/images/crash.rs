//! `kill -9` in the middle of a pull.

use std::process::{Command, Stdio};

use super::fixture::{Content, Recipe, noise, tar};
use super::server::{Reply, Server};
use super::{Place, pull};

const ROOT: &str = "BULKHEAD_TEST_STORE";
const NAME: &str = "BULKHEAD_TEST_IMAGE";

/// The process that gets killed; nothing by itself.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by a_killed_pull_leaves_nothing in a process of its own"]
async fn pulls_until_killed() {
    let (Ok(root), Ok(name)) = (std::env::var(ROOT), std::env::var(NAME)) else { return };
    let mut place = Place::new(name.split('/').next().unwrap());
    place.config.root = root.into();
    place.config.stall_timeout_s = 60;
    pull(&place.open().await, &name).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_pull_leaves_nothing() {
    let built = Recipe::new(vec![tar(&[("a", b"small")]), tar(&[("b", &noise(15, 4_000_000))])]).build();
    let slow = built.layers[1].digest().to_string();
    let server = Server::start(Content::of("app", "1", &built), move |request| {
        if request.path.ends_with(&slow) && request.before == 0 { Reply::Silent(3_000_000) } else { Reply::Honest }
    });
    let place = Place::new(&server.host());
    let name = format!("{}/app:1", server.host());
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::pulls_until_killed", "--ignored", "--test-threads=1"])
        .env(ROOT, place.root())
        .env(NAME, &name)
        // What it makes beside the store must not outlive the test either.
        .env("TMPDIR", place.root().parent().unwrap())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // One layer in its place, the other half written.
    let written = || {
        let files = if place.root().join("tmp").exists() { place.files() } else { Vec::new() };
        let placed = files.iter().any(|f| f.ends_with(".tree"));
        let half = files
            .iter()
            .filter(|f| f.starts_with("tmp/"))
            .any(|f| std::fs::metadata(place.root().join(f)).is_ok_and(|m| m.len() >= 1 << 20));
        placed && half
    };
    while !written() {
        assert!(child.try_wait().unwrap().is_none(), "the child ended by itself");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    child.kill().unwrap();
    child.wait().unwrap();

    let images = place.open().await;
    assert!(images.list().is_empty());
    place.assert_empty();
    assert_eq!(pull(&images, &name).await.unwrap(), built.id());
    drop((images, server));
    place.close();
}
