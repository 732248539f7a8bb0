//! A pod's whole life as people see it with crictl.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bulkhead_proto::cri;
use bulkhead_tests::cri::Cri;
use bulkhead_tests::crictl::Crictl;
use bulkhead_tests::fixture::Fixture;
use bulkhead_tests::pod::{Pod, Spec};
use bulkhead_tests::{logs, wait};
use serde_json::json;

bulkhead_tests::suite!(
    Fixture;
    a_pod_from_runp_to_rmp,
    every_verb_works_on_a_container,
    labels_and_annotations_come_back_unaltered,
    a_container_ends_with_its_exit_code,
    a_container_may_end_before_its_start_is_answered,
    stop_and_remove_may_be_repeated,
    removing_a_running_container_ends_it,
    removing_a_pod_ends_its_containers,
    a_log_that_is_rotated_loses_nothing,
    long_and_binary_lines_are_logged,
    many_pods_at_once_do_not_disturb_each_other,
    a_retried_run_joins_the_first,
    unknown_ids_are_not_found,
    verbs_that_are_not_built_say_so,
    version_and_status_are_what_a_kubelet_needs,
);

/// A container that answers signals and says that it runs.
const SERVICE: &str = "trap 'exit 7' TERM; echo running; while :; do sleep 0.1; done";

fn container_file(crictl: &Crictl, image: &str, script: &str) -> Result<String> {
    let content = json!({
        "metadata": { "name": "main" },
        "image": { "image": image },
        "command": ["sh", "-c", script],
        "log_path": "main_0.log",
        "linux": {},
    });
    crictl.file("container.json", &content)
}

fn a_pod_from_runp_to_rmp(f: &mut Fixture) -> Result<()> {
    let crictl = f.crictl()?;
    let config = f.pod_config("life");
    let file = crictl.pod_file(&config)?;
    let id = crictl.ok(&["runp", &file])?;
    let pods = crictl.pods()?;
    ensure!(pods.len() == 1 && pods[0].id == id && pods[0].state == "SANDBOX_READY", "{pods:?}");
    ensure!(pods[0].metadata.name == "life", "{pods:?}");
    let inspected = crictl.json(&["inspectp", &id])?;
    let address = inspected["status"]["network"]["ip"].as_str().unwrap_or_default().to_owned();
    ensure!(address.starts_with(&format!("{}.", f.network.prefix)), "address {address:?}");
    ensure!(inspected["status"]["state"] == "SANDBOX_READY", "{inspected:#}");
    crictl.ok(&["stopp", &id])?;
    ensure!(crictl.pods()?[0].state == "SANDBOX_NOTREADY", "state after stopp");
    ensure!(f.network.taken_addresses().is_empty(), "stopp gives the address back");
    crictl.ok(&["rmp", &id])?;
    ensure!(crictl.pods()?.is_empty(), "pods after rmp");
    Ok(())
}

fn every_verb_works_on_a_container(f: &mut Fixture) -> Result<()> {
    let crictl = f.crictl()?;
    let config = f.pod_config("verbs");
    let pod_file = crictl.pod_file(&config)?;
    let pod = crictl.ok(&["runp", &pod_file])?;
    let file = container_file(&crictl, &f.image("busybox")?, SERVICE)?;
    let id = crictl.ok(&["create", &pod, &file, &pod_file])?;
    ensure!(crictl.containers()?[0].state == "CONTAINER_CREATED", "{:?}", crictl.containers()?);
    crictl.ok(&["start", &id])?;
    let listed = crictl.containers()?;
    ensure!(listed.len() == 1 && listed[0].id == id && listed[0].state == "CONTAINER_RUNNING", "{listed:?}");
    ensure!(listed[0].pod_sandbox_id == pod && listed[0].metadata.name == "main", "{listed:?}");
    let inspected = crictl.json(&["inspect", &id])?;
    ensure!(inspected["status"]["state"] == "CONTAINER_RUNNING", "{inspected:#}");
    ensure!(inspected["status"]["logPath"] == format!("{}/main_0.log", config.log_directory), "{inspected:#}");
    wait::until("the log", Duration::from_secs(20), || Ok((crictl.ok(&["logs", &id])? == "running").then_some(())))?;
    let executed = crictl.ok(&["exec", "--sync", &id, "sh", "-c", "echo $((6 * 7)); hostname"])?;
    ensure!(executed == "42\nverbs", "exec printed {executed:?}");
    let failed = crictl.run(&["exec", "--sync", &id, "sh", "-c", "echo to stderr >&2; exit 3"])?;
    ensure!(!failed.status.success() && failed.stderr.contains("to stderr"), "{failed}");
    let stats = crictl.json(&["stats", "-o", "json", "--id", &id])?;
    ensure!(number(&stats["stats"][0]["memory"]["workingSetBytes"]["value"]) > 0, "{stats:#}");
    let stats = crictl.json(&["statsp", "-o", "json", "--id", &pod])?;
    ensure!(number(&stats["stats"][0]["linux"]["memory"]["workingSetBytes"]["value"]) > 0, "{stats:#}");
    let update = crictl.run(&["update", "--memory", "67108864", &id])?;
    if f.environment.needs_controllers(&["memory"]).is_ok() {
        update.success()?;
        let limit = crictl.ok(&["exec", "--sync", &id, "cat", "/sys/fs/cgroup/memory.max"])?;
        ensure!(limit == "67108864", "memory.max after update is {limit}");
    } else {
        let said = update.failure()?;
        ensure!(said.contains("controller") && said.contains("memory.max"), "{said}");
    }
    crictl.ok(&["stop", "--timeout", "10", &id])?;
    let inspected = crictl.json(&["inspect", &id])?;
    ensure!(inspected["status"]["state"] == "CONTAINER_EXITED", "{inspected:#}");
    ensure!(inspected["status"]["exitCode"] == 7, "the trap's exit code: {inspected:#}");
    ensure!(crictl.ok(&["logs", &id])? == "running", "the log stays after the end");
    crictl.ok(&["rm", &id])?;
    ensure!(crictl.containers()?.is_empty(), "containers after rm");
    crictl.ok(&["stopp", &pod])?;
    crictl.ok(&["rmp", &pod])?;
    Ok(())
}

