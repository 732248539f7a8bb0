//! Making a pod sandbox: namespace, tap and scratch drive; then the VM boots while CNI runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bulkhead_proto::launch::Monitor;
use bulkhead_proto::{agent, cri};

use super::state::SandboxEvent;
use super::{
    Live, Sandbox, SandboxError, SandboxRecord, SandboxState, native, record, release, size, user_namespace, validate,
    watch,
};
use crate::config::{RuntimeHandlerConfig, SandboxerKind};
use crate::guest::Agent;
use crate::journaled::Journaled;
use crate::network::{NetworkRequest, PodNetworkState};
use crate::node::{Node, new_id, now_ns};
use crate::sandboxer::launch::{self, Plan};
use crate::sandboxer::monitor;
use crate::sandboxer::place::Place;
use crate::sandboxer::sizing::{Size, Sizing};
use crate::store::Kind;
use crate::sys;

/// The guest's default route to the outside inside the pod's network namespace.
const TAP_NAME: &str = "tap0";
/// Most queues of a pod's network device.
const MAX_NETWORK_QUEUES: u16 = 4;

/// Makes a sandbox and returns its id. A request for a pod that is being made joins it.
pub async fn run(node: &Arc<Node>, config: cri::PodSandboxConfig, handler: &str) -> Result<String, SandboxError> {
    let (name, handler) = resolve_handler(node, handler)?;
    let handler = handler.resolve(&name, &config.annotations).map_err(SandboxError::Invalid)?;
    validate::check(&config, &name, &handler, &node.config, &node.abilities)?;
    let key = SandboxRecord::key(&config);
    let interrupted = SandboxError::Interrupted { id: format!("of pod {key}") };
    let (maker, pod) = (node.clone(), key.clone());
    let make = || async move {
        // Asked here, where no other creation of this pod can run.
        match maker.sandboxes.all().iter().find(|s| SandboxRecord::key(&s.record.get().config) == pod) {
            Some(other) => Err(SandboxError::Exists { pod, id: other.id.clone() }),
            None => create(maker, config, name, handler).await,
        }
    };
    let exists = |id: &str| node.sandboxes.find("sandbox", id).is_ok_and(|s| s.live("finding it again").is_ok());
    node.sandbox_creations.join(&key, interrupted, exists, make).await
}

fn resolve_handler(node: &Node, asked: &str) -> Result<(String, RuntimeHandlerConfig), SandboxError> {
    let name = if asked.is_empty() { monitor::default_handler(&node.config, &node.abilities) } else { asked };
    match node.config.runtimes.get(name) {
        Some(handler) => Ok((name.to_owned(), handler.clone())),
        None => Err(SandboxError::UnknownHandler {
            handler: name.to_owned(),
            known: node.config.runtimes.keys().cloned().collect::<Vec<_>>().join(", "),
        }),
    }
}

async fn create(
    node: Arc<Node>,
    config: cri::PodSandboxConfig,
    name: String,
    handler: RuntimeHandlerConfig,
) -> Result<String, SandboxError> {
    let id = new_id();
    // Only a machine that runs in bulkhead-vmm itself has a jail.
    let user = match handler.sandboxer {
        SandboxerKind::Microvm if node.config.jail.enabled => {
            Some(node.users.take(node.config.jail.users()).map_err(SandboxError::Invalid)?)
        }
        _ => None,
    };
    let first = SandboxRecord {
        id: id.clone(),
        config,
        runtime_handler: name,
        handler,
        state: SandboxState::Creating,
        created_at: now_ns(),
        sizing: None,
        user,
        boot_id: node.boot_id.clone(),
        cgroup_driver: node.config.daemon.cgroup_driver,
        network: None,
        end: None,
    };
    let record = Journaled::create(node.store.clone(), Kind::Sandbox, &id, first).await;
    let record = record.inspect_err(|_| user.into_iter().for_each(|user| node.users.give_back(user)))?;
    let sandbox = Sandbox::new(&id, record.observed(node.events.of_sandbox()));
    let started = Instant::now();
    match build(&node, &sandbox).await {
        Ok(()) => {
            node.sandboxes.insert(sandbox.clone());
            watch::spawn(&node, &sandbox);
            tracing::info!(sandbox = %id, ms = started.elapsed().as_millis(), "pod sandbox runs");
            Ok(id)
        }
        Err(error) => {
            tracing::warn!(sandbox = %id, error = %crate::error_text(&error), "pod sandbox failed; undoing it");
            if let Err(undo) = undo(&node, &sandbox).await {
                // Listed as not ready, so that the kubelet's removal tries again.
                tracing::error!(sandbox = %id, error = %crate::error_text(&undo), "cannot undo it now");
                node.sandboxes.insert(sandbox);
            }
            Err(error)
        }
    }
}

