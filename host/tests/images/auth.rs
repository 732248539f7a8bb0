//! Who may pull: passwords, tokens, and what messages say about them.

use base64::Engine as _;
use bulkhead::image::{Credentials, PullError, PullSecret};

use super::fixture::{Content, Recipe, tar};
use super::registry::Registry;
use super::server::{Reply, Server};
use super::{Place, assert_says, failure, pull};

fn basic(username: &str, password: &str) -> Option<PullSecret> {
    Some(Credentials::Basic { username: username.into(), password: password.into() }.into())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_at_a_real_registry() {
    let Some(registry) = Registry::start(true) else { return };
    let built = Recipe::new(vec![tar(&[("a", b"1")])]).build();
    registry.push("secret/app", "1", &built);
    let place = Place::new(registry.host());
    let images = place.open().await;
    let name = format!("{}/secret/app:1", registry.host());

    let why = failure(&place, &images, &name).await;
    assert_says(&why, &[&name, "refuses manifest 1 to no credentials (401", "check the pull secret"]);
    let error = images.pull(&name, basic("someone", "wrong-secret"), |_| ()).await.unwrap_err();
    assert!(matches!(error, PullError::Unauthorized { .. }));
    assert_says(&error.to_string(), &["to user \"someone\" (401"]);
    assert!(!format!("{error} {error:?}").contains("wrong-secret"));
    assert_eq!(images.pull(&name, basic("someone", "abc"), |_| ()).await.unwrap(), built.id());
    drop((images, registry));
    place.close();
}

/// A registry behind a token server on the same port: only user "u" with password "p" gets the token "t".
fn token_registry(content: Content) -> Server {
    let realm = std::sync::Arc::new(std::sync::OnceLock::<String>::new());
    let own = realm.clone();
    let server = Server::start(content, move |request| {
        let authorization = request.headers.get("authorization").map(String::as_str).unwrap_or_default();
        if request.path.starts_with("/token") {
            let right = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode("u:p"));
            return if authorization == right {
                Reply::Whole(200, vec![], br#"{"token":"t"}"#.to_vec())
            } else {
                Reply::Whole(401, vec![], vec![])
            };
        }
        if authorization == "Bearer t" {
            return Reply::Honest;
        }
        let challenge = format!("Bearer realm=\"{}\",service=\"s\",scope=\"repository:app:pull\"", own.get().unwrap());
        Reply::Whole(401, vec![("WWW-Authenticate", challenge)], vec![])
    });
    realm.set(format!("http://{}/token", server.host())).unwrap();
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_from_a_token_server() {
    let built = Recipe::new(vec![tar(&[("a", b"1")]), tar(&[("b", b"2")])]).build();
    let server = token_registry(Content::of("app", "1", &built));
    let place = Place::new(&server.host());
    let images = place.open().await;
    let name = format!("{}/app:1", server.host());

    assert_says(&failure(&place, &images, &name).await, &["refuses manifest 1 to no credentials (401"]);
    let error = images.pull(&name, basic("u", "wrong"), |_| ()).await.unwrap_err();
    assert_says(&error.to_string(), &["to user \"u\" (401"]);
    let error = images.pull(&name, Some(Credentials::Bearer("no".into()).into()), |_| ()).await.unwrap_err();
    assert_says(&error.to_string(), &["to a registry token (401"]);
    let before = server.asked("/token").len();
    images.pull(&name, basic("u", "p"), |_| ()).await.unwrap();
    let asked = server.asked("/token");
    assert_eq!(asked.len(), before + 1, "one token for the whole pull");
    assert_says(&asked[before].path, &["scope=repository%3Aapp%3Apull", "service=s"]);
    images.remove(&name).await.unwrap();
    images.pull(&name, Some(Credentials::Bearer("t".into()).into()), |_| ()).await.unwrap();
    drop((images, server));
    place.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_token_is_cut_off() {
    let server = Server::start(Content::default(), |request| {
        if request.path.starts_with("/v2") {
            let host = &request.headers["host"];
            Reply::Whole(401, vec![("WWW-Authenticate", format!("Bearer realm=\"http://{host}/t\""))], vec![])
        } else {
            Reply::Whole(200, vec![], vec![b'a'; 8 << 20])
        }
    });
    let place = Place::new(&server.host());
    let images = place.open().await;
    let error = pull(&images, &format!("{}/app:1", server.host())).await.unwrap_err();
    assert_says(&error.to_string(), &["token server", "holds no token"]);
    drop((images, server));
    place.close();
}
