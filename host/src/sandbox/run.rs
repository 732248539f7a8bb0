//! Making a pod sandbox: namespace, tap and scratch drive; then the VM boots while CNI runs.

use std::sync::Arc;
use std::time::Instant;

use bulkhead_proto::{agent, cri};

use super::state::SandboxEvent;
use super::{Live, Sandbox, SandboxError, SandboxRecord, SandboxState, record, release, watch};
use crate::config::RuntimeHandlerConfig;
use crate::journaled::Journaled;
use crate::network::{NetworkRequest, PodNetworkState};
use crate::node::{Node, new_id, now_ns};
use crate::sandboxer::launch::{self, Plan};
use crate::sandboxer::monitor;
use crate::store::Kind;
use crate::sys;

/// The guest's default route to the outside inside the pod's network namespace.
const TAP_NAME: &str = "tap0";

/// Makes a sandbox and returns its id. A request for a pod that is being made joins it.
pub async fn run(node: &Arc<Node>, config: cri::PodSandboxConfig, handler: &str) -> Result<String, SandboxError> {
    let (name, handler) = resolve_handler(node, handler)?;
    validate(&config, &name)?;
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
    node.sandbox_creations.join(&key, interrupted, make).await
}

fn resolve_handler(node: &Node, asked: &str) -> Result<(String, RuntimeHandlerConfig), SandboxError> {
    let name = if asked.is_empty() { node.config.daemon.default_runtime.as_str() } else { asked };
    match node.config.runtimes.get(name) {
        Some(handler) => Ok((name.to_owned(), handler.clone())),
        None => Err(SandboxError::UnknownHandler {
            handler: name.to_owned(),
            known: node.config.runtimes.keys().cloned().collect::<Vec<_>>().join(", "),
        }),
    }
}

/// What a VM cannot honestly give is refused by the field's name.
fn validate(config: &cri::PodSandboxConfig, handler: &str) -> Result<(), SandboxError> {
    let invalid = |text: String| Err(SandboxError::Invalid(text));
    let metadata = config.metadata.clone().unwrap_or_default();
    if metadata.name.is_empty() {
        return invalid("metadata.name is empty; every pod needs a name".into());
    }
    if config.hostname.len() > 64 {
        return invalid(format!("hostname has {} bytes; the kernel takes 64", config.hostname.len()));
    }
    let security = config.linux.clone().unwrap_or_default().security_context.unwrap_or_default();
    let namespaces = security.namespace_options.unwrap_or_default();
    for (field, mode) in [("network", namespaces.network), ("pid", namespaces.pid), ("ipc", namespaces.ipc)] {
        if mode == cri::NamespaceMode::Node as i32 {
            return invalid(format!(
                "namespace_options.{field} is NODE, which a VM cannot give: handler {handler:?} shares nothing with the host"
            ));
        }
    }
    if let Some(userns) = namespaces.userns_options
        && userns.mode == cri::NamespaceMode::Pod as i32
        && !userns.uids.is_empty()
    {
        return invalid(format!("namespace_options.userns_options is not supported by handler {handler:?} yet"));
    }
    Ok(())
}

