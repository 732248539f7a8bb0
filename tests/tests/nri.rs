//! NRI: what plugins of the node are told, and what they may change, with plugins on the reference's own stub.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bulkhead_proto::cri;
use bulkhead_tests::environment::Environment;
use bulkhead_tests::fixture::Fixture;
use bulkhead_tests::images::busybox;
use bulkhead_tests::images::catalogue::Catalogue;
use bulkhead_tests::nri::{Plugin, events_of};
use bulkhead_tests::pod::{Pod, Spec};
use bulkhead_tests::skip;
use bulkhead_tests::suite::{Skipped, SuiteFixture};
use bulkhead_tests::wait;
use serde_json::{Value, json};

/// Every event but the validation of what plugins want: a plugin that asked for that can hold a container up.
const EVENTS: &str = "pod,CreateContainer,PostCreateContainer,StartContainer,PostStartContainer,UpdateContainer,\
                      PostUpdateContainer,StopContainer,RemoveContainer";

/// A daemon that serves plugins.
struct Nri {
    f: Fixture,
    programs: PathBuf,
}

impl SuiteFixture for Nri {
    fn start(environment: &Environment) -> Result<Self> {
        let Some(programs) = environment.nri.clone() else {
            return Err(Skipped::because("there are no NRI plugins: scripts/nri.sh builds them with Go").into());
        };
        let busybox = busybox::find()?;
        let f = Fixture::start_with(environment, |registry, settings| {
            let directory = settings.directory.join("nri");
            fs::create_dir_all(directory.join("plugins"))?;
            fs::create_dir_all(directory.join("conf.d"))?;
            fs::create_dir_all(directory.join("cdi"))?;
            settings.more = format!(
                "[cdi]\nspec_dirs = [{:?}]\n\n[nri]\nenabled = true\nsocket = {:?}\nplugin_path = {:?}\nplugin_config_path = {:?}\n",
                directory.join("cdi"),
                directory.join("nri.sock"),
                directory.join("plugins"),
                directory.join("conf.d")
            );
            Catalogue::new(&busybox)?.push(&registry.target())
        })?;
        Ok(Self { f, programs })
    }

    fn after_case(&mut self, failed: bool) -> Result<()> {
        self.f.after_case(failed)
    }

    fn finish(self) -> Result<()> {
        self.f.finish()
    }
}

bulkhead_tests::suite!(
    Nri;
    a_plugin_sees_a_pods_life_in_order,
    a_plugin_that_connects_later_is_told_of_what_there_is,
    events_that_a_plugin_does_not_want_are_not_sent,
    what_a_plugin_sets_arrives,
    a_seccomp_policy_of_a_plugin_confines,
    plugins_are_asked_in_order_and_see_each_others_changes,
    two_plugins_that_set_the_same_are_a_conflict,
    devices_are_given_as_the_cri_would,
    mounts_obey_what_the_cri_may_ask,
    what_cannot_be_applied_is_refused_by_name,
    a_plugin_can_refuse,
    a_validator_can_reject,
    limits_are_changed_by_plugins,
    other_containers_are_changed_by_plugins,
    a_plugin_that_hangs_is_closed,
    garbage_on_the_socket_harms_nobody,
    a_plugin_survives_the_daemon,
    installed_plugins_are_started,
    the_references_logger_sees_a_pod,
    the_references_device_injector_injects,
);

impl Nri {
    fn socket(&self) -> PathBuf {
        self.f.path("nri/nri.sock")
    }

    fn plugin(&self, id: &str) -> Result<Plugin> {
        self.plugin_for(id, EVENTS)
    }

    fn plugin_for(&self, id: &str, events: &str) -> Result<Plugin> {
        let directory = tempfile::Builder::new().prefix("plugin").tempdir_in(self.f.path("nri"))?;
        Plugin::start(&self.programs, &directory.keep(), &self.socket(), id, events)
    }

