//! Resource figures, metrics and the truth about memory: who was killed for it and who was not.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bulkhead_proto::cri;
use bulkhead_tests::environment::Handler;
use bulkhead_tests::fixture::Fixture;
use bulkhead_tests::leaks::host;
use bulkhead_tests::pod::{Container, Pod, Spec};
use bulkhead_tests::{http, wait};
use rustix::process::{Pid, Signal, kill_process};

bulkhead_tests::suite!(
    Fixture;
    a_container_has_every_figure,
    a_pod_counts_what_carries_it,
    a_pods_network_is_counted,
    lists_filters_and_streams_agree,
    an_ended_container_keeps_its_layer_only,
    a_pod_that_hangs_holds_nobody_up,
    metrics_keep_to_their_descriptors,
    crictl_shows_metrics,
    both_file_systems_are_told,
    a_container_tells_its_user,
    a_container_over_its_limit_is_oom_killed_alone,
    a_killed_container_is_not_oom_killed,
    a_guest_without_memory_tells_its_victim,
);

fn stats(f: &Fixture, container: &Container) -> Result<cri::ContainerStats> {
    let request = cri::ContainerStatsRequest { container_id: container.id.clone() };
    f.cri().container_stats(request)?.stats.context("no stats")
}

fn pod_stats(f: &Fixture, pod: &Pod) -> Result<cri::LinuxPodSandboxStats> {
    let request = cri::PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
    f.cri().pod_sandbox_stats(request)?.stats.and_then(|stats| stats.linux).context("no stats of Linux")
}

fn value(value: Option<cri::UInt64Value>) -> Result<u64> {
    Ok(value.context("a figure is missing")?.value)
}

/// Waits until the pod's figures satisfy `condition`: they follow what happens at their own pace.
fn wait_for<T>(what: &str, condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    wait::until(what, Duration::from_secs(180), condition)
}

const LIMIT: i64 = 64 << 20;

fn a_container_has_every_figure(f: &mut Fixture) -> Result<()> {
    f.environment.needs_machine("memory has a controller of its own in every guest, not on every host")?;
    let pod = f.pod("figures")?;
    let script = "dd if=/dev/zero of=/written bs=64k count=32 2>/dev/null; sync; echo ready; while :; do :; done";
    let container = pod.start(&f.shell(script)?.resources(|r| r.memory_limit_in_bytes = LIMIT))?;
    container.says("ready")?;
    let found = wait_for("a rate", || {
        let found = stats(f, &container)?;
        let rate = found.cpu.as_ref().and_then(|cpu| cpu.usage_nano_cores);
        let counted = found.writable_layer.as_ref().and_then(|layer| layer.used_bytes);
        Ok((rate.is_some_and(|rate| rate.value > 0) && counted.is_some_and(|c| c.value >= 2 << 20)).then_some(found))
    })?;
    let attributes = found.attributes.clone().context("no attributes")?;
    ensure!(attributes.id == container.id && attributes.metadata.is_some_and(|m| m.name == "main"), "{found:?}");
    let cpu = found.cpu.context("no CPU")?;
    ensure!(cpu.timestamp > 0 && value(cpu.usage_core_nano_seconds)? > 0 && cpu.psi.is_some(), "{cpu:?}");
    let memory = found.memory.context("no memory")?;
    let working_set = value(memory.working_set_bytes)?;
    ensure!(working_set > 0 && value(memory.usage_bytes)? >= working_set, "{memory:?}");
    ensure!(value(memory.available_bytes)? == u64::try_from(LIMIT)? - working_set, "{memory:?}");
    ensure!(value(memory.rss_bytes)? > 0 && value(memory.page_faults)? > 0, "{memory:?}");
    ensure!(memory.major_page_faults.is_some() && memory.psi.is_some() && memory.timestamp > 0, "{memory:?}");
    let layer = found.writable_layer.context("no writable layer")?;
    ensure!(value(layer.inodes_used)? >= 1 && layer.fs_id.is_some() && layer.timestamp > 0, "{layer:?}");
    ensure!(found.swap.is_some_and(|swap| swap.swap_usage_bytes.is_some()), "no swap");
    ensure!(found.io.is_some_and(|io| io.psi.is_some()), "no I/O");
    Ok(())
}

