//! Pods on the host's own kernel: what they are given of the host, what they are not, and how they end.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bulkhead_proto::cri;
use bulkhead_tests::daemon::{Daemon, Settings};
use bulkhead_tests::environment::{Environment, Handler};
use bulkhead_tests::fixture::Fixture;
use bulkhead_tests::leaks::host;
use bulkhead_tests::pod::{Container, Pod, Spec};
use bulkhead_tests::suite::{Skipped, SuiteFixture};
use bulkhead_tests::wait;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use rustix::process::{Pid, Signal, kill_process};

/// The fixture of all suites, for the handler `native` only.
struct Native(Fixture);

impl SuiteFixture for Native {
    fn start(environment: &Environment) -> Result<Self> {
        if environment.handler != Handler::Native {
            return Err(Skipped::because("BULKHEAD_TEST_HANDLER=native runs this suite").into());
        }
        Fixture::start(environment).map(Self)
    }

    fn after_case(&mut self, failed: bool) -> Result<()> {
        self.0.after_case(failed)
    }

    fn finish(self) -> Result<()> {
        self.0.finish()
    }
}

bulkhead_tests::suite!(
    Native;
    users_of_the_host_cannot_reach_a_containers_files,
    the_hosts_network_is_given,
    the_hosts_processes_are_given,
    the_hosts_ipc_is_given,
    another_containers_processes_are_seen,
    devices_are_given_and_no_others,
    mounts_of_the_host_arrive,
    mounts_reach_the_host,
    what_the_container_mounted_stays_and_what_was_mounted_for_it_does_not,
    a_private_mount_cannot_reach_the_host,
    sysctls_of_the_pods_own_namespaces_are_set,
    a_stop_signal_waits_for_its_handler,
    the_agents_memory_is_not_readable,
    a_killed_agent_takes_its_containers_along,
    a_killed_monitor_takes_its_containers_along,
    a_pod_killed_as_a_whole_is_told,
    an_agent_that_is_not_installed,
);

fn sandbox(f: &Fixture, name: &str, options: cri::NamespaceOption) -> Result<Pod> {
    let mut config = f.pod_config(name);
    let context = cri::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
    config.linux.get_or_insert_default().security_context = Some(context);
    Ok(Pod::run(f.cri(), config, "")?)
}

fn with_namespaces(spec: Spec, options: cri::NamespaceOption) -> Spec {
    spec.security(|context| context.namespace_options = Some(options))
}

const NODE: i32 = cri::NamespaceMode::Node as i32;

fn users_of_the_host_cannot_reach_a_containers_files(n: &mut Native) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let f = &n.0;
    let pod = f.pod("private")?;
    let container = pod.start(&f.shell("echo up; exec sleep 1000")?)?;
    container.says("up")?;
    for directory in
        [f.daemon.settings.root.join("layers"), f.daemon.settings.run.join("sandboxes").join(&pod.id).join("agent")]
    {
        let mode = fs::metadata(&directory)?.permissions().mode();
        ensure!(mode & 0o077 == 0, "{} has mode {mode:o}", directory.display());
    }
    let spec = f.shell("cat /etc/resolv.conf /etc/hosts > /dev/null && echo readable")?.named("user");
    let outcome = pod.once(&spec.security(|context| context.run_as_user = Some(cri::Int64Value { value: 1000 })))?;
    ensure!(outcome.stdout == "readable\n", "{outcome:?}");
    Ok(())
}

