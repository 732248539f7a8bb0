//! Memory with many pods, and how long lists of many pods take.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use bulkhead_proto::cri;
use bulkhead_tests::cri::CallError;
use bulkhead_tests::fixture::Fixture;
use bulkhead_tests::leaks::host;
use bulkhead_tests::pod::{Pod, Spec};

use super::table::{self, Numbers};

/// Pods with a network and a container that runs.
const RUNNING: usize = 100;
/// All pods; those that do not run were stopped, which a list has to tell all the same.
const LISTED: usize = 500;
/// Calls of each list.
const CALLS: usize = 20;
const MEBIBYTE: f64 = 1_048_576.0;
/// What every node has and critest's benchmark pulls first.
const IMAGE: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-2";

/// What was measured.
#[derive(Debug)]
pub struct Footprint {
    rows: Vec<[String; 3]>,
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["footprint".into(), "minimum / median / maximum".into(), "goal".into()];
        table::lines(f, &head, &self.rows)
    }
}

impl Footprint {
    fn add(&mut self, what: String, numbers: Vec<f64>, digits: usize, goal: &str) {
        self.rows.push([what, Numbers(numbers).text(digits), goal.to_owned()]);
    }
}

/// Runs the pods, measures, and removes them.
///
/// # Errors
/// When a pod does not start or a process cannot be read.
pub fn measure(fixture: &Fixture) -> Result<Footprint> {
    let mut found = Footprint { rows: Vec::new() };
    let daemon = fixture.daemon.pid().context("the daemon does not run")?;
    let spec = Spec::new(IMAGE, &["sleep", "1000"]);
    let mut pods = Vec::new();
    for number in 1..=RUNNING {
        progress("pods with a container", number, RUNNING);
        let pod = Pod::run(fixture.cri(), fixture.pod_config("footprint"), "")?;
        pod.start(&spec)?;
        pods.push(pod);
    }
    let per_pod = pods.iter().map(|pod| private(fixture, pod)).collect::<Result<Vec<_>>>()?;
    found.add(
        format!("daemon's resident memory with {RUNNING} pods, MiB"),
        vec![mebibytes(host::resident(daemon))],
        1,
        "at most 60 MiB",
    );
    let column = |index: usize| per_pod.iter().map(|processes| processes[index]).collect::<Vec<_>>();
    found.add("a pod's agent, private memory, MiB".into(), column(0), 2, "");
    found.add("a pod's bulkhead-vmm, private memory, MiB".into(), column(1), 2, "");
    found.add("a pod's agent and bulkhead-vmm, private memory, MiB".into(), column(2), 2, "at most 3 MiB");
    for number in RUNNING + 1..=LISTED {
        progress("pods in all", number, LISTED);
        let pod = Pod::run(fixture.cri(), host_network(fixture.pod_config("listed")), "")?;
        let stop = cri::StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
        fixture.cri().stop_pod_sandbox(stop)?;
        pods.push(pod);
    }
    lists(fixture, &mut found)?;
    found.add(
        format!("daemon's resident memory with {LISTED} pods, MiB"),
        vec![mebibytes(host::resident(daemon))],
        1,
        "",
    );
    for pod in pods {
        pod.remove()?;
    }
    Ok(found)
}

fn progress(what: &str, number: usize, all: usize) {
    if number.is_multiple_of(50) {
        eprintln!("footprint: {what}: {number} of {all}");
    }
}

fn host_network(mut config: cri::PodSandboxConfig) -> cri::PodSandboxConfig {
    let options = cri::NamespaceOption { network: cri::NamespaceMode::Node as i32, ..Default::default() };
    let context = cri::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
    config.linux.get_or_insert_default().security_context = Some(context);
    config
}

/// From the request to the decoded answer, over one connection: what the server takes is less.
fn lists(fixture: &Fixture, found: &mut Footprint) -> Result<()> {
    let cri = fixture.cri();
    let mut time = |verb: &str, goal: &str, call: &dyn Fn() -> Result<usize, CallError>| {
        let mut times = Vec::new();
        let mut items = 0;
        for _ in 0..CALLS {
            let started = Instant::now();
            items = call()?;
            times.push(started.elapsed().as_secs_f64() * 1000.0);
        }
        found.add(format!("{verb}, {items} items, at the client, ms"), times, 2, goal);
        Ok::<_, CallError>(())
    };
    const GOAL: &str = "at most 5 ms";
    time("ListPodSandbox", GOAL, &|| Ok(cri.pods()?.len()))?;
    time("ListContainers", GOAL, &|| Ok(cri.containers()?.len()))?;
    time("ListPodSandboxStats", "", &|| {
        Ok(cri.list_pod_sandbox_stats(cri::ListPodSandboxStatsRequest::default())?.stats.len())
    })?;
    time("ListContainerStats", "", &|| {
        Ok(cri.list_container_stats(cri::ListContainerStatsRequest::default())?.stats.len())
    })?;
    Ok(())
}

fn mebibytes(bytes: u64) -> f64 {
    u32::try_from(bytes >> 10).map_or(f64::NAN, f64::from) * 1024.0 / MEBIBYTE
}

/// Private memory of the pod's agent, of its `bulkhead-vmm`, and of both, helpers included.
fn private(fixture: &Fixture, pod: &Pod) -> Result<[f64; 3]> {
    let name = format!("bulkhead-{}", pod.id);
    let cgroup = host::cgroup_directory(&fixture.cgroup).context("no cgroup v2")?.join(name);
    let mut found = [0.0; 3];
    for leaf in ["agent", "containers/.pause"] {
        for pid in fs::read_to_string(cgroup.join(leaf).join("cgroup.procs"))?.lines() {
            let process = Path::new("/proc").join(pid);
            let bytes = mebibytes(private_bytes(&process)?);
            let is_vmm = fs::read_to_string(process.join("comm"))?.trim() == "bulkhead-vmm";
            found[usize::from(is_vmm)] += bytes;
            found[2] += bytes;
        }
    }
    Ok(found)
}

fn private_bytes(process: &Path) -> Result<u64> {
    let path = process.join("smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let of = |line: &str| {
        let (name, value) = line.split_once(':')?;
        let kibibytes = value.split_whitespace().next()?.parse::<u64>().ok()?;
        ["Private_Clean", "Private_Dirty"].contains(&name).then_some(kibibytes << 10)
    };
    Ok(text.lines().filter_map(of).sum())
}