fn a_pod_counts_what_carries_it(f: &mut Fixture) -> Result<()> {
    f.environment.needs_machine("only a machine is more than its containers")?;
    let pod = f.pod("carried")?;
    let container = pod.start(&f.shell("echo up; while :; do :; done")?)?;
    container.says("up")?;
    let found = wait_for("a rate of the pod", || {
        let found = pod_stats(f, &pod)?;
        let rate = found.cpu.as_ref().and_then(|cpu| cpu.usage_nano_cores);
        Ok(rate.is_some_and(|rate| rate.value > 0).then_some(found))
    })?;
    ensure!(value(found.process.context("no processes")?.process_count)? > 0, "no processes");
    ensure!(found.containers.len() == 1, "{:?}", found.containers);
    let inside = &found.containers[0];
    ensure!(inside.attributes.as_ref().is_some_and(|attributes| attributes.id == container.id), "{inside:?}");
    // A guest's kernel, the monitor and the file server are memory that the container never sees.
    let inside = value(inside.memory.context("no memory of the container")?.working_set_bytes)?;
    let outside = value(found.memory.context("no memory of the pod")?.working_set_bytes)?;
    ensure!(outside > inside + (16 << 20), "the pod holds {outside} bytes, its container {inside}");
    let status =
        f.cri().pod_sandbox_status(cri::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true })?;
    ensure!(status.timestamp > 0 && status.containers_statuses.len() == 1, "{status:?}");
    ensure!(status.info.get("stats").is_some_and(|text| text.contains("agentReadAt")), "{:?}", status.info);
    Ok(())
}

fn a_pods_network_is_counted(f: &mut Fixture) -> Result<()> {
    let pod = f.pod("network")?;
    let web = pod.start(&Spec::new(&f.image("httpd")?, &[]))?;
    let interface = || -> Result<cri::NetworkInterfaceUsage> {
        pod_stats(f, &pod)?.network.and_then(|network| network.default_interface).context("no interface")
    };
    // A pod that does not answer in time has no figures yet.
    let before = wait_for("the interface", || Ok(interface().ok()))?;
    ensure!(before.name == "eth0" && before.rx_errors.is_some() && before.tx_errors.is_some(), "{before:?}");
    let address = format!("{}:80", pod.address()?);
    for _ in 0..20 {
        wait::until_ok("the web server", Duration::from_secs(20), || http::get(&address, "/"))?;
    }
    let (received, sent) = (value(before.rx_bytes)?, value(before.tx_bytes)?);
    wait_for("the pod's traffic", || {
        let after = interface()?;
        Ok((value(after.rx_bytes)? > received + 1000 && value(after.tx_bytes)? > sent + 1000).then_some(()))
    })?;
    web.remove()?;
    Ok(())
}

fn ids<'a>(stats: impl IntoIterator<Item = &'a cri::ContainerStats>) -> BTreeSet<String> {
    stats.into_iter().filter_map(|stats| Some(stats.attributes.as_ref()?.id.clone())).collect()
}

