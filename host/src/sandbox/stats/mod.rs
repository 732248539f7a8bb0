//! Resource use of pods: what the agent says of its containers, and what the host sees of the pod's processes.
//!
//! Reading never waits for a pod that hangs: each source is asked by a [`Probe`], once at a time, and who asks gets the
//! last answer when a new one does not come in time. docs/stats.md tells where each figure comes from.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bulkhead_proto::agent;

use super::{Sandbox, SandboxState};
use crate::node::{Node, now_ns};

pub mod host;
pub mod probe;
pub mod rate;

pub use host::HostFigures;
use probe::{Answer, Probe};
use rate::Meter;

/// A source that does not answer in this time has no new figures.
const PATIENCE: Duration = Duration::from_millis(1500);
/// After this time an unanswered question to an agent is given up and may be asked again.
const GIVE_UP: Duration = Duration::from_secs(10);
/// Figures older than this say nothing about the present.
const STALE: Duration = Duration::from_secs(120);

/// What an agent said.
#[derive(Debug)]
pub struct GuestFigures {
    /// As it came; everything in it is a claim.
    pub stats: agent::StatsResponse,
    /// Cores in use, in billionths, by container.
    pub rates: HashMap<String, u64>,
}

/// The figures of one pod.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// By the agent.
    pub guest: Option<Answer<GuestFigures>>,
    /// By the host's kernel.
    pub host: Option<Answer<HostFigures>>,
    /// Why there is nothing new from the agent.
    pub silent: Option<String>,
}

impl Sample {
    /// What the agent said of a container of ours.
    #[must_use]
    pub fn container(&self, id: &str) -> Option<&agent::ContainerStats> {
        self.guest.as_ref()?.value.stats.containers.iter().find(|figures| figures.container_id == id)
    }
}

/// The figures of one pod as they were last read.
#[derive(Debug, Default)]
pub struct Sampler {
    guest: Arc<Probe<GuestFigures>>,
    host: Arc<Probe<HostFigures>>,
    meters: Arc<Mutex<Meters>>,
}

#[derive(Debug, Default)]
struct Meters {
    pod: Meter,
    containers: HashMap<String, Meter>,
}

impl Sampler {
    /// The last answers, without asking.
    #[must_use]
    pub fn last(&self) -> Sample {
        Sample { guest: self.guest.last(STALE), host: self.host.last(STALE), silent: self.guest.trouble() }
    }
}

/// The figures of a pod, new ones if they come in time. A pod that does not run has none.
pub async fn sample(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Sample {
    if sandbox.live("reading its resource use").is_err() {
        return Sample::default();
    }
    let was_silent = sandbox.stats.guest.trouble().is_some();
    tokio::join!(ask_agent(node, sandbox), ask_host(node, sandbox));
    let sample = sandbox.stats.last();
    match &sample.silent {
        Some(why) if !was_silent => tracing::warn!(sandbox = %sandbox.id, why, "no new resource figures of the pod"),
        None if was_silent => tracing::info!(sandbox = %sandbox.id, "the pod reports resource figures again"),
        _ => {}
    }
    sample
}

async fn ask_agent(node: &Arc<Node>, sandbox: &Arc<Sandbox>) {
    let Ok(live) = sandbox.live("reading its resource use") else { return };
    let known: Vec<String> = crate::container::of_sandbox(node, &sandbox.id).iter().map(|c| c.id.clone()).collect();
    let meters = sandbox.stats.meters.clone();
    let question = async move {
        let asked = live.agent.stats(agent::StatsRequest::new());
        let stats = match tokio::time::timeout(GIVE_UP, asked).await {
            Ok(answer) => answer.map_err(|error| crate::error_text(&error))?,
            Err(_) => return Err(format!("the agent does not answer within {} s", GIVE_UP.as_secs())),
        };
        let rates = container_rates(&meters, &known, &stats);
        Ok(GuestFigures { stats, rates })
    };
    sandbox.stats.guest.ask(PATIENCE, question).await;
}

async fn ask_host(node: &Arc<Node>, sandbox: &Arc<Sandbox>) {
    let place = host::Place::of(node, &sandbox.record.get());
    let meters = sandbox.stats.meters.clone();
    let question = async move {
        let read = tokio::task::spawn_blocking(move || host::read(&place));
        let mut figures = read.await.map_err(|error| error.to_string())?;
        let usage = figures.cgroup.as_ref().and_then(|cgroup| cgroup.cpu_usage_ns);
        let mut meters = meters.lock().unwrap_or_else(PoisonError::into_inner);
        figures.rate = usage.and_then(|usage| meters.pod.update(now_ns(), usage));
        Ok(figures)
    };
    sandbox.stats.host.ask(PATIENCE, question).await;
}

/// What the writable layers of all pods take on the host's disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Allocated, not only written.
    pub bytes: u64,
    /// Files.
    pub inodes: u64,
}

/// Counts the scratch drives of VMs as the host sees them, and the layers of native pods as their agents say.
pub async fn disk_usage(node: &Arc<Node>) -> DiskUsage {
    let ready = running(node);
    futures_util::future::join_all(ready.iter().map(|sandbox| async {
        ask_host(node, sandbox).await;
        if sandbox.record.get().shares_host() {
            ask_agent(node, sandbox).await;
        }
    }))
    .await;
    ready.iter().map(|sandbox| sandbox.stats.last()).fold(DiskUsage::default(), |sum, sample| {
        let used = of_pod(&sample);
        DiskUsage { bytes: sum.bytes + used.bytes, inodes: sum.inodes + used.inodes }
    })
}

fn of_pod(sample: &Sample) -> DiskUsage {
    let drive = sample.host.as_ref().and_then(|host| host.value.scratch_bytes);
    if let Some(bytes) = drive {
        return DiskUsage { bytes, inodes: 1 };
    }
    let layers = sample.guest.iter().flat_map(|guest| &guest.value.stats.containers);
    layers.fold(DiskUsage::default(), |sum, layer| DiskUsage {
        bytes: sum.bytes.saturating_add(layer.rootfs_used_bytes.unwrap_or(0)),
        inodes: sum.inodes.saturating_add(layer.rootfs_used_inodes.unwrap_or(0)),
    })
}

fn running(node: &Node) -> Vec<Arc<Sandbox>> {
    let mut all = node.sandboxes.all();
    all.retain(|sandbox| sandbox.record.get().state == SandboxState::Ready);
    all
}

/// The figures of every pod that runs, all asked at once.
pub async fn sample_all(node: &Arc<Node>) -> Vec<(Arc<Sandbox>, Sample)> {
    let asked = running(node).into_iter().map(|sandbox| async move {
        let sample = sample(node, &sandbox).await;
        (sandbox, sample)
    });
    futures_util::future::join_all(asked).await
}

/// Rates of the containers that the daemon knows, by the guest's own clock.
fn container_rates(meters: &Mutex<Meters>, known: &[String], stats: &agent::StatsResponse) -> HashMap<String, u64> {
    let mut meters = meters.lock().unwrap_or_else(PoisonError::into_inner);
    meters.containers.retain(|id, _| known.contains(id));
    let mut rates = HashMap::new();
    for figures in stats.containers.iter().filter(|figures| known.contains(&figures.container_id)) {
        let Some(cgroup) = figures.cgroup.as_ref() else { continue };
        let Some(usage) = cgroup.cpu_usage_ns else { continue };
        let meter = meters.containers.entry(figures.container_id.clone()).or_default();
        if let Some(rate) = meter.update(cgroup.timestamp_ns, usage) {
            rates.insert(figures.container_id.clone(), rate);
        }
    }
    rates
}
