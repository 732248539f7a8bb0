//! `bulkhead-vmm` is killed, crashes, breaks its seccomp filter or runs out of memory: its containers' statuses say which, and nothing of the pod stays
//! but its record and its network.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bulkhead_proto::cri;
use bulkhead_tests::environment::Handler;
use bulkhead_tests::fixture::Fixture;
use bulkhead_tests::leaks::host;
use bulkhead_tests::pod::Pod;
use bulkhead_tests::{command, wait};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

bulkhead_tests::suite!(
    Fixture;
    a_killed_machine_says_so,
    a_crashed_machine_says_so,
    a_machine_that_breaks_its_filter_says_so,
    a_machine_killed_for_memory_says_so,
);

/// Until every container of a dead machine is told as ended, and its sandbox as not ready.
const TOLD: Duration = Duration::from_secs(1);
/// A slow machine is not a broken one.
const LIMIT: Duration = Duration::from_secs(60);
/// Long enough for a scheduler of an emulated host.
const STOPS: Duration = Duration::from_secs(20);
/// Bytes of x86-64's `syscall` instruction.
const SYSCALL_LEN: u64 = 2;

fn a_killed_machine_says_so(f: &mut Fixture) -> Result<()> {
    dies(f, "killed", ("Error", "was killed by signal 9"), |_, pid| Ok(kill(pid, Signal::SIGKILL)?))
}

fn a_crashed_machine_says_so(f: &mut Fixture) -> Result<()> {
    // A signal that is sent does not end the first process of a PID namespace; one that it causes does.
    dies(f, "crashed", ("Error", "crashed (signal 11)"), |_, pid| redirect(pid, |registers| registers.rip = 0))
}

fn a_machine_that_breaks_its_filter_says_so(f: &mut Fixture) -> Result<()> {
    if f.environment.handler != Handler::Microvm {
        bulkhead_tests::skip!("only a machine of bulkhead-vmm's own runs behind a seccomp filter");
    }
    let words = "killed for a system call that its filter forbids";
    dies(f, "filter", ("Error", words), |_, pid| {
        redirect(pid, |registers| {
            // The instruction that it waits in is the system call itself.
            registers.rip -= SYSCALL_LEN;
            registers.rax = nix::libc::SYS_ptrace.cast_unsigned();
        })
    })
}

fn a_machine_killed_for_memory_says_so(f: &mut Fixture) -> Result<()> {
    if !host::cgroup_controllers().iter().any(|controller| controller == "memory") {
        bulkhead_tests::skip!("cgroup v2 of this host has no memory controller");
    }
    dies(f, "memory", ("OOMKilled", "the host's kernel killed the pod's machine for memory"), |cgroup, _| {
        Ok(fs::write(cgroup.join("memory.max"), (16 << 20).to_string())?)
    })
}

/// Has the process of a pod end by `end`, which gets its cgroup and its id, and looks at what is left.
fn dies(
    f: &Fixture,
    name: &str,
    (reason, words): (&str, &str),
    end: impl FnOnce(&Path, Pid) -> Result<()>,
) -> Result<()> {
    f.environment.needs_machine("tests/native.rs has the ends of pods without a machine")?;
    let pod = f.pod(name)?;
    let earlier = pod.once(&f.shell("exit 3")?.named("earlier"))?;
    let containers =
        [pod.start(&f.shell("sleep 1000")?.named("one"))?, pod.start(&f.shell("sleep 1000")?.named("two"))?];
    let cgroup = cgroup(f, &pod)?;
    ensure!(has_tap(&pod)?, "the pod has no tap");
    let process = process(&cgroup)?;
    let started = Instant::now();
    end(&cgroup, process)?;
    for container in &containers {
        let status = container.ended(LIMIT)?;
        ensure!(status.exit_code == 137 && status.reason == reason, "{status:?}");
        ensure!(status.message.contains(words), "{status:?}");
    }
    let state = pod.status()?.state;
    ensure!(state == cri::PodSandboxState::SandboxNotready as i32, "the sandbox's state is {state}");
    let told = started.elapsed();
    ensure!(told < TOLD || f.environment.emulated, "the death was told after {} ms", told.as_millis());
    wait::until("the end of the tap", LIMIT, || Ok((!has_tap(&pod)?).then_some(())))?;
    wait::until("the end of the cgroup", LIMIT, || Ok((!cgroup.exists()).then_some(())))?;
    println!("    {name}: told after {} ms, all over after {} ms", told.as_millis(), started.elapsed().as_millis());
    ensure!(earlier.code == 3, "what ended before keeps its code: {earlier:?}");
    let left = host::processes_of(Path::new("/nowhere"), &format!("{}/bulkhead-{}", f.cgroup, pod.id));
    ensure!(left.is_empty(), "processes are left: {left:?}");
    pod.remove()?;
    f.assert_nothing_left()
}

fn cgroup(f: &Fixture, pod: &Pod) -> Result<PathBuf> {
    Ok(host::cgroup_directory(&f.cgroup).context("no cgroup v2")?.join(format!("bulkhead-{}", pod.id)))
}

/// `bulkhead-vmm` of a pod.
fn process(cgroup: &Path) -> Result<Pid> {
    let listed = fs::read_to_string(cgroup.join("cgroup.procs"))?;
    let is_vmm =
        |pid: &&str| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "bulkhead-vmm");
    let pid = listed.lines().find(is_vmm).context("no bulkhead-vmm in the pod's cgroup")?;
    Ok(Pid::from_raw(pid.parse()?))
}

fn has_tap(pod: &Pod) -> Result<bool> {
    let namespace = format!("--net={}/{}{}", host::NAMESPACES, host::NAMESPACE_PREFIX, pod.id);
    let command = [&*namespace, "ip", "-o", "link", "show", "type", "tun"];
    Ok(!command::run("nsenter", &command, LIMIT)?.success()?.stdout.trim().is_empty())
}

/// Lets the main thread go on elsewhere, from the system call that it waits in.
fn redirect(process: Pid, change: impl FnOnce(&mut nix::libc::user_regs_struct)) -> Result<()> {
    ptrace::seize(process, ptrace::Options::empty())?;
    let deadline = Instant::now() + STOPS;
    loop {
        ptrace::interrupt(process)?;
        waitpid(process, Some(WaitPidFlag::__WALL))?;
        let mut registers = ptrace::getregs(process)?;
        if registers.orig_rax.cast_signed() >= 0 {
            change(&mut registers);
            // Else the kernel would take the call up again.
            registers.orig_rax = u64::MAX;
            ptrace::setregs(process, registers)?;
            return Ok(ptrace::detach(process, None)?);
        }
        if Instant::now() >= deadline {
            bail!("its main thread is never in a system call");
        }
        ptrace::cont(process, None)?;
    }
}