    /// A plugin of the reference itself.
    fn reference(&self, name: &str, index: &str) -> Result<Plugin> {
        let program = self.programs.join(name);
        if !program.exists() {
            skip!("{name} could not be built: its sources are in the reference's repository only (scripts/nri.sh)");
        }
        let directory = tempfile::Builder::new().prefix(name).tempdir_in(self.f.path("nri"))?.keep();
        let mut command = Command::new(program);
        command.args(["-idx", index]).env("NRI_PLUGIN_NAME", name);
        if name == "logger" {
            command.arg("-socket-path").arg(self.socket()).arg("-add-env").arg("LOGGED_BY");
        } else {
            // It knows no option for the socket: a connection is handed to it instead.
            let socket = UnixStream::connect(self.socket())?;
            command = handed(command, socket);
        }
        let log = directory.join("plugin.log");
        let plugin = Plugin::spawn(command, log)?;
        let served = format!("NRI plugin is served plugin={index}-");
        wait::until("the plugin's registration", Duration::from_secs(20), || {
            Ok(fs::read_to_string(self.f.daemon.log())?.contains(&served).then_some(()))
        })?;
        Ok(plugin)
    }

    /// `sh -c SCRIPT` with an order for the plugin with this index.
    fn ordered(&self, script: &str, what: &str, order: &Value) -> Result<Spec> {
        Ok(with_order(self.f.shell(script)?, what, order))
    }
}

/// The connection is the plugin's standard input.
fn handed(command: Command, socket: UnixStream) -> Command {
    let mut command = command;
    command.env("NRI_PLUGIN_SOCKET", "0").stdin(std::os::fd::OwnedFd::from(socket));
    command
}

fn with_order(spec: Spec, what: &str, order: &Value) -> Spec {
    let text = order.as_str().map_or_else(|| order.to_string(), str::to_owned);
    spec.with(|config| drop(config.annotations.insert(format!("nri.test/{what}"), text)))
}

fn refused<T: std::fmt::Debug>(result: Result<T, bulkhead_tests::cri::CallError>) -> Result<String> {
    match result {
        Ok(done) => anyhow::bail!("not refused: {done:?}"),
        Err(error) => Ok(error.to_string()),
    }
}

fn limits(memory: i64) -> cri::LinuxContainerResources {
    cri::LinuxContainerResources { memory_limit_in_bytes: memory, ..Default::default() }
}

fn a_plugin_sees_a_pods_life_in_order(n: &mut Nri) -> Result<()> {
    let plugin = n.plugin("10-life")?;
    let pod = n.f.pod("life")?;
    let container = pod.start(&n.f.shell("exec sleep 1000")?.env("A", "1"))?;
    let request = cri::UpdateContainerResourcesRequest {
        container_id: container.id.clone(),
        linux: Some(cri::LinuxContainerResources { oom_score_adj: 500, ..Default::default() }),
        ..Default::default()
    };
    n.f.cri().update_container_resources(request)?;
    let request = cri::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.id.clone(),
        resources: Some(cri::LinuxContainerResources { cpu_shares: 512, ..Default::default() }),
        ..Default::default()
    };
    n.f.cri().update_pod_sandbox_resources(request)?;
    container.stop(0)?;
    container.remove()?;
    pod.remove()?;
    let names = plugin.names_of(&pod.id)?;
    let expected = [
        "RunPodSandbox",
        "CreateContainer",
        "PostCreateContainer",
        "StartContainer",
        "PostStartContainer",
        "UpdateContainer",
        "PostUpdateContainer",
        "UpdatePodSandbox",
        "PostUpdatePodSandbox",
        "StopContainer",
        "RemoveContainer",
        "StopPodSandbox",
        "RemovePodSandbox",
    ];
    ensure!(names == expected, "{names:#?}");
    let told = plugin.told("Configure")?;
    ensure!(told["runtime"] == "bulkhead" && told["nri"].as_str().is_some_and(|v| v.starts_with("v0.12.")), "{told}");
    let told = plugin.told("RunPodSandbox")?["pod"].clone();
    ensure!(
        told["name"] == "life"
            && told["namespace"] == "tests"
            && told["uid"] == pod.config.metadata.as_ref().map(|m| m.uid.clone()).unwrap_or_default(),
        "{told}"
    );
    ensure!(told["runtimeHandler"] == n.f.environment.handler.name(), "{told}");
    ensure!(told["ips"].as_array().is_some_and(|ips| !ips.is_empty()), "{told}");
    ensure!(told["linux"]["cgroupParent"] == n.f.cgroup, "{told}");
    let network = told["linux"]["namespaces"][0]["path"].as_str().unwrap_or_default().to_owned();
    ensure!(network.starts_with("/run/netns/") && network.contains(&pod.id), "{told}");
    let told = plugin.told("CreateContainer")?["container"].clone();
    ensure!(told["name"] == "main" && told["podSandboxId"] == pod.id && told["id"] == container.id, "{told}");
    ensure!(told["args"] == json!(["sh", "-c", "exec sleep 1000"]), "{told}");
    ensure!(told["env"].as_array().is_some_and(|env| env.contains(&json!("A=1"))), "{told}");
    let told = plugin.told("PostStartContainer")?["container"].clone();
    ensure!(told["state"] == "CONTAINER_RUNNING", "{told}");
    let has_pid = told["pid"].as_u64().is_some_and(|pid| pid > 1);
    ensure!(has_pid != n.f.environment.handler.is_machine(), "{told}");
    let told = plugin.told("StopContainer")?["container"].clone();
    ensure!(told["state"] == "CONTAINER_STOPPED" && told["exitCode"] == 137, "{told}");
    Ok(())
}