async fn create(
    node: Arc<Node>,
    config: cri::PodSandboxConfig,
    name: String,
    handler: RuntimeHandlerConfig,
) -> Result<String, SandboxError> {
    let id = new_id();
    let first = SandboxRecord {
        id: id.clone(),
        config,
        runtime_handler: name,
        state: SandboxState::Creating,
        created_at: now_ns(),
        boot_id: node.boot_id.clone(),
        network: None,
        end: None,
    };
    let record = Journaled::create(node.store.clone(), Kind::Sandbox, &id, first).await?;
    let sandbox = Sandbox::new(&id, record);
    let started = Instant::now();
    match build(&node, &sandbox, &handler).await {
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
    release::release(node, sandbox).await?;
    noted?;
    release::forget(node, sandbox).await
}

async fn build(node: &Arc<Node>, sandbox: &Arc<Sandbox>, handler: &RuntimeHandlerConfig) -> Result<(), SandboxError> {
    let id = sandbox.id.as_str();
    let record = sandbox.record.get();
    let plan = prepare(node, &record, handler).await?;
    let machine = launch::launch(plan).await.map_err(SandboxError::step(id, "start of the machine"))?;
    let boot = async {
        let boot_us =
            machine.wait_ready(node.config.guest.boot_timeout_s).await.map_err(SandboxError::step(id, "boot"))?;
        tracing::debug!(sandbox = %id, boot_us, "guest is up");
        Live::connect(machine.clone()).await.map_err(SandboxError::step(id, "connection to the agent"))
    };
    let attach = async {
        let request = network_request(&record);
        node.network.setup(request).await.map_err(SandboxError::step(id, "network set-up"))
    };
    let (live, network) = tokio::try_join!(boot, attach)?;
    let order = configuration(&record, &network);
    live.agent.configure_sandbox(order).await.map_err(SandboxError::step(id, "configuration of the guest"))?;
    sandbox.set_live(Some(live));
    sandbox
        .record
        .change(move |record: &mut SandboxRecord| {
            record.state = record.state.next(SandboxEvent::Booted)?;
            record.network = Some(network);
            Ok::<_, SandboxError>(())
        })
        .await
        .map(drop)
}

/// Everything that must exist before the machine starts; none of it takes long.
async fn prepare(
    node: &Arc<Node>,
    record: &SandboxRecord,
    handler: &RuntimeHandlerConfig,
) -> Result<Plan, SandboxError> {
    let id = record.id.clone();
    let paths = record.paths(&node.config);
    let monitor = monitor::choose(&record.runtime_handler, handler, &node.abilities)?;
    std::fs::create_dir_all(paths.dir()).map_err(SandboxError::step(&id, "creation of the run directory"))?;
    let cgroup = match &node.cgroups {
        Some(hierarchy) => {
            Some(hierarchy.create(&record.cgroup()).map_err(SandboxError::step(&id, "creation of the cgroup"))?)
        }
        None => None,
    };
    let netns = record.netns();
    let template = node.scratch.clone();
    let step = id.clone();
    let made = tokio::task::spawn_blocking(move || {
        sys::netns::create(&netns).map_err(SandboxError::step(&step, "creation of the network namespace"))?;
        let tap = sys::tap::create(&netns, TAP_NAME).map_err(SandboxError::step(&step, "creation of the tap"))?;
        let scratch = template.instantiate().map_err(SandboxError::step(&step, "creation of the scratch drive"))?;
        Ok::<_, SandboxError>((tap, scratch))
    });
    let (tap, scratch) = made.await.map_err(|_| SandboxError::Interrupted { id: id.clone() })??;
    Ok(Plan {
        sandbox_id: id,
        paths,
        vmm: node.vmm.clone(),
        file_server: node.file_server.clone(),
        monitor,
        kernel: node.config.guest.kernel.clone(),
        initramfs: node.config.guest.initramfs.clone(),
        kernel_arguments: monitor::kernel_arguments(handler, &node.abilities),
        vcpus: handler.vcpus,
        memory_mib: handler.memory_mib,
        tap: Some(tap),
        scratch,
        cgroup,
    })
}

pub(super) fn network_request(record: &SandboxRecord) -> NetworkRequest {
    let metadata = record.metadata();
    NetworkRequest {
        sandbox_id: record.id.clone(),
        pod_name: metadata.name,
        pod_namespace: metadata.namespace,
        pod_uid: metadata.uid,
        netns: record::netns_path(&record.id),
        taps: vec![TAP_NAME.to_owned()],
        port_mappings: record.config.port_mappings.clone(),
        annotations: record.config.annotations.clone(),
    }
}

fn configuration(record: &SandboxRecord, network: &PodNetworkState) -> agent::ConfigureSandboxRequest {
    let config = &record.config;
    let hostname = if config.hostname.is_empty() { record.metadata().name } else { config.hostname.clone() };
    let (interfaces, routes, neighbours) = network.to_agent();
    agent::ConfigureSandboxRequest {
        sandbox_id: record.id.clone(),
        etc_hosts: etc_hosts(&hostname, network.primary_ip()),
        hostname,
        interfaces,
        routes,
        neighbours,
        resolv_conf: crate::network::dns::resolv_conf(config.dns_config.as_ref(), network),
        sysctls: config.linux.clone().unwrap_or_default().sysctls.into_iter().collect(),
        has_scratch_drive: true,
        ..Default::default()
    }
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

    fn config(network: cri::NamespaceMode) -> cri::PodSandboxConfig {
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata { name: "web".into(), ..Default::default() }),
            linux: Some(cri::LinuxPodSandboxConfig {
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(cri::NamespaceOption { network: network as i32, ..Default::default() }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn host_namespaces_are_refused_by_field() {
        let text = validate(&config(cri::NamespaceMode::Node), "qemu").unwrap_err().to_string();
        assert!(text.contains("namespace_options.network") && text.contains("\"qemu\""), "{text}");
        validate(&config(cri::NamespaceMode::Pod), "qemu").unwrap();
    }

    #[test]
    fn the_hosts_file_names_the_pod() {
        assert!(etc_hosts("web", Some("10.1.0.2".into())).ends_with("10.1.0.2\tweb\n"));
    }
}
