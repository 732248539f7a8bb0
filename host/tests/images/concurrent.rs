//! Pulls at the same time.

use super::fixture::{Content, Recipe, noise, tar};
use super::server::{Reply, Server};
use super::{Place, pull};

/// Holds every layer until released.
fn holding(content: Content, layers: Vec<String>) -> Server {
    Server::start(content, move |request| {
        if layers.iter().any(|layer| request.path.ends_with(layer)) { Reply::Held } else { Reply::Honest }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_of_one_image_are_one_pull() {
    let built = Recipe::new(vec![tar(&[("a", &noise(6, 10_000))])]).build();
    let digest = built.layers[0].digest().to_string();
    let server = holding(Content::of("app", "1", &built), vec![digest.clone()]);
    let place = Place::new(&server.host());
    let images = place.open().await;
    let name = format!("{}/app:1", server.host());
    // join! polls in order: all three have begun before the layer may come.
    let release = async { server.release() };
    let (a, b, c, ()) = tokio::join!(pull(&images, &name), pull(&images, &name), pull(&images, &name), release);
    assert_eq!((a.unwrap(), b.unwrap(), c.unwrap()), (built.id(), built.id(), built.id()));
    assert_eq!(server.asked("/manifests/").len(), 1);
    assert_eq!(server.asked(&digest).len(), 1);
    drop((images, server));
    place.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_wanted_by_two_pulls_comes_once() {
    let base = tar(&[("base", &noise(7, 10_000))]);
    let one = Recipe::new(vec![base.clone(), tar(&[("one", b"1")])]).build();
    let two = Recipe::new(vec![base, tar(&[("two", b"2")])]).build();
    let shared = one.layers[0].digest().to_string();
    let server = holding(Content::of("one", "1", &one).and("two", "1", &two), vec![shared.clone()]);
    let place = Place::new(&server.host());
    let images = place.open().await;
    let (first, second) = (format!("{}/one:1", server.host()), format!("{}/two:1", server.host()));
    let release = async {
        // Both pulls are past their own layer: each is at the shared one.
        while server.asked("/blobs/").len() < 5 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        server.release();
    };
    let (a, b, ()) = tokio::join!(pull(&images, &first), pull(&images, &second), release);
    assert_eq!((a.unwrap(), b.unwrap()), (one.id(), two.id()));
    assert_eq!(server.asked(&shared).len(), 1);
    drop((images, server));
    place.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_nobody_waits_for_ends() {
    let built = Recipe::new(vec![tar(&[("a", &noise(8, 300_000))])]).build();
    let digest = built.layers[0].digest().to_string();
    let watched = digest.clone();
    let server = Server::start(Content::of("app", "1", &built), move |request| {
        if request.path.ends_with(&watched) { Reply::Silent(100_000) } else { Reply::Honest }
    });
    let place = Place::new(&server.host());
    let images = place.open().await;
    let name = format!("{}/app:1", server.host());
    let asked = async {
        while server.asked(&digest).is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        result = pull(&images, &name) => panic!("the layer never comes: {result:?}"),
        () = asked => {}
    }
    images.settle().await;
    place.assert_empty();
    drop((images, server));
    place.close();
}