fn a_plugin_that_connects_later_is_told_of_what_there_is(n: &mut Nri) -> Result<()> {
    let pod = n.f.pod("before")?;
    let container = pod.start(&n.f.shell("exec sleep 1000")?)?;
    let plugin = n.plugin("10-late")?;
    let told = plugin.told("Synchronize")?;
    let ids = |list: &Value| list.as_array().into_iter().flatten().map(|one| one["id"].clone()).collect::<Vec<_>>();
    ensure!(ids(&told["pods"]).contains(&json!(pod.id)), "{told}");
    ensure!(ids(&told["containers"]) == [json!(container.id)], "{told}");
    ensure!(told["containers"][0]["state"] == "CONTAINER_RUNNING", "{told}");
    pod.remove()?;
    let names = plugin.names_of(&pod.id)?;
    ensure!(names == ["StopContainer", "StopPodSandbox", "RemoveContainer", "RemovePodSandbox"], "{names:?}");
    // Nobody had stopped it: StopPodSandbox did.
    let told = plugin.told("StopContainer")?["container"].clone();
    ensure!(told["state"] == "CONTAINER_STOPPED" && told["exitCode"] == 137, "{told}");
    Ok(())
}

fn events_that_a_plugin_does_not_want_are_not_sent(n: &mut Nri) -> Result<()> {
    let plugin = n.plugin_for("10-choosy", "RunPodSandbox,StopContainer")?;
    let pod = n.f.pod("choosy")?;
    pod.once(&n.f.shell("true")?)?;
    pod.remove()?;
    let names = plugin.names_of(&pod.id)?;
    ensure!(names == ["RunPodSandbox", "StopContainer"], "{names:?}");
    Ok(())
}

fn what_a_plugin_sets_arrives(n: &mut Nri) -> Result<()> {
    let _plugin = n.plugin("10-setter")?;
    let pod = n.f.pod("set")?;
    let adjust = json!({
        "annotations": { "set.by/plugin": "yes" },
        "env": [{ "key": "ADDED", "value": "a b" }, { "key": "-GONE" }, { "key": "CHANGED", "value": "new" }],
        "mounts": [{ "destination": "/memory", "type": "tmpfs", "options": ["size=64k", "mode=700", "nosuid"] }],
        "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": "77", "hard": "88" }],
        "linux": {
            "oomScoreAdj": { "value": "321" },
            "resources": { "memory": { "limit": { "value": "50331648" } }, "cpu": { "shares": { "value": "512" } },
                           "pids": { "limit": "99" } },
        },
    });
    let script = "echo $ADDED/$GONE/$CHANGED; ulimit -n; ulimit -H -n; cat /proc/self/oom_score_adj; \
                  stat -c %a /memory; df -k /memory | awk 'END { print $2 }'";
    let spec = n.ordered(script, "adjust-10", &adjust)?.env("GONE", "1").env("CHANGED", "old");
    let outcome = pod.once(&spec)?;
    ensure!(outcome.stdout == "a b//new\n77\n88\n321\n700\n64\n", "{outcome:?}");
    let script = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max /sys/fs/cgroup/cpu.weight; exec sleep 1000";
    let container = pod.start(&n.ordered(script, "adjust-10", &adjust)?.named("limits"))?;
    let status = container.status()?;
    let told = status.resources.and_then(|resources| resources.linux).context("no limits in the status")?;
    ensure!(told.memory_limit_in_bytes == 48 << 20 && told.cpu_shares == 512, "{told:?}");
    if n.f.environment.handler.is_machine() {
        container.says("50331648\n")?;
        container.says("F 99")?;
    }
    let process = n.ordered("", "adjust-10", &json!({ "args": ["echo", "other words"] }))?.named("words");
    let outcome = pod.once(&process)?;
    ensure!(outcome.stdout == "other words\n", "{outcome:?}");
    Ok(())
}

