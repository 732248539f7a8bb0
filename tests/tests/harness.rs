//! The harness itself: images reach a real registry, and skopeo agrees that they are images.

use std::time::Duration;

use anyhow::{Result, ensure};
use bulkhead_tests::command;
use bulkhead_tests::environment::in_path;
use bulkhead_tests::http;
use bulkhead_tests::images::catalogue::Catalogue;
use bulkhead_tests::images::{Target, busybox};
use bulkhead_tests::registry::{PASSWORD, Registry, USER};

fn missing() -> Option<&'static str> {
    ["docker-registry", "skopeo", "setpriv"].into_iter().find(|program| in_path(program).is_none())
}

#[test]
fn a_registry_serves_what_was_pushed() -> Result<()> {
    if let Some(program) = missing() {
        println!("skipped: a_registry_serves_what_was_pushed: {program} is not in PATH");
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let registry = Registry::start(directory.path())?;
    Catalogue::new(&busybox::find()?)?.push(&registry.target())?;
    for name in ["busybox", "httpd", "zstd", "docker", "multi"] {
        let reference = format!("docker://{}", registry.image(name));
        let arguments = ["inspect", "--tls-verify=false", reference.as_str()];
        let seen = command::run("skopeo", &arguments, Duration::from_secs(60))?.success()?;
        ensure!(seen.stdout.contains("\"Architecture\": \"amd64\""), "{name}: {}", seen.stdout);
    }
    let copy = format!("dir:{}", directory.path().join("copy").display());
    let source = format!("docker://{}", registry.image("httpd"));
    command::run("skopeo", &["copy", "--src-tls-verify=false", &source, &copy], Duration::from_secs(60))?.success()?;
    Ok(())
}

#[test]
fn a_password_is_asked_for() -> Result<()> {
    if let Some(program) = missing() {
        println!("skipped: a_password_is_asked_for: {program} is not in PATH");
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let registry = Registry::start_with_password(directory.path())?;
    ensure!(http::get(&registry.address, "/v2/")?.status == 401);
    let catalogue = Catalogue::new(&busybox::find()?)?;
    let refused = catalogue.push_demo(&Target::plain(&registry.address));
    ensure!(refused.is_err(), "a push without a password should fail");
    catalogue.push_demo(&registry.target())?;
    let reference = format!("docker://{}", registry.image("busybox"));
    let credentials = format!("--creds={USER}:{PASSWORD}");
    let arguments = ["inspect", "--tls-verify=false", &credentials, reference.as_str()];
    command::run("skopeo", &arguments, Duration::from_secs(60))?.success()?;
    Ok(())
}
