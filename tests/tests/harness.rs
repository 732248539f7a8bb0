//! The harness itself: images reach a real registry, skopeo agrees that they are images, and leaks are seen and swept.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use bulkhead_tests::command;
use bulkhead_tests::environment::in_path;
use bulkhead_tests::http;
use bulkhead_tests::images::catalogue::Catalogue;
use bulkhead_tests::images::{Target, busybox};
use bulkhead_tests::leaks::{Scope, Snapshot, assert_none, host, sweep};
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

#[test]
fn leaks_are_seen_and_swept() -> Result<()> {
    let Some(cgroups) = host::cgroup_root().filter(|_| rustix::process::geteuid().is_root()) else {
        println!("skipped: leaks_are_seen_and_swept: root and a cgroup v2 hierarchy are needed");
        return Ok(());
    };
    let directory = tempfile::tempdir()?.keep();
    let name = format!("bulkhead-harness-{}", std::process::id());
    let scope = Scope {
        directory: directory.clone(),
        cgroup: format!("/{name}"),
        bridge: "none".into(),
        prefix: "10.255.255".into(),
        expected: BTreeSet::new(),
    };
    let before = Snapshot::take(&scope, None);
    fs::write(directory.join("cgroup"), &scope.cgroup)?;
    fs::create_dir_all(cgroups.join(&name).join("pod"))?;
    fs::create_dir_all(directory.join("run/sandboxes/harness"))?;
    fs::create_dir_all(directory.join("addresses/net"))?;
    fs::write(directory.join("addresses/net/10.255.255.2"), "")?;
    fs::create_dir(directory.join("mounted"))?;
    rustix::mount::mount("tmpfs", directory.join("mounted"), "tmpfs", rustix::mount::MountFlags::empty(), None)?;
    let mut inside = Command::new("sleep").arg("600").current_dir(&directory).stdin(Stdio::null()).spawn()?;
    let mut grouped = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn()?;
    fs::write(cgroups.join(&name).join("pod/cgroup.procs"), grouped.id().to_string())?;
    let seen = Snapshot::take(&scope, None).grown(&before).join("\n");
    let swept = sweep::sweep(&directory);
    let gone = assert_none(&scope, None, &before);
    for child in [&mut inside, &mut grouped] {
        child.kill()?;
        ensure!(!child.wait()?.success(), "a sleeper slept to its end");
    }
    swept?;
    gone?;
    for kind in ["mount ", "cgroup ", "address ", "run file ", "(sleep)"] {
        ensure!(seen.contains(kind), "{kind:?} was not seen: {seen}");
    }
    ensure!(seen.matches("process ").count() == 2, "two processes: {seen}");
    ensure!(!directory.exists() && !cgroups.join(&name).exists(), "something is left");
    Ok(())
}
