//! The daemon is killed and comes back: pods run on, no line of a log is lost, exit codes are known, nothing leaks.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bulkhead_proto::cri;
use bulkhead_tests::fixture::Fixture;
use bulkhead_tests::http;
use bulkhead_tests::logs::Line;
use bulkhead_tests::pod::{Pod, Spec};
use bulkhead_tests::wait;
use serde_json::json;

bulkhead_tests::suite!(
    Fixture;
    containers_run_on_and_no_line_is_lost,
    exits_while_nobody_looked_are_known,
    every_verb_works_after_a_restart,
    a_kill_inside_run_pod_sandbox_leaves_nothing,
    a_kill_at_any_moment_leaves_nothing_behind,
    a_vm_that_dies_meanwhile_is_noticed,
    an_orderly_stop_leaves_pods_running,
);

/// Numbers from 0, ten and more a second, until it is told to stop.
const COUNTER: &str = "n=0; trap 'echo end; exit 5' TERM; while :; do echo line $n; n=$((n+1)); sleep 0.02; done";

/// The numbers of a counter's log; every line must be the successor of the one before.
fn count(lines: &[Line]) -> Result<usize> {
    let numbered: Vec<&Line> = lines.iter().filter(|line| line.text != "end").collect();
    for (number, line) in numbered.iter().enumerate() {
        ensure!(line.text == format!("line {number}"), "line {number} of the log is {line:?}");
        ensure!(line.full && line.stream == "stdout", "{line:?}");
    }
    ensure!(lines.windows(2).all(|pair| pair[0].time <= pair[1].time), "times go backwards");
    Ok(numbered.len())
}

fn containers_run_on_and_no_line_is_lost(f: &mut Fixture) -> Result<()> {
    let pod = f.pod("counter")?;
    let container = pod.start(&f.shell(COUNTER)?)?;
    container.says("line 20")?;
    for round in 1..=3 {
        f.daemon.kill()?;
        let at = std::fs::metadata(&container.log)?.len();
        wait::until("lines while no daemon runs", Duration::from_secs(10), || {
            Ok((std::fs::metadata(&container.log)?.len() > at + 500).then_some(()))
        })?;
        f.daemon.start_again()?;
        let status = container.status()?;
        ensure!(status.state == cri::ContainerState::ContainerRunning as i32, "round {round}: {status:?}");
        ensure!(pod.status()?.state == cri::PodSandboxState::SandboxReady as i32, "round {round}: {:?}", pod.status()?);
    }
    container.stop(10)?;
    let status = container.ended(Duration::from_secs(5))?;
    ensure!(status.exit_code == 5, "{status:?}");
    let lines = container.lines()?;
    ensure!(count(&lines)? >= 50 && lines.last().is_some_and(|line| line.text == "end"), "{} lines", lines.len());
    Ok(())
}

fn exits_while_nobody_looked_are_known(f: &mut Fixture) -> Result<()> {
    let pod = f.pod("exits")?;
    let gate = f.path("gate");
    std::fs::create_dir_all(&gate)?;
    let script = "echo waiting; until [ -e /gate/open ]; do sleep 0.05; done; echo last words; exit 33";
    let container = pod.start(&f.shell(script)?.mount(&gate, "/gate", true))?;
    container.says("waiting")?;
    f.daemon.kill()?;
    std::fs::write(gate.join("open"), "")?;
    container.says("last words")?;
    f.daemon.start_again()?;
    let outcome = container.finish()?;
    ensure!(outcome.code == 33 && outcome.stdout == "waiting\nlast words\n", "{outcome:?}");
    ensure!(outcome.status.finished_at > outcome.status.started_at, "{:?}", outcome.status);
    Ok(())
}

fn every_verb_works_after_a_restart(f: &mut Fixture) -> Result<()> {
    let mut config = f.pod_config("verbs");
    config.labels.insert("kept".into(), "yes".into());
    let pod = Pod::run(f.cri(), config, "")?;
    let web = pod.start(&Spec::new(&f.image("httpd")?, &[]).named("web"))?;
    let created = pod.create(&f.shell("echo created before; exit 4")?.named("created"))?;
    let before = (pod.status()?, web.status()?);
    f.daemon.kill()?;
    f.daemon.start_again()?;
    ensure!(
        (pod.status()?, web.status()?) == before,
        "statuses changed: {:?} and {before:?}",
        (pod.status()?, web.status()?)
    );
    let address = format!("{}:80", pod.address()?);
    wait::until_ok("the web server", Duration::from_secs(10), || http::get(&address, "/"))?;
    ensure!(web.exec(&["echo", "hello"])?.stdout == "hello\n", "exec");
    let stats = f.cri().container_stats(cri::ContainerStatsRequest { container_id: web.id.clone() })?;
    ensure!(stats.stats.and_then(|s| s.memory).is_some(), "stats");
    created.start()?;
    ensure!(created.finish()?.code == 4, "a container that was created before");
    ensure!(pod.once(&f.shell("echo new")?.named("new"))?.stdout == "new\n", "a container that is created after");
    std::fs::rename(&web.log, web.log.with_extension("old"))?;
    f.cri().reopen_container_log(cri::ReopenContainerLogRequest { container_id: web.id.clone() })?;
    ensure!(web.log.exists(), "ReopenContainerLog made no file");
    web.stop(1)?;
    web.remove()?;
    created.remove()?;
    pod.remove()?;
    f.assert_nothing_left()
}