/// crictl prints 64-bit numbers as text.
fn number(value: &serde_json::Value) -> u64 {
    value.as_str().and_then(|text| text.parse().ok()).or_else(|| value.as_u64()).unwrap_or(0)
}

fn labels_and_annotations_come_back_unaltered(f: &mut Fixture) -> Result<()> {
    let mut config = f.pod_config("labels");
    config.labels.insert("app.kubernetes.io/name".into(), "a \"quoted\" näme".into());
    config.annotations.insert("example.org/json".into(), "{\"a\": [1, 2]}\n".into());
    let pod = Pod::run(f.cri(), config.clone(), "")?;
    let status = pod.status()?;
    ensure!(status.labels == config.labels && status.annotations == config.annotations, "{status:?}");
    ensure!(status.runtime_handler == f.environment.handler.name(), "{status:?}");
    let options = status.linux.and_then(|l| l.namespaces).and_then(|n| n.options).context("no namespaces.options")?;
    ensure!(options.network == cri::NamespaceMode::Pod as i32, "{options:?}");
    let spec = f.shell("true")?.with(|c| {
        c.labels.insert("tier".into(), "front".into());
        c.annotations.insert("note".into(), "kept\tas it is".into());
    });
    let status = pod.create(&spec)?.status()?;
    ensure!(status.labels == spec.0.labels && status.annotations == spec.0.annotations, "{status:?}");
    let filter = cri::PodSandboxFilter {
        label_selector: [("app.kubernetes.io/name".to_owned(), "another".to_owned())].into(),
        ..Default::default()
    };
    let found = f.cri().list_pod_sandbox(cri::ListPodSandboxRequest { filter: Some(filter) })?.items;
    ensure!(found.is_empty(), "the label selector lets through {found:?}");
    Ok(())
}

fn a_container_ends_with_its_exit_code(f: &mut Fixture) -> Result<()> {
    let pod = f.pod("codes")?;
    for (script, code, reason) in
        [("exit 0", 0, "Completed"), ("exit 42", 42, "Error"), ("sh -c 'kill -9 $$'; exit $?", 137, "Error")]
    {
        let outcome = pod.once(&f.shell(script)?)?;
        ensure!(outcome.code == code, "{script}: {outcome:?}");
        ensure!(outcome.status.reason == reason, "{script}: {:?}", outcome.status);
        let status = &outcome.status;
        ensure!(status.created_at > 0 && status.started_at >= status.created_at, "{script}: {status:?}");
        ensure!(status.finished_at >= status.started_at, "{script}: {status:?}");
    }
    let outcome = pod.once(&f.shell("echo to stdout; echo to stderr >&2; printf 'no end'")?)?;
    ensure!(outcome.stdout.starts_with("to stdout\nno end") && outcome.stderr == "to stderr\n", "{outcome:?}");
    Ok(())
}

