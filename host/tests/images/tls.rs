//! TLS, with certificates made for the test.

use std::process::{Command, Stdio};

use super::fixture::{Recipe, tar};
use super::registry::Registry;
use super::{Place, assert_says, failure, pull, skipped};

const NAME: &str = "BULKHEAD_TEST_TLS_IMAGE";

/// In a process of its own, as certificates are trusted by environment.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by a_certificate_decides in a process of its own"]
async fn pulls_trusting_the_certificate() {
    let Ok(name) = std::env::var(NAME) else { return };
    let mut place = Place::new("");
    place.config.stall_timeout_s = 30;
    pull(&place.open().await, &name).await.unwrap();
    place.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_decides() {
    let Some(registry) = Registry::start(false) else { return };
    registry.push("app", "1", &Recipe::new(vec![tar(&[("a", b"1")])]).build());
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
        .args([
            "-subj",
            "/CN=test",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        ])
        .args(["-keyout".as_ref(), key.as_os_str(), "-out".as_ref(), certificate.as_os_str()])
        .stderr(Stdio::null())
        .status();
    match made {
        Ok(status) => assert!(status.success(), "openssl"),
        Err(error) => return skipped(&format!("openssl: {error}")),
    }
    let Some(registry) = registry.with_tls(&certificate, &key) else { return };
    let name = format!("{}/app:1", registry.host());

    let place = Place::new("");
    let images = place.open().await;
    let why = failure(&place, &images, &name).await;
    assert_says(&why, &[&format!("registry {} is unavailable", registry.host()), "certificate"]);
    drop(images);
    place.close();

    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tls::pulls_trusting_the_certificate", "--ignored", "--test-threads=1"])
        .env("SSL_CERT_FILE", &certificate)
        .env(NAME, &name)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
}