fn a_seccomp_policy_of_a_plugin_confines(n: &mut Nri) -> Result<()> {
    let _plugin = n.plugin("10-seccomp")?;
    let pod = n.f.pod("seccomp")?;
    let rule = json!({ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": { "value": 95 } });
    let policy =
        json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [rule] });
    let outcome = pod.once(&n.ordered(
        "mkdir /x 2>&1; touch /y && echo made",
        "adjust-10",
        &json!({ "linux": { "seccompPolicy": policy } }),
    )?)?;
    ensure!(outcome.stdout.contains("not supported") && outcome.stdout.ends_with("made\n"), "{outcome:?}");
    let policy = json!({ "linux": { "seccompPolicy": { "defaultAction": "SCMP_ACT_FLY" } } });
    let text = refused(pod.create(&n.ordered("true", "adjust-10", &policy)?.named("bad")))?;
    ensure!(text.contains("10-seccomp") && text.contains("seccomp_policy") && text.contains("SCMP_ACT_FLY"), "{text}");
    Ok(())
}

fn plugins_are_asked_in_order_and_see_each_others_changes(n: &mut Nri) -> Result<()> {
    let second = n.plugin("20-second")?;
    let _first = n.plugin("10-first")?;
    let pod = n.f.pod("order")?;
    let spec = n.ordered("echo $A$B", "adjust-10", &json!({ "env": [{ "key": "A", "value": "1" }] }))?;
    let spec = with_order(
        spec,
        "adjust-20",
        &json!({ "env": [{ "key": "-A" }, { "key": "A", "value": "2" }, { "key": "B", "value": "3" }] }),
    );
    let outcome = pod.once(&spec)?;
    ensure!(outcome.stdout == "23\n", "{outcome:?}");
    let seen = second.told("CreateContainer")?["container"]["env"].clone();
    ensure!(seen.as_array().is_some_and(|env| env.contains(&json!("A=1"))), "{seen}");
    Ok(())
}

fn two_plugins_that_set_the_same_are_a_conflict(n: &mut Nri) -> Result<()> {
    let first = n.plugin("10-one")?;
    let _second = n.plugin("20-two")?;
    let pod = n.f.pod("conflict")?;
    let adjust = json!({ "env": [{ "key": "A", "value": "1" }] });
    let spec = with_order(n.ordered("true", "adjust-10", &adjust)?, "adjust-20", &adjust);
    let text = refused(pod.create(&spec))?;
    ensure!(text.contains("20-two") && text.contains("10-one") && text.contains("Env A"), "{text}");
    // Those who thought that there is a container now know better.
    let names = first.names_of(&pod.id)?;
    ensure!(names[1..] == ["CreateContainer", "StopContainer", "RemoveContainer"], "{names:?}");
    ensure!(pod.once(&n.f.shell("echo fine")?)?.stdout == "fine\n", "the pod is of no use any more");
    Ok(())
}

