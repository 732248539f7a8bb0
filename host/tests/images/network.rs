//! Registries that are slow, broken, busy or gone.

use std::time::{Duration, Instant};

use super::fixture::{Built, Content, Recipe, noise, tar};
use super::server::{Reply, Server};
use super::{Place, assert_says, failure, pull};

fn sample() -> Built {
    Recipe::new(vec![tar(&[("a", &noise(5, 200_000))])]).build()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_transfer_goes_on_where_it_broke() {
    let built = sample();
    let blob = format!("/v2/app/blobs/{}", built.layers[0].digest());
    let server = Server::start(Content::of("app", "1", &built), move |request| {
        if request.path == blob && request.before == 0 { Reply::Cut(70_000) } else { Reply::Honest }
    });
    let place = Place::new(&server.host());
    let images = place.open().await;
    pull(&images, &format!("{}/app:1", server.host())).await.unwrap();
    let asked = server.asked(&built.layers[0].digest().to_string());
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[1].headers["range"], "bytes=70000-");
    drop((images, server));
    place.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_keeps_breaking_or_stalls() {
    let built = sample();
    let size = built.layers[0].bytes.len();
    for silent in [false, true] {
        let blob = format!("/v2/app/blobs/{}", built.layers[0].digest());
        let server =
            Server::start(Content::of("app", "1", &built), move |request| match (request.path == blob, silent) {
                (false, _) => Reply::Honest,
                (true, false) => Reply::Cut(50_000),
                (true, true) => Reply::Silent(50_000),
            });
        let place = Place::new(&server.host());
        let images = place.open().await;
        let why = failure(&place, &images, &format!("{}/app:1", server.host())).await;
        let digest = format!("layer 1 of 1 ({})", built.layers[0].digest());
        assert_says(
            &why,
            &[&digest, &format!("broke off after 100000 of {size} bytes"), "(2 attempts)", &server.host()],
        );
        if silent {
            assert_says(&why, &["no byte came for 1 s"]);
        }
        drop((images, server));
        place.close();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_registry_is_asked_again_when_it_says() {
    let built = sample();
    let server = Server::start(Content::of("app", "1", &built), |request| {
        match (request.path.contains("/blobs/"), request.before) {
            (false, 0) => Reply::Whole(429, vec![("Retry-After", "1".into())], b"busy".to_vec()),
            (true, 0) => Reply::Whole(503, vec![], vec![]),
            _ => Reply::Honest,
        }
    });
    let place = Place::new(&server.host());
    let images = place.open().await;
    let begun = Instant::now();
    pull(&images, &format!("{}/app:1", server.host())).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));
    drop((images, server));
    place.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_fails_to_the_end() {
    type Answer = (u16, Vec<(&'static str, String)>, &'static [&'static str]);
    let answers: [Answer; 3] = [
        (500, vec![], &["is unavailable: manifest 1: 500", "(2 attempts)", "out of tea"]),
        (429, vec![], &["is unavailable: manifest 1: 429", "(2 attempts)"]),
        (429, vec![("Retry-After", "3600".into())], &["asks to wait 3600 s"]),
    ];
    for (status, headers, words) in answers {
        let server = Server::start(Content::default(), move |_| {
            let body = br#"{"errors":[{"code":"X","message":"out of tea"}]}"#.to_vec();
            Reply::Whole(status, headers.clone(), body)
        });
        let place = Place::new(&server.host());
        let images = place.open().await;
        let name = format!("{}/app:1", server.host());
        let error = pull(&images, &name).await.unwrap_err();
        assert!(error.is_registry_unavailable());
        assert_says(&error.to_string(), &[&[name.as_str()], words].concat());
        drop((images, server));
        place.close();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_listens() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut place = Place::new("");
    place.config.plain_http.clear();
    let images = place.open().await;
    let error = pull(&images, &format!("{free}/app:1")).await.unwrap_err();
    assert!(error.is_registry_unavailable());
    assert_says(&error.to_string(), &[&format!("registry {free} is unavailable"), "refused", "check the network"]);
    drop(images);
    place.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_not_there() {
    let built = sample();
    let mut content = Content::of("app", "1", &built);
    content.0.remove(&format!("/v2/app/blobs/{}", built.layers[0].digest()));
    let server = Server::honest(content);
    let place = Place::new(&server.host());
    let images = place.open().await;
    let why = failure(&place, &images, &format!("{}/app:2", server.host())).await;
    let host = server.host();
    assert_says(
        &why,
        &[&format!("image {host}/app:2 does not exist in registry {host}: manifest 2 was not found: manifest unknown")],
    );
    let why = failure(&place, &images, &format!("{host}/app:1")).await;
    assert_says(&why, &["layer 1 of 1 (sha256:", "was not found"]);
    drop((images, server));
    place.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_attempt_has_the_layers_of_the_failed_one() {
    let built = Recipe::new(vec![tar(&[("a", &noise(18, 50_000))]), tar(&[("b", &noise(19, 50_000))])]).build();
    let (first, second) = (built.layers[0].digest().to_string(), built.layers[1].digest().to_string());
    let failing = second.clone();
    let server = Server::start(Content::of("app", "1", &built), move |request| {
        if request.path.ends_with(&failing) && request.before < 2 { Reply::Silent(10_000) } else { Reply::Honest }
    });
    let mut place = Place::new(&server.host());
    place.config.keep_layers_s = 60;
    let images = place.open().await;
    let name = format!("{}/app:1", server.host());
    assert_says(&pull(&images, &name).await.unwrap_err().to_string(), &["layer 2 of 2", "broke off"]);
    pull(&images, &name).await.unwrap();
    assert_eq!((server.asked(&first).len(), server.asked(&second).len()), (1, 3));
    drop((images, server));
    place.close();
}
