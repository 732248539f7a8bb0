//! Giving a running pod more or less: CPUs go online and offline in its guest, memory goes to and fro by the balloon.

use std::sync::Arc;

use bulkhead_proto::{agent, cri};

use super::{Live, Sandbox, SandboxError, SandboxRecord, SandboxState, size};
use crate::container::ContainerState;
use crate::node::Node;
use crate::sandboxer::monitor;
use crate::sandboxer::sizing::{Size, SizeError, Sizing, millicpus, vcpus_of_containers};

/// Applies what the kubelet now says of the pod, then remembers it. What is not sent stays.
pub async fn update(
    node: &Arc<Node>,
    sandbox: &Arc<Sandbox>,
    overhead: Option<cri::LinuxContainerResources>,
    resources: Option<cri::LinuxContainerResources>,
) -> Result<(), SandboxError> {
    let (node, target) = (node.clone(), sandbox.clone());
    // On a task of its own, so that plugins hear of the end although the caller went away.
    let done = tokio::spawn(async move {
        node.nri.update_pod(&target.record.get(), overhead.as_ref(), resources.as_ref()).await?;
        let (operator, object) = (node.clone(), target.clone());
        let work = async move { update_now(&operator, &object, overhead, resources).await };
        let done = target.operations.run(work).await;
        done.unwrap_or_else(|| Err(SandboxError::Interrupted { id: target.id.clone() }))?;
        node.nri.pod_updated(&target.record.get()).await;
        Ok(())
    });
    done.await.unwrap_or_else(|_| Err(SandboxError::Interrupted { id: sandbox.id.clone() }))
}

async fn update_now(
    node: &Node,
    sandbox: &Sandbox,
    overhead: Option<cri::LinuxContainerResources>,
    resources: Option<cri::LinuxContainerResources>,
) -> Result<(), SandboxError> {
    let live = sandbox.live("changing its resources")?;
    let mut record = SandboxRecord::clone(&sandbox.record.get());
    let linux = record.config.linux.get_or_insert_default();
    if overhead.is_some() {
        linux.overhead = overhead;
    }
    if resources.is_some() {
        linux.resources = resources;
    }
    if record.shares_host() {
        // The kubelet has changed the pod's cgroup itself, and there is nothing else to change.
        return remember(sandbox, record).await;
    }
    let (sizing, wanted) = sizes(node, &record)?;
    let made = sizing.made;
    if wanted.memory_mib > made.made_memory_mib() {
        let (wanted_mib, made_mib) = (wanted.memory_mib, made.made_memory_mib());
        return Err(SizeError::CannotGrow { wanted_mib, made_mib }.into());
    }
    if wanted.memory_mib != sizing.now.memory_mib {
        let failed = SandboxError::step(&sandbox.id, "change of memory");
        live.machine.resize(wanted.memory_mib).await.map_err(failed)?;
    }
    let vcpus = set_vcpus(&sandbox.id, &live, made.max_vcpus, wanted.vcpus).await?;
    record.sizing = Some(Sizing { made, now: Size { vcpus, memory_mib: wanted.memory_mib, ..made } });
    remember(sandbox, record).await
}

async fn remember(sandbox: &Sandbox, changed: SandboxRecord) -> Result<(), SandboxError> {
    sandbox
        .record
        .change(move |record: &mut SandboxRecord| {
            record.config.linux = changed.config.linux;
            record.sizing = changed.sizing;
            Ok::<_, SandboxError>(())
        })
        .await
        .map(drop)
}

/// How big the machine is, and how big it should be.
fn sizes(node: &Node, record: &SandboxRecord) -> Result<(Sizing, Size), SandboxError> {
    let handler = &record.handler;
    let monitor = monitor::choose(&record.runtime_handler, handler, &node.abilities)?;
    let wanted = size::of(node, record, &monitor)?;
    // A machine of a daemon that did not size pods was made as its handler says.
    let (vcpus, memory_mib) = (handler.vcpus, handler.memory_mib);
    let old = Size { vcpus, max_vcpus: vcpus, memory_mib, max_memory_mib: memory_mib };
    Ok((record.sizing.unwrap_or(Sizing { made: old, now: old }), wanted))
}

/// As many as wanted, or as the machine has; gives how many.
async fn set_vcpus(id: &str, live: &Live, max: u32, wanted: u32) -> Result<u32, SandboxError> {
    if wanted > max {
        tracing::warn!(sandbox = id, wanted, max, "the pod's machine was made for fewer CPUs; it gets them all");
    }
    let request = agent::SetCpusRequest { online: wanted.min(max), ..Default::default() };
    let answer = live.agent.set_cpus(request).await.map_err(SandboxError::step(id, "change of CPUs"))?;
    Ok(answer.online.clamp(1, max.max(1)))
}

/// Follows the CPU limits of a pod's containers, for a kubelet that tells of containers only.
pub async fn containers_changed(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), SandboxError> {
    let (node, target) = (node.clone(), sandbox.clone());
    let done = sandbox.operations.run(async move { follow_containers(&node, &target).await }).await;
    done.unwrap_or_else(|| Err(SandboxError::Interrupted { id: sandbox.id.clone() }))
}

async fn follow_containers(node: &Node, sandbox: &Sandbox) -> Result<(), SandboxError> {
    let record = sandbox.record.get();
    if record.state != SandboxState::Ready || record.shares_host() {
        return Ok(());
    }
    let live = sandbox.live("changing its CPUs")?;
    let (sizing, pod) = sizes(node, &record)?;
    let limits: Vec<_> = node
        .containers
        .all()
        .iter()
        .map(|container| container.record.get())
        .filter(|container| container.sandbox_id == record.id)
        .filter(|container| matches!(container.state, ContainerState::Created | ContainerState::Running { .. }))
        .map(|container| {
            let linux = container.config.linux.as_ref();
            linux.and_then(|linux| linux.resources.as_ref()).and_then(millicpus)
        })
        .collect();
    let Some(vcpus) = vcpus_of_containers(pod.vcpus, &limits) else { return Ok(()) };
    let Sizing { made, now } = sizing;
    if vcpus.min(made.max_vcpus) == now.vcpus {
        return Ok(());
    }
    let vcpus = set_vcpus(&record.id, &live, made.max_vcpus, vcpus).await?;
    sandbox
        .record
        .change(move |record: &mut SandboxRecord| {
            record.sizing = Some(Sizing { made, now: Size { vcpus, ..now } });
            Ok::<_, SandboxError>(())
        })
        .await
        .map(drop)
}
