//! Registries and images that lie.

use super::fixture::{Blob, Built, Content, Recipe, noise, tar};
use super::server::{Reply, Server};
use super::{Place, assert_says, failure};

fn sample() -> Built {
    Recipe::new(vec![tar(&[("a", &noise(3, 100_000))])]).build()
}

/// What a pull of `content`'s `app:1` says, with the host cut out of it.
async fn refusal(content: Content, name: &str) -> String {
    let server = Server::honest(content);
    let place = Place::new(&server.host());
    let images = place.open().await;
    let why = failure(&place, &images, &format!("{}/{name}", server.host())).await;
    drop(images);
    place.close();
    why.replace(&server.host(), "HOST")
}

/// The content with one byte of `blob` changed under its old name.
fn tampered(built: &Built, blob: &Blob) -> Content {
    let mut content = Content::of("app", "1", built);
    for served in content.0.values_mut().filter(|served| served.digest() == blob.digest()) {
        let middle = served.bytes.len() / 2;
        served.bytes[middle] ^= 1;
    }
    content
}

#[tokio::test(flavor = "multi_thread")]
async fn altered_bytes_are_refused_wherever_they_are() {
    let built = sample();
    let name = format!("app@{}", built.manifest.digest());
    let manifest = refusal(tampered(&built, &built.manifest), &name).await;
    assert_says(&manifest, &["manifest sha256:", "from registry HOST has digest sha256:", "instead of", "alters data"]);
    assert_says(&manifest, &[&built.manifest.digest().to_string()]);
    let config = refusal(tampered(&built, &built.config), "app:1").await;
    assert_says(&config, &["image configuration sha256:", &format!("instead of {}", built.config.digest())]);
    let layer = refusal(tampered(&built, &built.layers[0]), "app:1").await;
    assert_says(&layer, &["layer 1 of 1 (sha256:", &format!("instead of {}", built.layers[0].digest())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_not_the_configurations() {
    let mut built = sample();
    let other = Recipe::new(vec![tar(&[("other", b"x")])]).build();
    built.layers = other.layers;
    let why = refusal(Content::of("app", "1", &built.sealed()), "app:1").await;
    assert_says(&why, &["the uncompressed layer 1 of 1", "has digest sha256:", "instead of sha256:"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_are_none() {
    let mut built = sample();
    built.layers[0].bytes = b"this is no gzip stream, whatever its media type says".to_vec();
    let why = refusal(Content::of("app", "1", &built.clone().sealed()), "app:1").await;
    assert_says(&why, &["pulling HOST/app:1: cannot use layer 1 of 1 (sha256:", "gzip"]);

    built.layers[0].media_type = "application/x-rar".into();
    let why = refusal(Content::of("app", "1", &built.sealed()), "app:1").await;
    assert_says(&why, &["media type \"application/x-rar\" is none of a layer's"]);

    let climbing = Recipe::new(vec![tar(&[("../../etc/passwd", b"root::0:0")])]).build();
    let why = refusal(Content::of("app", "1", &climbing), "app:1").await;
    assert_says(&why, &["cannot use layer 1 of 1", ".."]);
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_that_are_none() {
    let built = sample();
    let with = |bytes: &[u8], media_type: &str| {
        let manifest = Blob { media_type: media_type.into(), bytes: bytes.to_vec() };
        Content::of("app", "1", &Built { manifest, ..built.clone() })
    };
    let schema1 = br#"{"schemaVersion":1,"name":"app","fsLayers":[]}"#;
    let why = refusal(with(schema1, "application/vnd.docker.distribution.manifest.v1+json"), "app:1").await;
    assert_says(&why, &["Docker schema 1", "push the image again"]);
    let why = refusal(with(b"<html>log in</html>", "text/html"), "app:1").await;
    assert_says(&why, &["cannot use manifest sha256:", "malformed"]);
    let why = refusal(with(&vec![b' '; (4 << 20) + 1], "application/json"), "app:1").await;
    assert_says(&why, &["sent more than 4194304 bytes for manifest 1"]);

    let mut chart = built.clone();
    chart.config.media_type = "application/vnd.cncf.helm.config.v1+json".into();
    let why = refusal(Content::of("app", "1", &chart.sealed()), "app:1").await;
    assert_says(&why, &["helm.config", "is none of an image"]);

    let mut short = built.clone();
    short.layers.clear();
    let why = refusal(Content::of("app", "1", &short.sealed()), "app:1").await;
    assert_says(&why, &["1 diff ids, the manifest has 0 layers"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_bytes_than_announced() {
    let built = sample();
    let mut more = built.layers[0].bytes.clone();
    more.extend_from_slice(&noise(4, 5000));
    let blob = format!("/v2/app/blobs/{}", built.layers[0].digest());
    let server = Server::start(Content::of("app", "1", &built), move |request| {
        if request.path == blob { Reply::Whole(200, vec![], more.clone()) } else { Reply::Honest }
    });
    let place = Place::new(&server.host());
    let images = place.open().await;
    let why = failure(&place, &images, &format!("{}/app:1", server.host())).await;
    let size = built.layers[0].bytes.len();
    assert!(why.contains(&format!("sent more than the {size} bytes")) || why.contains("has digest"), "{why}");
    drop((images, server));
    place.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lying_index_cannot_swap_images() {
    let (honest, evil) = (sample(), Recipe::new(vec![tar(&[("evil", b"1")])]).build());
    let list = super::fixture::index(false, &[("amd64", &honest)]);
    let mut content = Content::of("app", "x", &honest).and_manifest("app", "1", &list);
    content.0.insert(format!("/v2/app/manifests/{}", honest.manifest.digest()), evil.manifest.clone());
    let why = refusal(content, "app:1").await;
    assert_says(&why, &[&format!("has digest {} instead of {}", evil.manifest.digest(), honest.manifest.digest())]);
}