fn devices_are_given_as_the_cri_would(n: &mut Nri) -> Result<()> {
    let _plugin = n.plugin("10-devices")?;
    let pod = n.f.pod("devices")?;
    let device =
        json!({ "path": "/dev/nothing", "type": "c", "major": "1", "minor": "3", "fileMode": { "value": 438 } });
    let named = json!({ "CDIDevices": [{ "name": "nri.test/device=one" }] });
    let spec = n.ordered(
        "stat -c '%F %t:%T %a' /dev/nothing; echo x > /dev/nothing && echo written",
        "adjust-10",
        &json!({ "linux": { "devices": [device] } }),
    )?;
    if n.f.environment.handler.is_machine() {
        let text = refused(pod.create(&spec))?;
        ensure!(text.contains("10-devices") && text.contains("/dev/nothing") && text.contains("native"), "{text}");
        let text = refused(pod.create(&n.ordered("true", "adjust-10", &named)?))?;
        ensure!(text.contains("10-devices") && text.contains("nri.test/device=one"), "{text}");
        return Ok(());
    }
    let edits = json!({ "env": ["BY_NAME=yes"] });
    let specification = json!({ "cdiVersion": "0.6.0", "kind": "nri.test/device",
                                "devices": [{ "name": "one", "containerEdits": edits }] });
    fs::write(n.f.path("nri/cdi/test.json"), specification.to_string())?;
    let outcome = pod.once(&n.ordered("echo $BY_NAME", "adjust-10", &named)?.named("named"))?;
    ensure!(outcome.stdout == "yes\n", "{outcome:?}");
    let outcome = pod.once(&spec)?;
    ensure!(outcome.stdout == "character special file 1:3 666\nwritten\n", "{outcome:?}");
    Ok(())
}

fn mounts_obey_what_the_cri_may_ask(n: &mut Nri) -> Result<()> {
    let _plugin = n.plugin("10-mounts")?;
    let pod = n.f.pod("mounts")?;
    let source = n.f.path("nri/source");
    fs::create_dir_all(&source)?;
    fs::write(source.join("file"), "of the host\n")?;
    let mount = |options: Value| json!({ "mounts": [{ "destination": "/in", "type": "bind", "source": source, "options": options }] });
    let spec = n.ordered("cat /in/file; touch /in/x || echo read-only", "adjust-10", &mount(json!(["rbind", "ro"])))?;
    let outcome = pod.once(&spec)?;
    ensure!(outcome.stdout == "of the host\nread-only\n", "{outcome:?}");
    // The kubelet's own mount is replaced, or removed.
    let own = n.ordered("ls /in", "adjust-10", &json!({ "mounts": [{ "destination": "-/in" }] }))?;
    let outcome = pod.once(&own.mount(&source, "/in", false).named("gone"))?;
    ensure!(outcome.code != 0 && outcome.stdout.is_empty(), "{outcome:?}");
    let spec = n.ordered("true", "adjust-10", &mount(json!(["rbind", "rshared"])))?.named("shared");
    if n.f.environment.handler.is_machine() {
        let text = refused(pod.create(&spec))?;
        ensure!(text.contains("PROPAGATION_BIDIRECTIONAL") && text.contains("native"), "{text}");
    }
    fs::copy("/bin/true", source.join("program"))?;
    let spec = n.ordered("/in/program || echo forbidden", "adjust-10", &mount(json!(["rbind", "noexec", "nosuid"])))?;
    let outcome = pod.once(&spec.named("noexec"))?;
    ensure!(outcome.stdout == "forbidden\n" && outcome.stderr.contains("denied"), "{outcome:?}");
    let spec = n.ordered("true", "adjust-10", &mount(json!(["bind", "noatime"])))?.named("option");
    let text = refused(pod.create(&spec))?;
    ensure!(text.contains("10-mounts") && text.contains("\"noatime\"") && text.contains("/in"), "{text}");
    Ok(())
}