fn the_hosts_network_is_given(n: &mut Native) -> Result<()> {
    let f = &n.0;
    let options = cri::NamespaceOption { network: NODE, ..Default::default() };
    let pod = sandbox(f, "host-network", options.clone())?;
    let script = "readlink /proc/self/ns/net; readlink /proc/self/ns/uts; hostname; cat /etc/hosts";
    let outcome = pod.once(&with_namespaces(f.shell(script)?, options))?;
    for namespace in ["net", "uts"] {
        let own = fs::read_link(format!("/proc/self/ns/{namespace}"))?.display().to_string();
        ensure!(outcome.stdout.contains(&own), "{own} is not in {outcome:?}");
    }
    ensure!(outcome.stdout.ends_with(&fs::read_to_string("/etc/hosts")?), "{outcome:?}");
    ensure!(pod.address()?.is_empty(), "an address of its own: {}", pod.address()?);
    ensure!(f.network.taken_addresses().is_empty(), "CNI was asked for an address");
    let status = pod.status()?.linux.and_then(|linux| linux.namespaces).and_then(|n| n.options);
    ensure!(status.is_some_and(|options| options.network == NODE), "{:?}", pod.status()?);
    Ok(())
}

fn the_hosts_processes_are_given(n: &mut Native) -> Result<()> {
    let f = &n.0;
    let options = cri::NamespaceOption { pid: NODE, ..Default::default() };
    let pod = sandbox(f, "host-pid", options.clone())?;
    let script = format!("readlink /proc/self/ns/pid; cat /proc/{}/comm", std::process::id());
    let outcome = pod.once(&with_namespaces(f.shell(&script)?, options.clone()))?;
    let own = fs::read_link("/proc/self/ns/pid")?.display().to_string();
    let name = fs::read_to_string("/proc/self/comm")?;
    ensure!(outcome.stdout == format!("{own}\n{name}"), "{outcome:?}");
    // Children that outlive the first process end with the container although there is no PID namespace to end them.
    let container = pod.start(&with_namespaces(f.shell("sleep 4711 & echo up")?.named("children"), options))?;
    container.ended(Duration::from_secs(20))?;
    wait::until_ok("the end of the child", Duration::from_secs(10), || {
        let left = host::processes_of(Path::new("/nowhere"), &f.cgroup);
        let left: Vec<_> = left.into_iter().filter(|(_, name)| name.contains("(sleep)")).collect();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}

fn the_hosts_ipc_is_given(n: &mut Native) -> Result<()> {
    let f = &n.0;
    let options = cri::NamespaceOption { ipc: NODE, ..Default::default() };
    let pod = sandbox(f, "host-ipc", options.clone())?;
    let file = format!("bulkhead-{}", std::process::id());
    fs::write(Path::new("/dev/shm").join(&file), "of the host")?;
    let outcome =
        pod.once(&with_namespaces(f.shell(&format!("readlink /proc/self/ns/ipc; cat /dev/shm/{file}"))?, options));
    fs::remove_file(Path::new("/dev/shm").join(&file))?;
    let own = fs::read_link("/proc/self/ns/ipc")?.display().to_string();
    let outcome = outcome?;
    ensure!(outcome.stdout == format!("{own}\nof the host"), "{outcome:?}");
    Ok(())
}

fn another_containers_processes_are_seen(n: &mut Native) -> Result<()> {
    let f = &n.0;
    let pod = f.pod("target")?;
    let target = pod.start(&f.shell("exec sleep 4242")?.named("target"))?;
    let pid = cri::NamespaceMode::Target as i32;
    let options = cri::NamespaceOption { pid, target_id: target.id.clone(), ..Default::default() };
    let outcome = pod.once(&with_namespaces(f.shell("tr '\\0' ' ' < /proc/1/cmdline")?.named("debug"), options))?;
    ensure!(outcome.stdout.trim() == "sleep 4242", "{outcome:?}");
    Ok(())
}

fn devices_are_given_and_no_others(n: &mut Native) -> Result<()> {
    let f = &n.0;
    let pod = f.pod("devices")?;
    let device = cri::Device {
        host_path: "/dev/loop-control".into(),
        container_path: "/dev/given".into(),
        permissions: "rw".into(),
    };
    let script = "test -c /dev/given && : < /dev/given && echo given; \
                  mknod /dev/kmsg2 c 1 11 && (: < /dev/kmsg2) 2>&1; test -e /dev/loop-control || echo absent";
    let outcome = pod.once(&f.shell(script)?.with(|config| config.devices.push(device.clone())))?;
    ensure!(outcome.stdout.starts_with("given\n") && outcome.stdout.ends_with("absent\n"), "{outcome:?}");
    ensure!(outcome.stdout.contains("Operation not permitted"), "another device can be opened: {outcome:?}");
    let missing = cri::Device { host_path: "/dev/no-such-device".into(), ..device };
    let error = pod.create(&f.shell("true")?.with(|c| c.devices.push(missing))).err().context("it was created")?;
    ensure!(error.message.contains("/dev/no-such-device"), "{error}");
    Ok(())
}

/// A shared tmpfs of the host; unmounted with all below it when dropped.
struct Shared(PathBuf);

impl Shared {
    fn make(path: PathBuf) -> Result<Self> {
        fs::create_dir_all(&path)?;
        mount("bulkhead-test", &path, "tmpfs", MountFlags::empty(), None)?;
        let shared = Self(path);
        mount_change(&shared.0, MountPropagationFlags::SHARED)?;
        fs::create_dir(shared.0.join("below"))?;
        Ok(shared)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

fn mounted(f: &Fixture, shared: &Shared, propagation: cri::MountPropagation, script: &str) -> Result<Spec> {
    Ok(f.shell(script)?
        .with(|config| {
            config.mounts.push(cri::Mount {
                host_path: shared.0.display().to_string(),
                container_path: "/shared".into(),
                propagation: propagation as i32,
                ..Default::default()
            });
        })
        .security(|context| context.privileged = true))
}

fn mounts_of_the_host_arrive(n: &mut Native) -> Result<()> {
    let f = &n.0;
    let shared = Shared::make(f.path("arrive"))?;
    let pod = f.pod("arrive")?;
    let wait_for_file =
        "echo up; until test -e /shared/below/file || test -e /shared/end; do sleep 0.05; done; ls /shared/below";
    let follows = pod.start(&mounted(f, &shared, cri::MountPropagation::PropagationHostToContainer, wait_for_file)?)?;
    let stays = mounted(f, &shared, cri::MountPropagation::PropagationPrivate, wait_for_file)?.named("private");
    let stays = pod.start(&stays)?;
    follows.says("up")?;
    stays.says("up")?;
    let below = shared.0.join("below");
    mount("bulkhead-test", &below, "tmpfs", MountFlags::empty(), None)?;
    fs::write(below.join("file"), "")?;
    follows.says("file")?;
    fs::write(shared.0.join("end"), "")?;
    let outcome = stays.finish()?;
    ensure!(!outcome.stdout.contains("file"), "a private mount sees what was mounted later: {outcome:?}");
    unmount(&below, UnmountFlags::DETACH)?;
    Ok(())
}

fn mounts_reach_the_host(n: &mut Native) -> Result<()> {
    let f = &n.0;
    let shared = Shared::make(f.path("reach"))?;
    let pod = f.pod("reach")?;
    let script = "mount -t tmpfs made /shared/below && echo inside > /shared/below/file && echo done; sleep 1000";
    let container = pod.start(&mounted(f, &shared, cri::MountPropagation::PropagationBidirectional, script)?)?;
    container.says("done")?;
    let seen = fs::read_to_string(shared.0.join("below/file"))?;
    unmount(shared.0.join("below"), UnmountFlags::DETACH)?;
    ensure!(seen == "inside\n", "{seen:?}");
    Ok(())
}

fn what_the_container_mounted_stays_and_what_was_mounted_for_it_does_not(n: &mut Native) -> Result<()> {
    let f = &n.0;
    let shared = Shared::make(f.path("stays"))?;
    let own = f.path("own");
    fs::create_dir_all(&own)?;
    fs::write(own.join("file"), "own")?;
    let below = |name: &str| shared.0.join(name);
    let is_mount = |path: &std::path::Path| -> Result<bool> {
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        Ok(table.lines().any(|line| line.split(' ').nth(4) == path.to_str()))
    };
    let pod = f.pod("stays")?;
    let script =
        "mkdir -p /shared/made && cat /shared/own/file && mount -t tmpfs made /shared/made && echo ' done'; sleep 1000";
    let spec = mounted(f, &shared, cri::MountPropagation::PropagationBidirectional, script)?;
    let container = pod.start(&spec.mount(&own, "/shared/own", false))?;
    container.says("own done")?;
    // A volume below the shared one is the container's alone, and the shared one is still shared.
    ensure!(!is_mount(&below("own"))?, "a volume of the container reached the host");
    ensure!(is_mount(&below("made"))?, "the container's own mount did not reach the host");
    mount("bulkhead-test", below("made").as_path(), "tmpfs", MountFlags::empty(), None)?;
    fs::write(below("made").join("later"), "")?;
    ensure!(container.exec(&["ls", "/shared/made"])?.stdout == "later\n", "the host's mount did not arrive");
    container.remove()?;
    pod.remove()?;
    ensure!(!is_mount(&below("own"))?, "a volume of the container is left on the host");
    ensure!(is_mount(&below("made"))?, "what a CSI plugin mounted must outlive it");
    while is_mount(&below("made"))? {
        unmount(below("made"), UnmountFlags::DETACH)?;
    }
    Ok(())
}

fn a_private_mount_cannot_reach_the_host(n: &mut Native) -> Result<()> {
    let f = &n.0;
    let path = f.path("not-shared");
    fs::create_dir_all(&path)?;
    mount("bulkhead-test", &path, "tmpfs", MountFlags::empty(), None)?;
    let private = Shared(path);
    mount_change(&private.0, MountPropagationFlags::PRIVATE)?;
    let pod = f.pod("not-shared")?;
    let spec = mounted(f, &private, cri::MountPropagation::PropagationBidirectional, "true")?;
    let error = pod.create(&spec).err().context("it was created")?;
    ensure!(error.message.contains("--make-rshared") && error.message.contains("not-shared"), "{error}");
    Ok(())
}

fn sysctls_of_the_pods_own_namespaces_are_set(n: &mut Native) -> Result<()> {
    let f = &n.0;
    let before = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")?;
    let mut config = f.pod_config("sysctls");
    let sysctls = &mut config.linux.get_or_insert_default().sysctls;
    sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "77".into());
    sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
    let pod = Pod::run(f.cri(), config, "")?;
    let files = "/proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced";
    let outcome = pod.once(&f.shell(&format!("cat {files}"))?)?;
    ensure!(outcome.stdout == "77\n1\n", "{outcome:?}");
    ensure!(fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")? == before, "the host's was changed");
    let mut config = f.pod_config("host-sysctl");
    config.linux.get_or_insert_default().sysctls.insert("vm.swappiness".into(), "1".into());
    let error = Pod::run(f.cri(), config, "").err().context("it runs")?;
    ensure!(error.message.contains("vm.swappiness") && error.message.contains("host"), "{error}");
    Ok(())
}

fn a_stop_signal_waits_for_its_handler(n: &mut Native) -> Result<()> {
    let f = &n.0;
    let pod = f.pod("early-stop")?;
    // Until its trap is set, the kernel drops every signal that this first process of its namespace could handle.
    let script =
        "i=0; while [ $i -lt 20 ]; do sleep 0.05; i=$((i+1)); done; trap 'exit 7' TERM; while :; do sleep 0.05; done";
    let container = pod.start(&f.shell(script)?)?;
    let started = Instant::now();
    container.stop(60)?;
    let status = container.status()?;
    ensure!(status.exit_code == 7, "after {:?}: {status:?}", started.elapsed());
    Ok(())
}

/// Processes of the pod by name.
fn pids(f: &Fixture, pod: &Pod, name: &str) -> Vec<Pid> {
    let all = host::processes_of(Path::new("/nowhere"), &format!("{}/bulkhead-{}", f.cgroup, pod.id));
    let named = all.into_iter().filter(|(_, found)| found.ends_with(&format!("({name})")));
    named.filter_map(|(pid, _)| i32::try_from(pid).ok().and_then(Pid::from_raw)).collect()
}

fn the_agents_memory_is_not_readable(n: &mut Native) -> Result<()> {
    let f = &n.0;
    let options = cri::NamespaceOption { pid: NODE, ..Default::default() };
    let pod = sandbox(f, "not-dumpable", options.clone())?;
    let agent = *pids(f, &pod, "bulkhead-agent").first().context("no agent in the pod's cgroup")?;
    let script = format!("cat /proc/{0}/fd/0 2>&1; cat /proc/{0}/environ 2>&1; echo end", agent.as_raw_nonzero());
    let outcome = pod.once(&with_namespaces(f.shell(&script)?, options))?;
    ensure!(outcome.stdout.matches("Permission denied").count() == 2, "{outcome:?}");
    Ok(())
}

/// A pod with a container that runs, and that container's own process.
fn busy(f: &Fixture, name: &str) -> Result<(Pod, Container, Pid)> {
    let pod = f.pod(name)?;
    let container = pod.start(&f.shell("echo up; exec sleep 1000")?)?;
    container.says("up")?;
    let sleeper = wait::until("the container's process", Duration::from_secs(10), || {
        Ok(pids(f, &pod, "sleep").first().copied())
    })?;
    Ok((pod, container, sleeper))
}

/// The pod is over, its containers too, and everything is given back when it is removed.
fn is_over(f: &Fixture, pod: &Pod, container: &Container, sleeper: Pid) -> Result<String> {
    let status = container.ended(Duration::from_secs(30))?;
    ensure!(status.exit_code == 137, "{status:?}");
    wait::until_ok("the end of the container's process", Duration::from_secs(10), || {
        ensure!(rustix::process::test_kill_process(sleeper).is_err(), "it still runs");
        Ok(())
    })?;
    ensure!(pod.status()?.state == cri::PodSandboxState::SandboxNotready as i32, "{:?}", pod.status()?);
    pod.remove()?;
    f.assert_nothing_left()?;
    Ok(status.message)
}

fn a_killed_agent_takes_its_containers_along(n: &mut Native) -> Result<()> {
    let f = &n.0;
    let (pod, container, sleeper) = busy(f, "agent-killed")?;
    kill_process(*pids(f, &pod, "bulkhead-agent").first().context("no agent")?, Signal::KILL)?;
    let message = is_over(f, &pod, &container, sleeper)?;
    ensure!(message.contains("agent was killed by signal 9"), "{message}");
    Ok(())
}

fn a_killed_monitor_takes_its_containers_along(n: &mut Native) -> Result<()> {
    let f = &n.0;
    let (pod, container, sleeper) = busy(f, "monitor-killed")?;
    kill_process(*pids(f, &pod, "bulkhead-vmm").first().context("no bulkhead-vmm")?, Signal::KILL)?;
    is_over(f, &pod, &container, sleeper).map(drop)
}

fn a_pod_killed_as_a_whole_is_told(n: &mut Native) -> Result<()> {
    let f = &mut n.0;
    let (pod, container, sleeper) = busy(f, "both-killed")?;
    f.daemon.kill()?;
    for name in ["bulkhead-vmm", "bulkhead-agent"] {
        kill_process(*pids(f, &pod, name).first().context(name)?, Signal::KILL)?;
    }
    f.daemon.start_again()?;
    is_over(f, &pod, &container, sleeper).map(drop)
}

fn an_agent_that_is_not_installed(n: &mut Native) -> Result<()> {
    let f = &n.0;
    let agent = f.path("no-agent/bulkhead-agent");
    let settings =
        Settings { agent: agent.clone(), ..Settings::new(&f.environment, &f.network, &f.path("no-agent-daemon")) };
    let mut daemon = Daemon::start(&f.environment, settings)?;
    let error = Pod::run(&daemon.cri, f.pod_config("no-agent"), "").err().context("it runs")?;
    ensure!(error.message.contains(&agent.display().to_string()) && error.message.contains("[guest]"), "{error}");
    ensure!(daemon.cri.pods()?.is_empty(), "a sandbox is left");
    daemon.stop()
}