fn lists_filters_and_streams_agree(f: &mut Fixture) -> Result<()> {
    let mut config = f.pod_config("labelled");
    config.labels.insert("tier".into(), "web".into());
    let labelled = Pod::run(f.cri(), config, "")?;
    let other = f.pod("other")?;
    let sleeps = |name: &str| Ok::<_, anyhow::Error>(f.shell("sleep 1000")?.named(name));
    let one = labelled.start(&sleeps("one")?.with(|config| drop(config.labels.insert("n".into(), "1".into()))))?;
    let two = labelled.start(&sleeps("two")?)?;
    let three = other.start(&sleeps("three")?)?;
    let all = BTreeSet::from([one.id.clone(), two.id.clone(), three.id.clone()]);
    let list = |filter: cri::ContainerStatsFilter| -> Result<BTreeSet<String>> {
        let filter = Some(filter);
        let listed = f.cri().list_container_stats(cri::ListContainerStatsRequest { filter: filter.clone() })?.stats;
        let streamed = f.cri().stream_container_stats(cri::StreamContainerStatsRequest { filter })?;
        ensure!(ids(&listed) == ids(streamed.iter().flat_map(|batch| &batch.container_stats)), "streamed otherwise");
        Ok(ids(&listed))
    };
    let filter = cri::ContainerStatsFilter::default;
    ensure!(list(filter())? == all, "all");
    let of_pod = cri::ContainerStatsFilter { pod_sandbox_id: labelled.id.clone(), ..filter() };
    ensure!(list(of_pod)? == BTreeSet::from([one.id.clone(), two.id.clone()]), "of one pod");
    ensure!(list(cri::ContainerStatsFilter { id: three.id.clone(), ..filter() })? == BTreeSet::from([three.id]), "id");
    let selector = [("n".to_owned(), "1".to_owned())].into();
    let by_label = cri::ContainerStatsFilter { label_selector: selector, ..filter() };
    ensure!(list(by_label)? == BTreeSet::from([one.id]), "by label");
    let selector = [("tier".to_owned(), "web".to_owned())].into();
    let filter = Some(cri::PodSandboxStatsFilter { label_selector: selector, ..Default::default() });
    let pods = f.cri().list_pod_sandbox_stats(cri::ListPodSandboxStatsRequest { filter: filter.clone() })?.stats;
    let streamed = f.cri().stream_pod_sandbox_stats(cri::StreamPodSandboxStatsRequest { filter })?;
    for pods in [&pods, &streamed.first().context("an empty stream")?.pod_sandbox_stats] {
        let found: Vec<_> = pods.iter().filter_map(|pod| pod.attributes.as_ref()).map(|a| a.id.clone()).collect();
        ensure!(found == [labelled.id.clone()], "{found:?}");
    }
    let streamed = f.cri().stream_containers(cri::StreamContainersRequest::default())?;
    let streamed: Vec<_> = streamed.into_iter().flat_map(|batch| batch.containers).collect();
    ensure!(streamed == f.cri().containers()?, "containers");
    let streamed = f.cri().stream_pod_sandboxes(cri::StreamPodSandboxesRequest::default())?;
    let streamed: Vec<_> = streamed.into_iter().flat_map(|batch| batch.pod_sandboxes).collect();
    ensure!(streamed == f.cri().pods()?, "pods");
    let streamed = f.cri().stream_images(cri::StreamImagesRequest::default())?;
    let listed = f.cri().list_images(cri::ListImagesRequest::default())?.images;
    ensure!(streamed.into_iter().flat_map(|batch| batch.images).collect::<Vec<_>>() == listed, "images");
    f.remove_pods(&BTreeSet::new())?;
    let nothing = f.cri().stream_pod_sandboxes(cri::StreamPodSandboxesRequest::default())?;
    ensure!(nothing.is_empty(), "an empty list is streamed as {nothing:?}");
    Ok(())
}

fn an_ended_container_keeps_its_layer_only(f: &mut Fixture) -> Result<()> {
    let pod = f.pod("ended")?;
    let container = pod.start(&f.shell("dd if=/dev/zero of=/written bs=64k count=16; sync")?)?;
    container.finish()?;
    let found = wait_for("the layer", || {
        let found = stats(f, &container)?;
        let used = found.writable_layer.as_ref().and_then(|layer| layer.used_bytes);
        Ok(used.is_some_and(|used| used.value >= 1 << 20).then_some(found))
    })?;
    ensure!(found.cpu.is_none() && found.memory.is_none() && found.swap.is_none(), "{found:?}");
    Ok(())
}

/// The process of a pod's cgroup that runs the guest.
fn monitor(f: &Fixture, pod: &Pod) -> Result<Pid> {
    let cgroup = host::cgroup_directory(&f.cgroup).context("no cgroup v2")?.join(format!("bulkhead-{}", pod.id));
    let text = fs::read_to_string(cgroup.join("cgroup.procs"))?;
    let name = if f.environment.handler == Handler::Qemu { "qemu-system" } else { "bulkhead-vmm" };
    for pid in text.lines() {
        if fs::read_to_string(format!("/proc/{pid}/comm"))?.starts_with(name) {
            return Pid::from_raw(pid.parse()?).context("pid 0");
        }
    }
    anyhow::bail!("no {name} among {text:?}")
}