fn what_cannot_be_applied_is_refused_by_name(n: &mut Nri) -> Result<()> {
    let _plugin = n.plugin("10-wishes")?;
    let pod = n.f.pod("wishes")?;
    let linux = |field: &str, value: Value| json!({ "linux": { field: value } });
    for (field, order) in [
        ("hooks.poststart", json!({ "hooks": { "poststart": [{ "path": "/bin/true" }] } })),
        ("linux.cgroups_path", linux("cgroupsPath", json!("/x"))),
        ("linux.namespaces", linux("namespaces", json!([{ "type": "network", "path": "/x" }]))),
        ("linux.io_priority", linux("ioPriority", json!({ "class": "IOPRIO_CLASS_RT" }))),
        ("linux.scheduler", linux("scheduler", json!({ "policy": "SCHED_FIFO" }))),
        ("linux.net_devices", linux("netDevices", json!({ "eth1": { "name": "eth1" } }))),
        ("linux.memory_policy", linux("memoryPolicy", json!({ "mode": "MPOL_BIND", "nodes": "0" }))),
        ("resources.rdt_class", linux("resources", json!({ "rdtClass": { "value": "x" } }))),
    ] {
        let text = refused(pod.create(&n.ordered("true", "adjust-10", &order)?))?;
        ensure!(text.contains("10-wishes") && text.contains(field), "{field}: {text}");
    }
    Ok(())
}

fn a_plugin_can_refuse(n: &mut Nri) -> Result<()> {
    let plugin = n.plugin("10-no")?;
    let mut config = n.f.pod_config("unwanted");
    config.annotations.insert("nri.test/fail-10".into(), "RunPodSandbox: not here".into());
    let text = refused(Pod::run(n.f.cri(), config, ""))?;
    ensure!(text.contains("10-no") && text.contains("not here"), "{text}");
    ensure!(
        n.f.cri().pods()?.iter().all(|pod| pod.metadata.as_ref().is_none_or(|m| m.name != "unwanted")),
        "it is listed"
    );
    let told = plugin.told("RemovePodSandbox")?;
    ensure!(told["pod"]["name"] == "unwanted", "{told}");
    let pod = n.f.pod("refusing")?;
    let text = refused(pod.create(&n.ordered("true", "fail-10", &json!("CreateContainer: no thanks"))?))?;
    ensure!(text.contains("10-no") && text.contains("no thanks"), "{text}");
    let container = pod.create(&n.ordered("true", "fail-10", &json!("StartContainer: not now"))?)?;
    let text = refused(container.start())?;
    ensure!(text.contains("10-no") && text.contains("not now"), "{text}");
    container.remove()?;
    Ok(())
}

fn a_validator_can_reject(n: &mut Nri) -> Result<()> {
    let _setter = n.plugin("10-setter")?;
    let validator = n.plugin_for("20-validator", "all")?;
    let pod = n.f.pod("validated")?;
    let adjust = json!({ "env": [{ "key": "A", "value": "1" }] });
    let spec = n.ordered("true", "adjust-10", &adjust)?;
    let text = refused(pod.create(&with_order(spec, "reject-20", &json!("A is mine"))))?;
    ensure!(text.contains("20-validator") && text.contains("A is mine"), "{text}");
    let request = validator.told("ValidateContainerAdjustment")?["request"].clone();
    ensure!(request["adjust"]["env"][0]["key"] == "A", "{request}");
    let (_, owners) = request["owners"]["owners"].as_object().and_then(|all| all.iter().next()).context("no owners")?;
    ensure!(owners["compound"]["6"]["owners"]["A"] == "10-setter", "{request}");
    ensure!(request["plugins"].as_array().is_some_and(|all| all.len() == 2), "{request}");
    Ok(())
}

fn limits_are_changed_by_plugins(n: &mut Nri) -> Result<()> {
    n.f.environment.needs_controllers(&["memory", "cpu"])?;
    let _plugin = n.plugin("10-limits")?;
    let pod = n.f.pod("limits")?;
    let order = json!({ "memory": { "limit": { "value": "67108864" } } });
    let container = pod.start(&n.ordered("exec sleep 1000", "resources-10", &order)?)?;
    let request = cri::UpdateContainerResourcesRequest {
        container_id: container.id.clone(),
        linux: Some(cri::LinuxContainerResources { cpu_shares: 300, ..limits(32 << 20) }),
        ..Default::default()
    };
    n.f.cri().update_container_resources(request)?;
    let now = container.status()?.resources.and_then(|resources| resources.linux).context("no limits")?;
    ensure!(now.memory_limit_in_bytes == 64 << 20 && now.cpu_shares == 300, "{now:?}");
    Ok(())
}