/// Starts RunPodSandbox on a connection of its own; the answer is of no interest.
fn run_in_background(f: &Fixture, name: &str) -> std::thread::JoinHandle<()> {
    let request = cri::RunPodSandboxRequest { config: Some(f.pod_config(name)), runtime_handler: String::new() };
    let socket = f.daemon.settings.socket();
    std::thread::spawn(move || {
        if let Ok(cri) = bulkhead_tests::cri::Cri::new(&socket) {
            drop(cri.run_pod_sandbox(request));
        }
    })
}

fn joined(thread: std::thread::JoinHandle<()>) -> Result<()> {
    thread.join().map_err(|_| anyhow::anyhow!("the request's thread panicked"))
}

fn a_kill_inside_run_pod_sandbox_leaves_nothing(f: &mut Fixture) -> Result<()> {
    let reached = f.path("cni-reached");
    let script = format!(
        "[ \"$CNI_COMMAND\" = VERSION ] && echo '{{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"1.0.0\"]}}' && exit 0\n\
         [ \"$CNI_COMMAND\" = ADD ] || exit 0\ntouch {}\nsleep 4",
        reached.display()
    );
    f.network.plugin("pause", &script)?;
    f.network.configure(&json!({ "cniVersion": "1.0.0", "name": "paused", "plugins": [{ "type": "pause" }] }))?;
    let request = run_in_background(f, "middle");
    let met = wait::until("the plugin to be called", Duration::from_secs(20), || Ok(reached.exists().then_some(())));
    f.daemon.kill()?;
    f.network.configure(&f.network.bridge_list())?;
    joined(request)?;
    met?;
    f.daemon.start_again()?;
    ensure!(f.cri().pods()?.is_empty(), "a sandbox that never was: {:?}", f.cri().pods()?);
    f.assert_nothing_left()?;
    f.pod("middle")?.remove()?;
    Ok(())
}

fn a_kill_at_any_moment_leaves_nothing_behind(f: &mut Fixture) -> Result<()> {
    for milliseconds in [20, 100, 250, 500, 900, 1400] {
        let request = run_in_background(f, "moment");
        // The moments themselves are the test's subject.
        std::thread::sleep(Duration::from_millis(milliseconds));
        f.daemon.kill()?;
        joined(request)?;
        f.daemon.start_again()?;
        for pod in f.cri().pods()? {
            ensure!(pod.state == cri::PodSandboxState::SandboxReady as i32, "after {milliseconds} ms: {pod:?}");
            f.cri().remove_pod(&pod.id)?;
        }
        f.assert_nothing_left().with_context(|| format!("killed after {milliseconds} ms"))?;
    }
    Ok(())
}

fn a_vm_that_dies_meanwhile_is_noticed(f: &mut Fixture) -> Result<()> {
    let pod = f.pod("dying")?;
    let container = pod.start(&f.shell(COUNTER)?)?;
    container.says("line 5")?;
    f.daemon.kill()?;
    kill_machine(f, &pod.id)?;
    f.daemon.start_again()?;
    let status = pod.status()?;
    ensure!(status.state == cri::PodSandboxState::SandboxNotready as i32, "{status:?}");
    let ended = container.ended(Duration::from_secs(5))?;
    ensure!(ended.exit_code != 0 && !ended.message.is_empty(), "{ended:?}");
    pod.remove()?;
    f.assert_nothing_left()
}

/// SIGKILL for everything in the pod's cgroup, which is its machine.
fn kill_machine(f: &Fixture, id: &str) -> Result<()> {
    let cgroup = bulkhead_tests::leaks::host::cgroup_directory(&f.cgroup).context("no cgroup v2")?;
    let path = cgroup.join(format!("bulkhead-{id}")).join("cgroup.kill");
    std::fs::write(&path, "1").with_context(|| format!("cannot write {}", path.display()))
}

fn an_orderly_stop_leaves_pods_running(f: &mut Fixture) -> Result<()> {
    let pod = f.pod("orderly")?;
    let container = pod.start(&f.shell(COUNTER)?)?;
    container.says("line 5")?;
    f.daemon.stop()?;
    f.daemon.start_again()?;
    container.stop(10)?;
    ensure!(container.finish()?.code == 5, "{:?}", container.status()?);
    count(&container.lines()?)?;
    Ok(())
}