fn a_pod_that_hangs_holds_nobody_up(f: &mut Fixture) -> Result<()> {
    f.environment.needs_machine("the machine is what is made to hang")?;
    let (hung, well) = (f.pod("hung")?, f.pod("well")?);
    let in_hung = hung.start(&f.shell("sleep 1000")?)?;
    let in_well = well.start(&f.shell("sleep 1000")?)?;
    let times = || -> Result<BTreeMap<String, i64>> {
        let listed = f.cri().list_container_stats(cri::ListContainerStatsRequest::default())?.stats;
        let time = |stats: cri::ContainerStats| Some((stats.attributes?.id, stats.memory?.timestamp));
        Ok(listed.into_iter().filter_map(time).collect())
    };
    let before = wait_for("figures of both", || {
        let now = times()?;
        Ok((now.len() == 2 && now.values().all(|time| *time > 0)).then_some(now))
    })?;
    let machine = monitor(f, &hung)?;
    kill_process(machine, Signal::STOP)?;
    let result = hang(f, &hung, &in_hung, &in_well, &before, &times);
    kill_process(machine, Signal::CONT)?;
    result?;
    wait_for("new figures of the pod that hung", || {
        Ok((times()?.get(&in_hung.id) > before.get(&in_hung.id)).then_some(()))
    })
}

fn hang(
    f: &Fixture,
    hung: &Pod,
    in_hung: &Container,
    in_well: &Container,
    before: &BTreeMap<String, i64>,
    times: &dyn Fn() -> Result<BTreeMap<String, i64>>,
) -> Result<()> {
    wait_for("new figures of the other pod", || {
        let now = times()?;
        ensure!(now.get(&in_hung.id) == before.get(&in_hung.id), "the last known figures: {before:?} then {now:?}");
        Ok((now.get(&in_well.id) > before.get(&in_well.id)).then_some(()))
    })?;
    ensure!(f.cri().pods()?.len() == 2, "the list of pods");
    let metrics = f.cri().list_pod_sandbox_metrics(cri::ListPodSandboxMetricsRequest {})?.pod_metrics;
    let of_hung = metrics.iter().find(|pod| pod.pod_sandbox_id == hung.id).context("no metrics of the hung pod")?;
    let container = of_hung.container_metrics.first().context("no metrics of its container")?;
    ensure!(container.metrics.iter().all(|metric| metric.timestamp > 0), "cached metrics tell when: {container:?}");
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: hung.id.clone(), verbose: true };
    let info = f.cri().pod_sandbox_status(request)?.info;
    ensure!(
        info.get("stats").is_some_and(|text| text.contains("no answer") || text.contains("not answer")),
        "{info:?}"
    );
    Ok(())
}