fn a_container_may_end_before_its_start_is_answered(f: &mut Fixture) -> Result<()> {
    let pod = f.pod("short")?;
    for round in 0..12 {
        let outcome =
            pod.once(&Spec::new(&f.image("busybox")?, &["true"])).with_context(|| format!("round {round}"))?;
        ensure!(outcome.code == 0 && outcome.status.started_at > 0, "round {round}: {outcome:?}");
    }
    Ok(())
}

fn stop_and_remove_may_be_repeated(f: &mut Fixture) -> Result<()> {
    let pod = f.pod("twice")?;
    let container = pod.start(&f.shell(SERVICE)?)?;
    for _ in 0..2 {
        container.stop(5)?;
    }
    for _ in 0..2 {
        container.remove()?;
    }
    let stop = cri::StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
    let remove = cri::RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
    for _ in 0..2 {
        f.cri().stop_pod_sandbox(stop.clone())?;
    }
    for _ in 0..2 {
        f.cri().remove_pod_sandbox(remove.clone())?;
    }
    let gone = "0123456789abcdef0123456789abcdef".to_owned();
    f.cri().stop_container(cri::StopContainerRequest { container_id: gone.clone(), timeout: 0 })?;
    f.cri().remove_container(cri::RemoveContainerRequest { container_id: gone })?;
    Ok(())
}

fn removing_a_pod_ends_its_containers(f: &mut Fixture) -> Result<()> {
    let pod = f.pod("forced")?;
    let first = pod.start(&f.shell(SERVICE)?.named("first"))?;
    pod.start(&f.shell("sleep 1000")?.named("second"))?;
    first.says("running")?;
    f.cri().stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() })?;
    for container in f.cri().containers()? {
        ensure!(container.state == cri::ContainerState::ContainerExited as i32, "{container:?}");
    }
    f.cri().remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: pod.id })?;
    ensure!(f.cri().containers()?.is_empty(), "containers of a removed pod");
    f.assert_nothing_left()
}

fn removing_a_running_container_ends_it(f: &mut Fixture) -> Result<()> {
    let pod = f.pod("running")?;
    pod.once(&f.shell("true")?.named("earlier"))?;
    let before = processes(f, &pod)?;
    let container = pod.start(&f.shell(SERVICE)?)?;
    container.says("running")?;
    ensure!(processes(f, &pod)? > before, "its processes are not counted");
    container.remove()?;
    ensure!(f.cri().containers()?.is_empty(), "it is still listed");
    ensure!(processes(f, &pod)? == before, "its processes are still there");
    Ok(())
}

/// Processes of a pod's containers and what holds its namespaces.
fn processes(f: &Fixture, pod: &Pod) -> Result<u64> {
    let request = cri::PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
    let stats = f.cri().pod_sandbox_stats(request)?.stats.and_then(|stats| stats.linux);
    let count = stats.and_then(|linux| linux.process).and_then(|process| process.process_count);
    Ok(count.context("the pod's stats have no process count")?.value)
}

fn a_log_that_is_rotated_loses_nothing(f: &mut Fixture) -> Result<()> {
    let pod = f.pod("rotated")?;
    let script = "n=0; while [ $n -lt 400 ]; do echo line $n; n=$((n+1)); sleep 0.005; done";
    let container = pod.start(&f.shell(script)?)?;
    let mut parts = Vec::new();
    for part in 0..3 {
        container.says(&format!("line {}", 60 + part * 80))?;
        let old = container.log.with_extension(format!("{part}"));
        std::fs::rename(&container.log, &old)?;
        f.cri().reopen_container_log(cri::ReopenContainerLogRequest { container_id: container.id.clone() })?;
        parts.push(old);
    }
    ensure!(container.finish()?.code == 0, "{:?}", container.status()?);
    parts.push(container.log);
    let logs = parts.iter().map(|part| Ok(logs::text_of(&logs::parse(&std::fs::read_to_string(part)?)?, "stdout")));
    let all = logs.collect::<Result<Vec<String>>>()?;
    ensure!(all.iter().all(|log| !log.is_empty()), "a part is empty");
    let wanted: String = (0..400).map(|n| format!("line {n}\n")).collect();
    ensure!(all.concat() == wanted, "lines are lost or doubled: {all:?}");
    Ok(())
}

