//! The guest has the CPUs and the memory that the kubelet's limits mean, at the start and while it runs.

use anyhow::{Context, Result, ensure};
use bulkhead_proto::cri;
use bulkhead_tests::fixture::Fixture;
use bulkhead_tests::leaks;
use bulkhead_tests::pod::{Container, Pod};

bulkhead_tests::suite!(
    Fixture;
    limits_make_the_machine,
    too_little_memory_is_refused_with_what_would_do,
    cpus_follow_the_pod_and_its_containers,
    more_memory_than_the_machine_has_is_refused,
);

const NO_GUEST: &str = "pods of this handler have no machine that limits would size";
const MIB: i64 = 1 << 20;
/// What the guest's kernel keeps of the machine's memory for itself.
const KERNELS_SHARE: u64 = 64;

fn limits(cpus: i64, memory_mib: i64) -> cri::LinuxContainerResources {
    cri::LinuxContainerResources {
        cpu_quota: cpus * 100_000,
        cpu_period: 100_000,
        memory_limit_in_bytes: memory_mib * MIB,
        ..Default::default()
    }
}

fn pod(f: &Fixture, name: &str, resources: cri::LinuxContainerResources, overhead_mib: i64) -> Result<Pod> {
    let mut config = f.pod_config(name);
    let linux = config.linux.get_or_insert_default();
    linux.resources = Some(resources);
    linux.overhead = Some(limits(0, overhead_mib));
    Ok(Pod::run(f.cri(), config, "")?)
}

fn output(container: &Container, script: &str) -> Result<String> {
    let done = container.exec(&["sh", "-c", script])?;
    ensure!(done.code == 0, "{script}: {} {}", done.code, done.stderr);
    Ok(done.stdout.trim().to_owned())
}

fn cpus(container: &Container) -> Result<u32> {
    Ok(output(container, "nproc")?.parse()?)
}

fn memory_mib(container: &Container) -> Result<u64> {
    let text = output(container, "grep MemTotal /proc/meminfo")?;
    let kib: u64 = text.split_whitespace().nth(1).context("no MemTotal")?.parse()?;
    Ok(kib / 1024)
}

/// The second CPU needs a host that has one.
fn host_cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1))
}

fn limits_make_the_machine(f: &mut Fixture) -> Result<()> {
    f.environment.needs_machine(NO_GUEST)?;
    let pod = pod(f, "sized", limits(2, 320), 160)?;
    let container = pod.start(&f.shell("sleep 600")?)?;
    ensure!(cpus(&container)? == host_cpus().min(2), "{} CPUs", cpus(&container)?);
    let memory = memory_mib(&container)?;
    // At most limit and overhead together, whatever the handler keeps of it for its processes.
    ensure!((320 - KERNELS_SHARE..480).contains(&memory), "{memory} MiB");
    pod.remove()?;
    f.assert_nothing_left()
}

fn too_little_memory_is_refused_with_what_would_do(f: &mut Fixture) -> Result<()> {
    f.environment.needs_machine(NO_GUEST)?;
    // The kubelet limits the pod's cgroup when all containers have limits; the suite's pods have none of their own.
    if leaks::host::cgroup_controllers().iter().any(|controller| controller == "memory") {
        bulkhead_tests::skip!("the pod's cgroup has no limit here, so that the limits count as some containers' only");
    }
    let error = pod(f, "small", limits(1, 16), 0).err().context("it runs")?;
    let text = format!("{error:#}");
    for part in ["16 MiB", "the least that works is", "Raise the limits"] {
        ensure!(text.contains(part), "{part:?} is not in {text:?}");
    }
    ensure!(f.cri().pods()?.is_empty(), "a sandbox is left");
    f.assert_nothing_left()
}

fn update_pod(f: &Fixture, pod: &Pod, resources: cri::LinuxContainerResources) -> Result<()> {
    let request = cri::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.id.clone(),
        overhead: None,
        resources: Some(resources),
    };
    Ok(f.cri().update_pod_sandbox_resources(request).map(drop)?)
}

fn cpus_follow_the_pod_and_its_containers(f: &mut Fixture) -> Result<()> {
    f.environment.needs_machine(NO_GUEST)?;
    let most = host_cpus().min(2);
    let pod = pod(f, "grows", limits(1, 320), 160)?;
    let container = pod.start(&f.shell("sleep 600")?.resources(|resources| *resources = limits(1, 0)))?;
    ensure!(cpus(&container)? == 1, "{} CPUs at the start", cpus(&container)?);
    update_pod(f, &pod, limits(2, 320))?;
    ensure!(cpus(&container)? == most, "{} CPUs after the pod grew", cpus(&container)?);
    update_pod(f, &pod, limits(1, 320))?;
    ensure!(cpus(&container)? == 1, "{} CPUs after the pod shrank", cpus(&container)?);
    let request = cri::UpdateContainerResourcesRequest {
        container_id: container.id.clone(),
        linux: Some(limits(2, 0)),
        ..Default::default()
    };
    f.cri().update_container_resources(request)?;
    ensure!(cpus(&container)? == most, "{} CPUs after the container grew", cpus(&container)?);
    pod.remove()?;
    f.assert_nothing_left()
}

fn more_memory_than_the_machine_has_is_refused(f: &mut Fixture) -> Result<()> {
    f.environment.needs_machine(NO_GUEST)?;
    let pod = pod(f, "full", limits(1, 320), 160)?;
    let error = update_pod(f, &pod, limits(1, 4096)).err().context("it grew")?;
    let text = format!("{error:#}");
    ensure!(text.contains("cannot grow"), "{text}");
    pod.remove()?;
    f.assert_nothing_left()
}