fn metrics_keep_to_their_descriptors(f: &mut Fixture) -> Result<()> {
    f.environment.needs_machine("memory has a controller of its own in every guest, not on every host")?;
    let pod = f.pod("metrics")?;
    let container = pod.start(&f.shell("sleep 1000")?.resources(|r| r.cpu_shares = 512))?;
    let described = f.cri().list_metric_descriptors(cri::ListMetricDescriptorsRequest {})?.descriptors;
    let labels: BTreeMap<_, _> = described.iter().map(|d| (d.name.as_str(), &d.label_keys)).collect();
    // The working set and the network come from two readings, of the guest and of the host.
    let listed = wait_for("metrics of both levels", || {
        let listed = f.cri().list_pod_sandbox_metrics(cri::ListPodSandboxMetricsRequest {})?.pod_metrics;
        let has = |metrics: &[cri::Metric], name: &str| metrics.iter().any(|metric| metric.name == name);
        let complete = listed.iter().any(|pod| {
            has(&pod.metrics, "container_network_receive_bytes_total")
                && pod.container_metrics.iter().any(|c| has(&c.metrics, "container_memory_working_set_bytes"))
        });
        Ok(complete.then_some(listed))
    })?;
    let streamed = f.cri().stream_pod_sandbox_metrics(cri::StreamPodSandboxMetricsRequest {})?;
    ensure!(streamed.len() == 1 && streamed[0].pod_sandbox_metrics.len() == 1, "{streamed:?}");
    ensure!(listed.len() == 1 && listed[0].pod_sandbox_id == pod.id, "{listed:?}");
    let of_container = &listed[0].container_metrics;
    ensure!(of_container.len() == 1 && of_container[0].container_id == container.id, "{of_container:?}");
    for metric in listed[0].metrics.iter().chain(&of_container[0].metrics) {
        let keys = labels.get(metric.name.as_str()).with_context(|| format!("{} is not described", metric.name))?;
        ensure!(keys.len() == metric.label_values.len() && metric.value.is_some(), "{metric:?} with {keys:?}");
    }
    let has = |metrics: &[cri::Metric], name: &str| metrics.iter().any(|metric| metric.name == name);
    for name in [
        "container_cpu_usage_seconds_total",
        "container_memory_working_set_bytes",
        "container_memory_rss",
        "container_processes",
        "container_fs_usage_bytes",
        "container_oom_events_total",
        "container_spec_cpu_shares",
        "container_start_time_seconds",
        "container_last_seen",
    ] {
        ensure!(has(&of_container[0].metrics, name), "the container has no {name}");
    }
    for name in ["container_network_receive_bytes_total", "container_cpu_usage_seconds_total"] {
        ensure!(has(&listed[0].metrics, name), "the pod has no {name}");
    }
    let shares = of_container[0].metrics.iter().find(|metric| metric.name == "container_spec_cpu_shares");
    let shares = shares.context("no shares")?;
    ensure!(value(shares.value)? == 512 && shares.label_values.contains(&"metrics".to_owned()), "{shares:?}");
    Ok(())
}

fn crictl_shows_metrics(f: &mut Fixture) -> Result<()> {
    let crictl = f.crictl()?;
    let pod = f.pod("shown")?;
    pod.start(&f.shell("sleep 1000")?)?;
    ensure!(crictl.ok(&["metricdescs"])?.contains("container_memory_working_set_bytes"), "metricdescs");
    wait_for("crictl's metrics of the network", || {
        Ok(crictl.ok(&["metricsp"])?.contains("container_network_receive_bytes_total").then_some(()))
    })?;
    for verb in ["stats", "statsp"] {
        wait_for("a line of figures", || Ok((crictl.ok(&[verb])?.lines().count() == 2).then_some(())))?;
    }
    Ok(())
}

fn both_file_systems_are_told(f: &mut Fixture) -> Result<()> {
    let usage = || -> Result<(cri::FilesystemUsage, cri::FilesystemUsage)> {
        let mut info = f.cri().image_fs_info(cri::ImageFsInfoRequest {})?;
        Ok((info.image_filesystems.remove(0), info.container_filesystems.remove(0)))
    };
    f.image("busybox")?;
    let (images, containers) = usage()?;
    ensure!(value(images.used_bytes)? > 0 && value(images.inodes_used)? > 0, "{images:?}");
    ensure!(value(containers.used_bytes)? == 0, "without a pod: {containers:?}");
    for usage in [&images, &containers] {
        let mountpoint = usage.fs_id.clone().context("no mount point")?.mountpoint;
        ensure!(usage.timestamp > 0 && fs::metadata(&mountpoint)?.is_dir(), "{usage:?}");
    }
    // One disk has one name, or the kubelet takes them for two.
    ensure!(images.fs_id == containers.fs_id, "{images:?} and {containers:?}");
    let pod = f.pod("writes")?;
    let container =
        pod.start(&f.shell("dd if=/dev/urandom of=/written bs=64k count=64; sync; echo done; sleep 1000")?)?;
    container.says("done")?;
    wait_for("the scratch drive's growth", || Ok((value(usage()?.1.used_bytes)? >= 4 << 20).then_some(())))
}

