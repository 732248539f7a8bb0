//! The cgroup driver `systemd`: a pod is a scope in the slice that its kubelet made. On a host that systemd runs; the lab
//! has one (`tests/lab --systemd`).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bulkhead_proto::cri;
use bulkhead_tests::command;
use bulkhead_tests::environment::Environment;
use bulkhead_tests::fixture::Fixture;
use bulkhead_tests::images::busybox;
use bulkhead_tests::images::catalogue::Catalogue;
use bulkhead_tests::leaks::host;
use bulkhead_tests::pod::{Container, Pod};
use bulkhead_tests::skip;
use bulkhead_tests::suite::SuiteFixture;
use bulkhead_tests::wait;

const LIMIT: Duration = Duration::from_secs(60);
const MEMORY: i64 = 96 << 20;

/// A daemon with the driver, and a slice for its pods.
struct Systemd {
    f: Fixture,
    slice: String,
}

bulkhead_tests::suite!(
    Systemd;
    the_kubelet_is_told,
    a_pod_is_a_scope_in_its_slice,
    a_pod_without_a_slice_goes_to_our_own,
    limits_survive_a_reload_of_systemd,
    a_scope_survives_the_daemon,
    a_removed_pod_leaves_no_unit,
    parents_of_the_other_driver_are_refused,
);

impl SuiteFixture for Systemd {
    fn start(environment: &Environment) -> Result<Self> {
        if !Path::new("/run/systemd/private").exists() {
            skip!(
                "systemd does not run this host (/run/systemd/private); `scripts/in-lab.sh systemd` has one that does"
            );
        }
        let busybox = busybox::find()?;
        let mut f = Fixture::start_with(environment, |registry, settings| {
            let drop_ins = settings.directory.join("config.d");
            fs::create_dir_all(&drop_ins)?;
            fs::write(drop_ins.join("10-driver.toml"), "[daemon]\ncgroup_driver = \"systemd\"\n")?;
            Catalogue::new(&busybox)?.push(&registry.target())
        })?;
        let slice = format!("bulkheadtests-{}.slice", std::process::id());
        f.cgroup = format!("/bulkheadtests.slice/{slice}");
        Ok(Self { f, slice })
    }

    fn after_case(&mut self, failed: bool) -> Result<()> {
        if failed {
            println!("{}", command::run("systemctl", &["status", "--no-pager", "--all", "bulkhead*"], LIMIT)?);
        }
        self.f.after_case(failed)
    }

    fn finish(self) -> Result<()> {
        let slice = self.slice;
        self.f.finish()?;
        // systemd forgets an empty slice when it comes to it.
        command::run("systemctl", &["stop", &slice, "bulkheadtests.slice"], LIMIT).map(drop)
    }
}

impl Systemd {
    fn pod(&self, name: &str) -> Result<(Pod, Container)> {
        let pod = self.f.pod(name)?;
        let spec = self.f.shell("echo up; exec sleep 100000")?.resources(|r| r.memory_limit_in_bytes = MEMORY);
        let container = pod.start(&spec)?;
        container.says("up")?;
        Ok((pod, container))
    }

    fn scope(&self, pod: &Pod) -> Result<PathBuf> {
        let slice = host::cgroup_directory(&self.f.cgroup).context("no cgroup v2")?;
        Ok(slice.join(unit(pod)))
    }
}

fn unit(pod: &Pod) -> String {
    format!("bulkhead-{}.scope", pod.id)
}

/// A property of a unit.
fn show(unit: &str, property: &str) -> Result<String> {
    let output = command::run("systemctl", &["show", "--value", "--property", property, unit], LIMIT)?.success()?;
    Ok(output.stdout.trim().to_owned())
}

/// Every process in a cgroup and below.
fn processes(cgroup: &Path) -> BTreeSet<String> {
    let mut found: BTreeSet<String> =
        fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default().lines().map(str::to_owned).collect();
    let children = fs::read_dir(cgroup).into_iter().flatten().flatten().map(|entry| entry.path());
    found.extend(children.filter(|path| path.is_dir()).flat_map(|path| processes(&path)));
    found
}

fn the_kubelet_is_told(s: &mut Systemd) -> Result<()> {
    let told = s.f.cri().runtime_config(cri::RuntimeConfigRequest::default())?;
    let driver = told.linux.context("nothing about Linux")?.cgroup_driver;
    ensure!(driver == cri::CgroupDriver::Systemd as i32, "{driver}");
    Ok(())
}