async fn undo(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), SandboxError> {
    // Released even when the journal cannot be written: a full disk must not keep a machine running.
    let noted = sandbox.take(SandboxEvent::Failed).await;
    node.nri.remove_pod(&sandbox.id).await;
    release::release(node, sandbox).await?;
    noted?;
    release::forget(node, sandbox).await
}

async fn build(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), SandboxError> {
    let id = sandbox.id.as_str();
    let record = sandbox.record.get();
    let (plan, sizing) = if record.shares_host() {
        (native::prepare(node, &record).await?, None)
    } else {
        let monitor = monitor::choose(&record.runtime_handler, &record.handler, &node.abilities)?;
        let size = size::of(node, &record, &monitor)?;
        (prepare(node, &record, monitor, size).await?, Some(Sizing { made: size, now: size }))
    };
    let mut attachment = tokio::spawn(attach(node.clone(), record.clone()));
    let made = async {
        let machine = launch::launch(plan).await.map_err(SandboxError::step(id, "start of the machine"))?;
        let boot = async {
            let boot_us =
                machine.wait_ready(node.config.guest.boot_timeout_s).await.map_err(SandboxError::step(id, "boot"))?;
            tracing::debug!(sandbox = %id, boot_us, "guest is up");
            Live::connect(machine.clone(), &record).await.map_err(SandboxError::step(id, "connection to the agent"))
        };
        let attached =
            async { (&mut attachment).await.unwrap_or_else(|_| Err(SandboxError::Interrupted { id: id.to_owned() })) };
        tokio::try_join!(boot, attached)
    };
    let made = made.await;
    if made.is_err() && !attachment.is_finished() {
        // Its removal must find all that it did. How it ended does not matter any more.
        let _ = attachment.await;
    }
    let (live, network) = made?;
    let order = configuration(&record, &network);
    let configured = live.agent.configure_sandbox(order).await.and_then(|answer| {
        Agent::check_version(answer.protocol_version)?;
        Ok(answer)
    });
    let configured = configured.map_err(SandboxError::step(id, "configuration of the guest"))?;
    if record.users().is_some() && !configured.user_namespace {
        let why = "namespace_options.userns_options asks for a user namespace, which the installed bulkhead-agent does not know";
        return Err(SandboxError::Invalid(format!("{why}; install the one of this release")));
    }
    if node.nri.is_serving() {
        let known = SandboxRecord { network: Some(network.clone()), ..SandboxRecord::clone(&record) };
        node.nri.run_pod(&known).await?;
    }
    sandbox.set_live(Some(live));
    sandbox
        .record
        .change(move |record: &mut SandboxRecord| {
            record.state = record.state.next(SandboxEvent::Booted)?;
            record.network = Some(network);
            record.sizing = sizing;
            Ok::<_, SandboxError>(())
        })
        .await
        .map(drop)
}

/// Has the plugins make the pod's network, if it gets one.
async fn attach(node: Arc<Node>, record: Arc<SandboxRecord>) -> Result<PodNetworkState, SandboxError> {
    if native::shares_network(&record.config) {
        return Ok(native::host_network());
    }
    let made = node.network.setup(network_request(&record)).await;
    made.map_err(SandboxError::step(&record.id, "network set-up"))
}

