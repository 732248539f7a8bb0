//! GetContainerEvents tells everything that happens, in order, with the statuses as they stood then.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bulkhead_proto::cri;
use bulkhead_proto::cri::ContainerEventType::{
    self, ContainerCreatedEvent, ContainerDeletedEvent, ContainerStartedEvent, ContainerStoppedEvent,
};
use bulkhead_tests::events::Listener;
use bulkhead_tests::fixture::Fixture;
use bulkhead_tests::wait;

bulkhead_tests::suite!(
    Fixture;
    a_life_in_events,
    an_end_by_itself_is_told,
    a_vm_that_dies_is_told,
    listeners_do_not_disturb_each_other,
    crictl_shows_events,
    the_stream_ends_with_the_daemon,
);

fn listen(f: &Fixture) -> Result<Listener> {
    Listener::start(&f.daemon.settings.socket())
}

/// The next event; it must be this one.
fn expect(listener: &Listener, id: &str, kind: ContainerEventType) -> Result<cri::ContainerEventResponse> {
    let event = listener.next()?;
    ensure!(event.container_id == id && event.container_event_type == kind as i32, "{kind:?} of {id}: {event:?}");
    ensure!(event.created_at > 0, "{event:?}");
    Ok(event)
}

fn only(event: &cri::ContainerEventResponse) -> Result<&cri::ContainerStatus> {
    ensure!(event.containers_statuses.len() == 1, "{event:?}");
    Ok(&event.containers_statuses[0])
}

fn a_life_in_events(f: &mut Fixture) -> Result<()> {
    let listener = listen(f)?;
    let pod = f.pod("life")?;
    let created = expect(&listener, &pod.id, ContainerCreatedEvent)?;
    ensure!(created.containers_statuses.is_empty(), "{created:?}");
    let started = expect(&listener, &pod.id, ContainerStartedEvent)?;
    let status = started.pod_sandbox_status.context("no pod status")?;
    ensure!(status.state == cri::PodSandboxState::SandboxReady as i32, "{status:?}");
    ensure!(status.network.is_some_and(|network| network.ip == pod.address().unwrap_or_default()), "address");
    ensure!(status.metadata == pod.config.metadata, "metadata");
    let container = pod.create(&f.shell("sleep 1000")?)?;
    let event = expect(&listener, &container.id, ContainerCreatedEvent)?;
    ensure!(only(&event)?.state == cri::ContainerState::ContainerCreated as i32, "{event:?}");
    container.start()?;
    let event = expect(&listener, &container.id, ContainerStartedEvent)?;
    let status = only(&event)?;
    ensure!(status.state == cri::ContainerState::ContainerRunning as i32 && status.started_at > 0, "{event:?}");
    container.stop(0)?;
    let event = expect(&listener, &container.id, ContainerStoppedEvent)?;
    let status = only(&event)?;
    ensure!(status.exit_code == 137 && status.reason == "Error" && status.finished_at > 0, "{event:?}");
    container.remove()?;
    let event = expect(&listener, &container.id, ContainerDeletedEvent)?;
    ensure!(event.containers_statuses.is_empty() && event.pod_sandbox_status.is_some(), "{event:?}");
    pod.remove()?;
    let event = expect(&listener, &pod.id, ContainerStoppedEvent)?;
    let state = event.pod_sandbox_status.as_ref().map(|status| status.state);
    ensure!(state == Some(cri::PodSandboxState::SandboxNotready as i32), "{event:?}");
    let event = expect(&listener, &pod.id, ContainerDeletedEvent)?;
    ensure!(event.pod_sandbox_status.is_some_and(|status| status.metadata == pod.config.metadata), "no metadata");
    Ok(())
}

fn an_end_by_itself_is_told(f: &mut Fixture) -> Result<()> {
    let pod = f.pod("end")?;
    let container = pod.create(&f.shell("read line; exit 3")?)?;
    let listener = listen(f)?;
    container.start()?;
    // Which of the two is recorded first is the daemon's affair when the command is that short.
    let mut kinds = [listener.next()?, listener.next()?];
    kinds.sort_by_key(|event| event.container_event_type);
    ensure!(kinds.iter().all(|event| event.container_id == container.id), "{kinds:?}");
    ensure!(kinds[0].container_event_type == ContainerStartedEvent as i32, "{kinds:?}");
    ensure!(kinds[1].container_event_type == ContainerStoppedEvent as i32, "{kinds:?}");
    ensure!(only(&kinds[1])?.exit_code == 3, "{kinds:?}");
    Ok(())
}

fn a_vm_that_dies_is_told(f: &mut Fixture) -> Result<()> {
    let pod = f.pod("dies")?;
    let container = pod.start(&f.shell("sleep 1000")?)?;
    let listener = listen(f)?;
    let cgroup = bulkhead_tests::leaks::host::cgroup_directory(&f.cgroup).context("no cgroup v2")?;
    fs::write(cgroup.join(format!("bulkhead-{}", pod.id)).join("cgroup.kill"), "1")?;
    let mut events = [listener.next()?, listener.next()?];
    events.sort_by_key(|event| event.container_id != pod.id);
    ensure!(events.iter().all(|event| event.container_event_type == ContainerStoppedEvent as i32), "{events:?}");
    ensure!(events[0].container_id == pod.id && events[1].container_id == container.id, "{events:?}");
    Ok(())
}

fn listeners_do_not_disturb_each_other(f: &mut Fixture) -> Result<()> {
    let (first, second, third) = (listen(f)?, listen(f)?, listen(f)?);
    let pod = f.pod("many")?;
    drop(second);
    for listener in [&first, &third] {
        expect(listener, &pod.id, ContainerCreatedEvent)?;
        expect(listener, &pod.id, ContainerStartedEvent)?;
    }
    drop(first);
    pod.remove()?;
    expect(&third, &pod.id, ContainerStoppedEvent)?;
    expect(&third, &pod.id, ContainerDeletedEvent).map(drop)
}

fn crictl_shows_events(f: &mut Fixture) -> Result<()> {
    let path = f.path("crictl-events");
    let mut crictl = f.crictl()?.spawn(&["events"], fs::File::create(&path)?)?;
    let pod = f.pod("shown")?;
    // Its request may reach the daemon after the pod's start, never after the pod's end.
    let shown = wait::until("crictl's events", Duration::from_secs(60), || {
        let probe = pod.start(&f.shell("true")?)?;
        probe.finish()?;
        probe.remove()?;
        let text = fs::read_to_string(&path)?;
        let kinds = ["CONTAINER_STARTED_EVENT", "CONTAINER_STOPPED_EVENT", "CONTAINER_DELETED_EVENT"];
        Ok(kinds.iter().all(|kind| text.contains(kind)).then_some(()))
    });
    crictl.kill()?;
    crictl.wait()?;
    shown
}

fn the_stream_ends_with_the_daemon(f: &mut Fixture) -> Result<()> {
    let listener = listen(f)?;
    f.daemon.stop()?;
    ensure!(listener.end()?.is_empty(), "events of nothing");
    f.daemon.start_again()?;
    let again = listen(f)?;
    let pod = f.pod("again")?;
    expect(&again, &pod.id, ContainerCreatedEvent).map(drop)
}
