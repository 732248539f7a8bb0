//! The guest has the CPUs and the memory that the kubelet's limits mean, at the start and while it runs.

use anyhow::{Context, Result, ensure};
use bulkhead_proto::cri;
use bulkhead_tests::environment::Handler;
use bulkhead_tests::fixture::Fixture;
use bulkhead_tests::pod::{Container, END, Pod};
use bulkhead_tests::{leaks, wait};

bulkhead_tests::suite!(
    Fixture;
    limits_make_the_machine,
    too_little_memory_is_refused_with_what_would_do,
    cpus_follow_the_pod_and_its_containers,
    more_memory_than_the_machine_has_is_refused,
    memory_follows_the_pod_and_its_containers,
    a_machine_with_room_grows,
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

/// What the guest's kernel may keep or give in other pieces than it was asked for.
const SLACK: u64 = 8;

fn memory_follows_the_pod_and_its_containers(f: &mut Fixture) -> Result<()> {
    f.environment.needs_machine(NO_GUEST)?;
    // Its cgroup exists by then, as under a kubelet: what it has no limit for counts from the beginning.
    f.pod("first")?.remove()?;
    let pod = pod(f, "breathes", limits(1, 320), 160)?;
    let container = pod.start(&f.shell("sleep 600")?)?;
    let made = memory_mib(&container)?;
    let shrunk = update_pod(f, &pod, limits(1, 192));
    if f.environment.handler == Handler::Qemu {
        let text = format!("{:#}", shrunk.err().context("QEMU's machine shrank")?);
        ensure!(text.contains("has no balloon"), "{text}");
        ensure!(memory_mib(&container)? == made, "{} MiB, not {made}", memory_mib(&container)?);
    } else {
        shrunk?;
        becomes(&container, made - 128)?;
        update_pod(f, &pod, limits(1, 320))?;
        becomes(&container, made)?;
    }
    let request = cri::UpdateContainerResourcesRequest {
        container_id: container.id.clone(),
        linux: Some(limits(0, 64)),
        ..Default::default()
    };
    f.cri().update_container_resources(request)?;
    let limit = output(&container, "cat /sys/fs/cgroup/memory.max")?;
    ensure!(limit == (64 * MIB).to_string(), "memory.max is {limit}");
    pod.remove()?;
    f.assert_nothing_left()
}

fn a_machine_with_room_grows(f: &mut Fixture) -> Result<()> {
    if f.environment.handler != Handler::Microvm {
        bulkhead_tests::skip!("only a machine of bulkhead-vmm's own has a balloon");
    }
    f.pod("first")?.remove()?;
    let mut config = f.pod_config("roomy");
    config.linux.get_or_insert_default().resources = Some(limits(1, 128));
    let pod = Pod::run(f.cri(), config, f.environment.handler.open())?;
    let container = pod.start(&f.shell("sleep 600")?)?;
    let before = settled(&container)?;
    // 128 MiB for the container, and the handler's default for those that have no limit.
    ensure!(before < 384, "the balloon of the boot left {before} MiB");
    update_pod(f, &pod, limits(1, 320))?;
    becomes(&container, before + 192)?;
    let error = update_pod(f, &pod, limits(1, 4096)).err().context("it grew beyond its machine")?;
    ensure!(format!("{error:#}").contains("made with 1024 MiB"), "{error:#}");
    pod.remove()?;
    f.assert_nothing_left()
}

/// What the guest has once its balloon stands still.
fn settled(container: &Container) -> Result<u64> {
    let (mut last, mut seen) = (memory_mib(container)?, 0);
    wait::until("a balloon that stands still", END, || {
        let now = memory_mib(container)?;
        seen = if now == last { seen + 1 } else { 0 };
        last = now;
        Ok((seen == 20).then_some(now))
    })
}

/// The guest gives memory up, and takes it back, after the request was answered.
fn becomes(container: &Container, wanted: u64) -> Result<()> {
    let near = wanted - SLACK..=wanted + SLACK;
    wait::until_ok(&format!("a guest of {wanted} MiB"), END, || {
        let now = memory_mib(container)?;
        ensure!(near.contains(&now), "it has {now} MiB");
        Ok(())
    })
}
