//! The verbs of a pod's life, and a plain QEMU beside each.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bulkhead_proto::cri;
use bulkhead_tests::fixture::Fixture;
use bulkhead_tests::leaks::host;
use bulkhead_tests::pod::{Container, Pod, Spec};

use super::plain_qemu::PlainQemu;
use super::table::{Row, Unit};

const MEBIBYTE: f64 = 1_048_576.0;

struct Rows {
    run: Row,
    create: Row,
    start: Row,
    first_byte: Row,
    stop: Row,
    remove: Row,
    plain: Row,
    ratio: Row,
    vmm: Row,
    initramfs: Row,
}

/// Measures `rounds` pods, one after the other.
pub fn measure(fixture: &Fixture, rounds: usize) -> Result<Vec<Row>> {
    let time = |name| Row::new(name, Unit::Milliseconds);
    let mut rows = Rows {
        run: time("RunPodSandbox"),
        create: time("CreateContainer"),
        start: time("StartContainer"),
        first_byte: time("RunPodSandbox to the container's first byte"),
        stop: time("StopPodSandbox"),
        remove: time("RemovePodSandbox"),
        plain: time("qemu-system-x86_64 alone, TCG, to init"),
        ratio: Row::new("RunPodSandbox / qemu alone", Unit::Ratio).goal("at most 1.5 x"),
        vmm: Row::new("bulkhead-vmm's own memory", Unit::Mebibytes).goal("at most 10 MiB"),
        initramfs: Row::new("initramfs", Unit::Mebibytes).goal("at most 6 MiB"),
    };
    rows.initramfs.add(mebibytes(fs::metadata(&fixture.environment.initramfs)?.len()));
    let qemu = PlainQemu::new(&fixture.environment, fixture.directory.path())?;
    let spec = fixture.shell("echo first; exec sleep 1000")?;
    // The first pod of a daemon and the first boot of a file are not what a node does all day.
    round(fixture, &qemu, &spec)?;
    for number in 1..=rounds {
        eprintln!("pods: round {number} of {rounds}");
        let seen = round(fixture, &qemu, &spec)?;
        rows.plain.add_time(seen.plain);
        rows.run.add_time(seen.run);
        rows.ratio.add(seen.run.as_secs_f64() / seen.plain.as_secs_f64());
        rows.create.add_time(seen.create);
        rows.start.add_time(seen.start);
        rows.first_byte.add_time(seen.first_byte);
        rows.vmm.add(mebibytes(seen.vmm));
        rows.stop.add_time(seen.stop);
        rows.remove.add_time(seen.remove);
    }
    let Rows { run, create, start, first_byte, stop, remove, plain, ratio, vmm, initramfs } = rows;
    Ok(vec![run, create, start, first_byte, stop, remove, plain, ratio, vmm, initramfs])
}

/// For a [`Row`] of that unit.
#[allow(clippy::cast_precision_loss)] // sizes far below 2^52
pub fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / MEBIBYTE
}

struct Round {
    plain: Duration,
    run: Duration,
    create: Duration,
    start: Duration,
    first_byte: Duration,
    stop: Duration,
    remove: Duration,
    vmm: u64,
}

fn timed<T, E>(work: impl FnOnce() -> Result<T, E>) -> Result<(T, Duration), E> {
    let started = Instant::now();
    work().map(|value| (value, started.elapsed()))
}

fn round(fixture: &Fixture, qemu: &PlainQemu, spec: &Spec) -> Result<Round> {
    let plain = qemu.boot()?;
    let config = fixture.pod_config("bench");
    let begun = Instant::now();
    let (pod, run) = timed(|| Pod::run(fixture.cri(), config, ""))?;
    let (container, create) = timed(|| pod.create(spec))?;
    let ((), start) = timed(|| container.start())?;
    first_byte(&container)?;
    let first_byte = begun.elapsed();
    let vmm = vmm_memory(fixture, &pod).context("cannot measure bulkhead-vmm")?;
    let id = pod.id;
    let (_, stop) =
        timed(|| fixture.cri().stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: id.clone() }))?;
    let (_, remove) = timed(|| fixture.cri().remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: id }))?;
    Ok(Round { plain, run, create, start, first_byte, stop, remove, vmm })
}

/// Returns when the log has something.
fn first_byte(container: &Container) -> Result<()> {
    let limit = Instant::now() + Duration::from_secs(30);
    while fs::metadata(&container.log).map_or(0, |metadata| metadata.len()) == 0 {
        anyhow::ensure!(Instant::now() < limit, "no output of the container in 30 s");
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

/// Resident bytes of the pod's bulkhead-vmm, without the guest's memory (a memfd) that is mapped into it.
fn vmm_memory(fixture: &Fixture, pod: &Pod) -> Result<u64> {
    let cgroup = host::cgroup_directory(&fixture.cgroup).context("no cgroup v2")?.join(format!("bulkhead-{}", pod.id));
    let pids = fs::read_to_string(cgroup.join("cgroup.procs"))?;
    let named =
        |pid: &&str| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "bulkhead-vmm");
    let pid = pids.lines().find(named).context("no process bulkhead-vmm in the pod's cgroup")?;
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let mut guest = false;
    let mut kibibytes = 0;
    for line in maps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if !first.ends_with(':') {
            guest = line.contains("/memfd:");
        } else if first == "Rss:" && !guest {
            kibibytes += line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    Ok(kibibytes << 10)
}