fn long_and_binary_lines_are_logged(f: &mut Fixture) -> Result<()> {
    let pod = f.pod("lines")?;
    let script = "head -c 200000 /dev/zero | tr '\\0' x; echo; printf 'a\\000\\377b\\r\\n'; echo; echo end";
    let container = pod.start(&f.shell(script)?)?;
    container.ended(Duration::from_secs(30))?;
    let log = std::fs::read(&container.log)?;
    let longest = log.split(|byte| *byte == b'\n').map(<[u8]>::len).max().unwrap_or(0);
    ensure!(longest <= 17 * 1024, "a line of the log has {longest} bytes; readers take 16 KiB and the prefix");
    let text = |line: &[u8]| line.splitn(4, |byte| *byte == b' ').nth(3).map(<[u8]>::to_vec).unwrap_or_default();
    let lines: Vec<Vec<u8>> = log.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(text).collect();
    ensure!(
        lines.iter().map(|line| line.iter().filter(|b| **b == b'x').count()).sum::<usize>() == 200_000,
        "bytes are lost"
    );
    ensure!(lines.ends_with(&[b"a\0\xffb\r".to_vec(), Vec::new(), b"end".to_vec()]), "{:?}", &lines[lines.len() - 3..]);
    Ok(())
}

fn many_pods_at_once_do_not_disturb_each_other(f: &mut Fixture) -> Result<()> {
    let image = f.image("busybox")?;
    let socket = f.daemon.settings.socket();
    let threads: Vec<_> = (0..5)
        .map(|number| {
            let config = f.pod_config(&format!("many-{number}"));
            let (socket, image) = (socket.clone(), image.clone());
            std::thread::spawn(move || -> Result<(String, String)> {
                let pod = Pod::run(&Rc::new(Cri::new(&socket)?), config, "")?;
                let outcome = pod.once(&Spec::shell(&image, "hostname"))?;
                Ok((pod.address()?, outcome.stdout))
            })
        })
        .collect();
    let mut addresses = BTreeSet::new();
    for (number, thread) in threads.into_iter().enumerate() {
        let (address, said) = thread.join().map_err(|_| anyhow::anyhow!("a pod's thread panicked"))??;
        ensure!(said == format!("many-{number}\n"), "pod {number} said {said:?}");
        ensure!(addresses.insert(address), "two pods have one address: {addresses:?}");
    }
    Ok(())
}

fn a_retried_run_joins_the_first(f: &mut Fixture) -> Result<()> {
    let config = f.pod_config("joined");
    let request = cri::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
    let socket = f.daemon.settings.socket();
    let retried = request.clone();
    let other = std::thread::spawn(move || -> Result<String> {
        Ok(Cri::new(&socket)?.run_pod_sandbox(retried)?.pod_sandbox_id)
    });
    let mine = f.cri().run_pod_sandbox(request)?.pod_sandbox_id;
    let other = other.join().map_err(|_| anyhow::anyhow!("the other request panicked"))??;
    ensure!(mine == other && f.cri().pods()?.len() == 1, "two pods of one name: {mine} and {other}");
    Ok(())
}

fn unknown_ids_are_not_found(f: &mut Fixture) -> Result<()> {
    let id = "feedfacefeedfacefeedfacefeedface";
    let pod = f.cri().pod_sandbox_status(cri::PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false });
    let container = f.cri().container_status(cri::ContainerStatusRequest { container_id: id.into(), verbose: false });
    for error in [pod.err(), container.err()] {
        let error = error.context("an unknown id has a status")?;
        ensure!(error.code == tonic::Code::NotFound && error.message.contains(id), "{error}");
    }
    Ok(())
}

fn verbs_that_are_not_built_say_so(f: &mut Fixture) -> Result<()> {
    let error = f.cri().checkpoint_container(cri::CheckpointContainerRequest::default()).err();
    let error = error.context("CheckpointContainer succeeded")?;
    ensure!(error.code == tonic::Code::Unimplemented, "{error}");
    Ok(())
}

fn version_and_status_are_what_a_kubelet_needs(f: &mut Fixture) -> Result<()> {
    let version = f.cri().version(cri::VersionRequest::default())?;
    ensure!(version.version == "0.1.0" && version.runtime_api_version == "v1", "{version:?}");
    ensure!(version.runtime_version.split('.').count() == 3, "no semantic version: {version:?}");
    let status = f.cri().status(cri::StatusRequest { verbose: true })?;
    let conditions = status.status.clone().context("no status")?.conditions;
    for kind in ["RuntimeReady", "NetworkReady"] {
        let condition = conditions.iter().find(|c| c.r#type == kind).with_context(|| format!("no {kind}"))?;
        ensure!(condition.status, "{condition:?}");
    }
    ensure!(status.runtime_handlers.iter().any(|handler| handler.name == "qemu"), "{status:?}");
    f.cri().runtime_config(cri::RuntimeConfigRequest::default())?;
    Ok(())
}
