//! Callers that go away in the middle: with input that nobody reads, and with a container half made.

#[allow(dead_code, reason = "shared with the other suites, which use the rest")]
mod support;

use std::fs;
use std::time::{Duration, Instant};

use bulkhead_proto::agent::*;
use support::{Agent, context, process};

const PATIENCE: Duration = Duration::from_secs(60);

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn sleeping() -> Agent {
    let agent = Agent::start().await;
    agent.create(&agent.spec("c", "sleep 1000")).await.expect("the agent answers");
    agent.start_container("c").await.expect("the agent answers");
    agent.settle().await;
    agent
}

#[tokio::test]
async fn a_caller_that_leaves_unread_input_behind_is_seen_to_go() {
    if let Some(why) = support::obstacle() {
        return eprintln!("SKIPPED: {why}");
    }
    let agent = sleeping().await;
    let before = agent.descriptors();
    let mut command = process(&["/bin/sleep", "1000"]);
    command.stdin = true;
    agent.exec("c", "e", command).await.unwrap();
    let mut stdio = agent.stdio("c", "e", true, true).await;
    // More than the pipe and the socket hold.
    let flood = "x".repeat(60_000);
    while tokio::time::timeout(Duration::from_secs(1), stdio.send(&flood)).await.is_ok() {}
    drop(stdio);
    // Its two output pipes and its pidfd stay as long as it runs; its input and its connection do not.
    until("the connection's end", || agent.descriptors() <= before + 3).await;
    agent.signal("c", "e", libc::SIGKILL, true).await.unwrap();
    until("the process's end", || agent.descriptors() <= before).await;
    agent.remove("c").await;
    agent.finish().await;
}

#[tokio::test]
async fn a_container_is_removed_in_the_middle_of_its_creation() {
    if let Some(why) = support::obstacle() {
        return eprintln!("SKIPPED: {why}");
    }
    let agent = sleeping().await;
    let before = agent.descriptors();
    // The set-up helper joins the container's cgroup and stops there.
    fs::write(agent.cgroup.join("cgroup.freeze"), "1").unwrap();
    let spec = agent.spec("half", "echo made");
    let removed = async {
        let procs = agent.cgroup.join("half/cgroup.procs");
        until("the helper", || fs::read_to_string(&procs).is_ok_and(|pids| !pids.is_empty())).await;
        let request = RemoveContainerRequest { container_id: "half".into(), ..Default::default() };
        agent.client.remove_container(context(), &request).await
    };
    let (created, removed) = tokio::join!(agent.create(&spec), removed);
    removed.unwrap();
    created.map(drop).expect_err("it was made although it was removed");
    fs::write(agent.cgroup.join("cgroup.freeze"), "0").unwrap();
    assert!(!agent.cgroup.join("half").exists(), "its cgroup is left");
    assert_eq!(fs::read_dir(agent.path("run/state/layers")).unwrap().count(), 1, "its layer is left");
    agent.settle().await;
    assert_eq!(agent.descriptors(), before);
    assert_eq!(agent.run(&spec).await.stdout, "made\n");
    agent.remove("c").await;
    agent.finish().await;
}