fn other_containers_are_changed_by_plugins(n: &mut Nri) -> Result<()> {
    n.f.environment.needs_controllers(&["memory"])?;
    let plugin = n.plugin("10-balancer")?;
    let pod = n.f.pod("balanced")?;
    let first = pod.start(&n.f.shell("exec sleep 1000")?.named("first"))?;
    let memory = |container: &bulkhead_tests::pod::Container| -> Result<i64> {
        let linux = container.status()?.resources.and_then(|resources| resources.linux);
        Ok(linux.map_or(0, |linux| linux.memory_limit_in_bytes))
    };
    let update = |bytes: &str, id: &str| json!({ "containerId": id, "linux": { "resources": { "memory": { "limit": { "value": bytes } } } } });
    let order = json!([update("33554432", &first.id)]);
    pod.start(&n.ordered("exec sleep 1000", "updates-10", &order)?.named("second"))?;
    ensure!(memory(&first)? == 32 << 20, "{}", memory(&first)?);
    // By itself, and one that does not exist among them.
    let order = json!([update("50331648", &first.id), update("1", "nobody")]);
    pod.start(&n.ordered("exec sleep 1000", "request-10", &order)?.named("third"))?;
    let told = plugin.told("UpdateContainers")?;
    ensure!(told["failed"] == json!(["nobody"]) && told["error"].is_null(), "{told}");
    ensure!(memory(&first)? == 48 << 20, "{}", memory(&first)?);
    Ok(())
}

fn a_plugin_that_hangs_is_closed(n: &mut Nri) -> Result<()> {
    let mut hanging = n.plugin("10-hanging")?;
    let other = n.plugin("20-other")?;
    let pod = n.f.pod("patient")?;
    hanging.freeze()?;
    let started = Instant::now();
    let container = pod.create(&n.f.shell("true")?)?;
    let took = started.elapsed();
    ensure!(took >= Duration::from_secs(2), "it was not asked: {took:?}");
    let started = Instant::now();
    container.start()?;
    container.finish()?;
    container.remove()?;
    ensure!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    ensure!(other.names_of(&pod.id)?.contains(&"RemoveContainer".to_owned()), "{:?}", other.names_of(&pod.id)?);
    let log = fs::read_to_string(n.f.daemon.log())?;
    ensure!(log.contains("closing its connection") && log.contains("10-hanging"), "the log says nothing of it");
    // One that answers some events and never another.
    let mut stuck = n.plugin("30-stuck")?;
    pod.once(&n.ordered("true", "hang-30", &json!("CreateContainer"))?.named("stuck"))?;
    stuck.ends()
}

fn garbage_on_the_socket_harms_nobody(n: &mut Nri) -> Result<()> {
    use std::io::Read;
    let closed = |bytes: &[u8]| -> Result<()> {
        let mut socket = UnixStream::connect(n.socket())?;
        socket.set_read_timeout(Some(Duration::from_secs(15)))?;
        socket.write_all(bytes)?;
        let mut rest = Vec::new();
        match socket.read_to_end(&mut rest) {
            Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => Err(error.into()),
            _ => Ok(()),
        }
    };
    // A frame of 4 GiB, one of a connection that there is not, and one that is no ttrpc: the last two never register.
    closed(&[0, 0, 0, 2, 0xff, 0xff, 0xff, 0xff])?;
    closed(&[0, 0, 0, 9, 0, 0, 0, 1, 7])?;
    closed(b"\0\0\0\x02\0\0\0\x10nothing of sense")?;
    let plugin = n.plugin("10-sane")?;
    let pod = n.f.pod("sane")?;
    ensure!(plugin.names_of(&pod.id)? == ["RunPodSandbox"], "{:?}", plugin.names_of(&pod.id)?);
    let mode = fs::metadata(n.socket())?.permissions().mode();
    ensure!(mode & 0o077 == 0, "the socket has mode {mode:o}");
    Ok(())
}