fn a_pod_is_a_scope_in_its_slice(s: &mut Systemd) -> Result<()> {
    let (pod, container) = s.pod("scope")?;
    let (unit, scope) = (unit(&pod), s.scope(&pod)?);
    ensure!(show(&unit, "ActiveState")? == "active", "{unit} is {}", show(&unit, "ActiveState")?);
    ensure!(show(&unit, "Slice")? == s.slice && show(&unit, "Delegate")? == "yes", "{unit} is elsewhere");
    ensure!(show(&unit, "ControlGroup")? == format!("{}/{unit}", s.f.cgroup), "{}", show(&unit, "ControlGroup")?);
    ensure!(!processes(&scope).is_empty(), "no process is in {}", scope.display());
    if !s.f.environment.handler.is_machine() {
        let own = scope.join("containers").join(&container.id);
        ensure!(!processes(&own).is_empty(), "no process is in {}", own.display());
        ensure!(fs::read_to_string(own.join("memory.max"))?.trim() == MEMORY.to_string(), "the limit is not set");
    }
    Ok(())
}

fn a_pod_without_a_slice_goes_to_our_own(s: &mut Systemd) -> Result<()> {
    let mut config = s.f.pod_config("own");
    config.linux.get_or_insert_default().cgroup_parent.clear();
    let pod = Pod::run(s.f.cri(), config, "")?;
    ensure!(show(&unit(&pod), "Slice")? == "bulkhead.slice", "{}", show(&unit(&pod), "Slice")?);
    Ok(pod.remove()?)
}

fn limits_survive_a_reload_of_systemd(s: &mut Systemd) -> Result<()> {
    let (pod, container) = s.pod("reload")?;
    let before = processes(&s.scope(&pod)?);
    for verb in ["daemon-reload", "daemon-reexec"] {
        command::run("systemctl", &[verb], LIMIT)?.success().context(verb)?;
        // Answers again when it has come up.
        wait::until_ok("systemd", LIMIT, || {
            ensure!(show(&unit(&pod), "ActiveState")? == "active", "{} is not active", unit(&pod));
            Ok(())
        })?;
        ensure!(before.is_subset(&processes(&s.scope(&pod)?)), "{verb} moved processes");
        ensure!(container.exec(&["echo", "there"])?.stdout == "there\n", "{verb} broke the container");
    }
    if !s.f.environment.handler.is_machine() {
        let own = s.scope(&pod)?.join("containers").join(&container.id).join("memory.max");
        ensure!(fs::read_to_string(own)?.trim() == MEMORY.to_string(), "the limit is gone");
    }
    Ok(())
}

fn a_scope_survives_the_daemon(s: &mut Systemd) -> Result<()> {
    let (pod, container) = s.pod("survivor")?;
    s.f.daemon.kill()?;
    ensure!(show(&unit(&pod), "ActiveState")? == "active", "the scope ended with the daemon");
    s.f.daemon.start_again()?;
    ensure!(container.exec(&["echo", "there"])?.stdout == "there\n", "the container is lost");
    Ok(())
}

fn a_removed_pod_leaves_no_unit(s: &mut Systemd) -> Result<()> {
    let (pod, _container) = s.pod("removed")?;
    let (unit, scope) = (unit(&pod), s.scope(&pod)?);
    pod.remove()?;
    ensure!(!scope.exists(), "{} is left", scope.display());
    // systemd learns of the empty cgroup by the kernel's notification.
    wait::until("the end of the scope", LIMIT, || Ok((show(&unit, "LoadState")? == "not-found").then_some(())))?;
    s.f.assert_nothing_left()
}

fn parents_of_the_other_driver_are_refused(s: &mut Systemd) -> Result<()> {
    let mut config = s.f.pod_config("cgroupfs");
    config.linux.get_or_insert_default().cgroup_parent = "/kubepods/pod1".into();
    let error = Pod::run(s.f.cri(), config, "").err().context("it runs")?;
    for word in ["/kubepods/pod1", "does not end with .slice", "cgroupDriver: systemd"] {
        ensure!(error.message.contains(word), "{word:?} is not in {error}");
    }
    s.f.assert_nothing_left()
}