fn a_container_tells_its_user(f: &mut Fixture) -> Result<()> {
    let pod = f.pod("user")?;
    let user = |spec: &Spec| -> Result<(i64, i64, Vec<i64>)> {
        let container = pod.create(spec)?;
        let user = container.status()?.user.and_then(|user| user.linux).context("no user")?;
        container.remove()?;
        Ok((user.uid, user.gid, user.supplemental_groups))
    };
    let sleep = ["sleep", "1000"];
    let (uid, gid, groups) = user(&Spec::new(&f.image("user-number")?, &sleep))?;
    ensure!((uid, gid) == (1234, 5678) && groups.contains(&5678), "{uid} {gid} {groups:?}");
    let asked = Spec::new(&f.image("busybox")?, &sleep).security(|context| {
        context.run_as_user = Some(cri::Int64Value { value: 7 });
        context.run_as_group = Some(cri::Int64Value { value: 8 });
        context.supplemental_groups = vec![9];
    });
    let (uid, gid, groups) = user(&asked)?;
    ensure!((uid, gid) == (7, 8) && groups == [8, 9], "{uid} {gid} {groups:?}");
    Ok(())
}

/// Takes `mib` of memory at once.
fn hog(mib: u32) -> String {
    format!("dd if=/dev/zero of=/dev/null bs={mib}M count=1")
}

fn a_container_over_its_limit_is_oom_killed_alone(f: &mut Fixture) -> Result<()> {
    f.environment.needs_machine("memory has a controller of its own in every guest, not on every host")?;
    let pod = f.pod("limit")?;
    let neighbour = pod.start(&f.shell("sleep 1000")?.named("neighbour"))?;
    let hungry = f.shell(&hog(100))?.named("hungry").resources(|r| r.memory_limit_in_bytes = 32 << 20);
    let outcome = pod.start(&hungry)?.finish()?;
    ensure!(outcome.code == 137 && outcome.status.reason == "OOMKilled", "{:?}", outcome.status);
    let status = neighbour.status()?;
    ensure!(status.state == cri::ContainerState::ContainerRunning as i32 && status.reason.is_empty(), "{status:?}");
    Ok(())
}

fn a_killed_container_is_not_oom_killed(f: &mut Fixture) -> Result<()> {
    f.environment.needs_machine("memory has a controller of its own in every guest, not on every host")?;
    let pod = f.pod("killed")?;
    let stopped = pod.start(&f.shell("sleep 1000")?.named("stopped"))?;
    stopped.stop(0)?;
    let status = stopped.status()?;
    ensure!(status.exit_code == 137 && status.reason == "Error", "{status:?}");
    // A part of it was killed for memory, which it survived: its end has another reason.
    let alone = |script: String, name: &str| -> Result<Spec> {
        Ok(f.shell(&script)?.named(name).resources(|r| {
            r.memory_limit_in_bytes = 32 << 20;
            r.unified = [("memory.oom.group".to_owned(), "0".to_owned())].into();
        }))
    };
    let survivor = pod.start(&alone(format!("{}; echo survived $?; sleep 1000", hog(100)), "survivor")?)?;
    survivor.says("survived 137")?;
    survivor.stop(0)?;
    let status = survivor.status()?;
    ensure!(status.exit_code == 137 && status.reason == "Error", "{status:?}");
    let outcome = pod.start(&alone(format!("{}; exit 0", hog(100)), "well")?)?.finish()?;
    ensure!(outcome.code == 0 && outcome.status.reason == "Completed", "{:?}", outcome.status);
    Ok(())
}

fn a_guest_without_memory_tells_its_victim(f: &mut Fixture) -> Result<()> {
    f.environment.needs_machine("without a guest it would be the host's memory")?;
    let pod = f.pod("guest")?;
    let neighbour = pod.start(&f.shell("sleep 1000")?.named("neighbour"))?;
    // Together more than the guest has, and no limit: its kernel picks the largest.
    let script = "set -- $(grep MemTotal /proc/meminfo); m=$(($2 / 1024 * 7 / 10)); \
                  dd if=/dev/zero of=/dev/null bs=${m}M count=1 & dd if=/dev/zero of=/dev/null bs=${m}M count=1 & wait";
    let outcome = pod.start(&f.shell(script)?.named("hungry"))?.finish()?;
    ensure!(outcome.code == 137 && outcome.status.reason == "OOMKilled", "{:?}", outcome.status);
    let status = neighbour.status()?;
    ensure!(status.state == cri::ContainerState::ContainerRunning as i32, "{status:?}");
    ensure!(pod.once(&f.shell("echo lives on")?.named("after"))?.stdout == "lives on\n", "the pod lives on");
    Ok(())
}