fn a_plugin_survives_the_daemon(n: &mut Nri) -> Result<()> {
    let mut plugin = n.plugin("10-before")?;
    let pod = n.f.pod("surviving")?;
    let order = json!({ "env": [{ "key": "KEPT", "value": "1" }] });
    let container = pod.start(&n.ordered("exec sleep 1000", "adjust-10", &order)?)?;
    n.f.daemon.kill()?;
    plugin.ends()?;
    n.f.daemon.start_again()?;
    let plugin = n.plugin("10-after")?;
    let told = plugin.told("Synchronize")?;
    ensure!(told["containers"][0]["id"] == container.id, "{told}");
    let env = told["containers"][0]["env"].clone();
    ensure!(env.as_array().is_some_and(|env| env.contains(&json!("KEPT=1"))), "{told}");
    pod.remove()?;
    let names = plugin.names_of(&pod.id)?;
    ensure!(names == ["StopContainer", "StopPodSandbox", "RemoveContainer", "RemovePodSandbox"], "{names:?}");
    Ok(())
}

fn installed_plugins_are_started(n: &mut Nri) -> Result<()> {
    let (program, broken) = (n.f.path("nri/plugins/40-installed"), n.f.path("nri/plugins/50-broken"));
    let log = n.f.path("nri/installed.events");
    fs::copy(n.programs.join("plugin"), &program)?;
    fs::write(&broken, "#!/bin/sh\nexit 3\n")?;
    fs::set_permissions(&broken, fs::Permissions::from_mode(0o755))?;
    fs::write(n.f.path("nri/conf.d/installed.conf"), format!("{}\n", log.display()))?;
    n.f.daemon.stop()?;
    ensure!(!n.socket().exists(), "the socket stays although nobody listens");
    n.f.daemon.start_again()?;
    let pod = n.f.pod("installed")?;
    let events = events_of(&log)?;
    let told = |name: &str| events.iter().any(|event| event["event"] == name && event["plugin"] == "40-installed");
    ensure!(told("Synchronize") && told("RunPodSandbox"), "{events:?}");
    pod.remove()?;
    let text = fs::read_to_string(n.f.daemon.log())?;
    ensure!(text.contains("50-broken") && text.contains("is not served"), "the log says nothing of the broken one");
    for path in [&program, &broken] {
        fs::remove_file(path)?;
    }
    n.f.daemon.stop()?;
    n.f.daemon.start_again()
}

fn the_references_logger_sees_a_pod(n: &mut Nri) -> Result<()> {
    let logger = n.reference("logger", "10")?;
    let pod = n.f.pod("logged")?;
    let outcome = pod.once(&n.f.shell("echo $LOGGED_BY")?)?;
    ensure!(outcome.stdout.starts_with("logger-pid-"), "{outcome:?}");
    pod.remove()?;
    let text = fs::read_to_string(logger.log.with_extension("output"))?;
    let mut rest = text.as_str();
    for event in [
        "Synchronize: pods:",
        "RunPodSandbox: pod:",
        "CreateContainer: container:",
        "PostCreateContainer: container:",
        "StartContainer: container:",
        "PostStartContainer: container:",
        "StopContainer: container:",
        "RemoveContainer: container:",
        "StopPodSandbox: pod:",
        "RemovePodSandbox: pod:",
    ] {
        let at = rest.find(event).with_context(|| format!("{event} is not where it should be in:\n{text}"))?;
        rest = &rest[at..];
    }
    Ok(())
}

fn the_references_device_injector_injects(n: &mut Nri) -> Result<()> {
    let _injector = n.reference("device-injector", "10")?;
    let source = n.f.path("nri/injected");
    fs::create_dir_all(&source)?;
    fs::write(source.join("file"), "injected\n")?;
    let mut config = n.f.pod_config("injected");
    let mount = format!("- source: {}\n  destination: /in\n  type: bind\n  options: [bind, ro]\n", source.display());
    config.annotations.insert("mounts.noderesource.dev/container.main".into(), mount);
    if !n.f.environment.handler.is_machine() {
        let device = "- path: /dev/nothing\n  type: c\n  major: 1\n  minor: 3\n  file_mode: 438\n";
        config.annotations.insert("devices.noderesource.dev/container.main".into(), device.into());
    }
    let pod = Pod::run(n.f.cri(), config, "")?;
    let outcome = pod.once(&n.f.shell("cat /in/file; test -c /dev/nothing && echo device")?)?;
    let expected = if n.f.environment.handler.is_machine() { "injected\n" } else { "injected\ndevice\n" };
    ensure!(outcome.stdout == expected, "{outcome:?}");
    Ok(())
}