/// Everything that must exist before the machine starts; none of it takes long.
async fn prepare(node: &Arc<Node>, record: &SandboxRecord, monitor: Monitor, size: Size) -> Result<Plan, SandboxError> {
    let handler = &record.handler;
    let id = record.id.clone();
    let paths = record.paths(&node.config);
    std::fs::create_dir_all(paths.dir()).map_err(SandboxError::step(&id, "creation of the run directory"))?;
    let cgroup = match &node.cgroups {
        Some(hierarchy) => {
            let place = Place::prepare(hierarchy, record.cgroup(), record.cgroup_owner(), false);
            Some(place.map_err(SandboxError::step(&id, "creation of the cgroup"))?)
        }
        None => None,
    };
    let netns = record.netns();
    let template = node.scratch.clone();
    let queues = network_queues(&monitor, &size);
    let step = id.clone();
    let made = tokio::task::spawn_blocking(move || {
        sys::netns::create(&netns).map_err(SandboxError::step(&step, "creation of the network namespace"))?;
        let tap =
            sys::tap::create(&netns, TAP_NAME, queues).map_err(SandboxError::step(&step, "creation of the tap"))?;
        let scratch = template.instantiate().map_err(SandboxError::step(&step, "creation of the scratch drive"))?;
        Ok::<_, SandboxError>((tap, scratch))
    });
    let (tap, scratch) = made.await.map_err(|_| SandboxError::Interrupted { id: id.clone() })??;
    Ok(Plan {
        sandbox_id: id,
        paths,
        vmm: node.vmm.clone(),
        file_server: Some(node.file_server.clone()),
        monitor,
        kernel: either(&handler.kernel, &node.config.guest.kernel),
        initramfs: either(&handler.initramfs, &node.config.guest.initramfs),
        kernel_arguments: monitor::kernel_arguments(handler, &node.abilities, &size),
        vcpus: size.max_vcpus,
        memory_mib: size.made_memory_mib(),
        balloon_mib: size.made_memory_mib() - size.memory_mib,
        deflate_on_oom: handler.deflate_on_oom,
        tap,
        scratch: Some(scratch),
        debug_console: handler.debug_console,
        user: record.user,
        limits: handler.device_limits(),
        cgroup,
    })
}

/// A queue for each processor that the guest begins with, within limits: each costs guest memory and a thread. QEMU gets one, as it
/// moves all of a device's frames in one thread.
fn network_queues(monitor: &Monitor, size: &Size) -> u16 {
    match monitor {
        Monitor::Microvm {} => u16::try_from(size.vcpus).unwrap_or(u16::MAX).clamp(1, MAX_NETWORK_QUEUES),
        Monitor::Qemu { .. } | Monitor::Native(_) => 1,
    }
}

/// The handler's own path, or the one of all handlers.
fn either(own: &Path, common: &Path) -> PathBuf {
    if own.as_os_str().is_empty() { common.to_owned() } else { own.to_owned() }
}

pub(super) fn network_request(record: &SandboxRecord) -> NetworkRequest {
    let metadata = record.metadata();
    NetworkRequest {
        sandbox_id: record.id.clone(),
        pod_name: metadata.name,
        pod_namespace: metadata.namespace,
        pod_uid: metadata.uid,
        netns: record::netns_path(&record.id),
        taps: if record.shares_host() { Vec::new() } else { vec![TAP_NAME.to_owned()] },
        port_mappings: record.config.port_mappings.clone(),
        annotations: record.config.annotations.clone(),
    }
}

fn configuration(record: &SandboxRecord, network: &PodNetworkState) -> agent::ConfigureSandboxRequest {
    let config = &record.config;
    let hostname = record.hostname();
    let shares_network = native::shares_network(config);
    // On the host's kernel the plugins have made everything in the namespace that the agent runs in.
    let (interfaces, routes, neighbours) = if record.shares_host() { Default::default() } else { network.to_agent() };
    let hosts = if shares_network { host_file("/etc/hosts") } else { etc_hosts(&hostname, network.primary_ip()) };
    agent::ConfigureSandboxRequest {
        sandbox_id: record.id.clone(),
        etc_hosts: hosts,
        host_ipc: native::shares_ipc(config),
        host_uts: shares_network,
        hostname,
        interfaces,
        routes,
        neighbours,
        resolv_conf: crate::network::dns::resolv_conf(config.dns_config.as_ref(), network),
        sysctls: config.linux.clone().unwrap_or_default().sysctls.into_iter().collect(),
        has_scratch_drive: !record.shares_host(),
        user_namespace: record.users().map(user_namespace::to_agent).into(),
        ..Default::default()
    }
}

/// A file of the host that pods with its network see, too; empty when it cannot be read.
fn host_file(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn etc_hosts(hostname: &str, ip: Option<String>) -> String {
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    if let Some(ip) = ip {
        text.push_str(&format!("{ip}\t{hostname}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_file_names_the_pod() {
        assert!(etc_hosts("web", Some("10.1.0.2".into())).ends_with("10.1.0.2\tweb\n"));
    }
}
