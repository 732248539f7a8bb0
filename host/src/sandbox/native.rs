//! A pod on the host's own kernel: what it is made of, and what may be left of it when its agent was killed.

use std::path::PathBuf;
use std::sync::Arc;

use bulkhead_proto::cri;
use bulkhead_proto::launch::{DeviceLimits, Monitor, NativePod};

use super::{SandboxError, SandboxRecord};
use crate::config::Config;
use crate::network::PodNetworkState;
use crate::node::Node;
use crate::sandboxer::launch::Plan;
use crate::sandboxer::place::{CONTAINERS_LEAF, Place};
use crate::sys;
use crate::sys::host::is_executable;

/// Everything that must exist before the agent starts.
pub(super) async fn prepare(node: &Arc<Node>, record: &SandboxRecord) -> Result<Plan, SandboxError> {
    let id = record.id.as_str();
    let agent = node.config.guest.agent.clone();
    if !is_executable(&agent) {
        return Err(SandboxError::Invalid(format!(
            "runtime handler {:?} needs the agent, and {} is no executable file; install it or set agent in [guest]",
            record.runtime_handler,
            agent.display()
        )));
    }
    let hierarchy = node.cgroups.as_ref().ok_or_else(|| {
        SandboxError::Invalid(format!(
            "runtime handler {:?} needs a cgroup v2 hierarchy; mount one at /sys/fs/cgroup",
            record.runtime_handler
        ))
    })?;
    let paths = record.paths(&node.config);
    std::fs::create_dir_all(paths.dir()).map_err(SandboxError::step(id, "creation of the run directory"))?;
    let failed = || SandboxError::step(id, "creation of the cgroup");
    let cgroup = Place::prepare(hierarchy, record.cgroup(), record.cgroup_owner(), true).map_err(failed())?;
    let containers = hierarchy.cgroup(&record.cgroup().join(CONTAINERS_LEAF)).map_err(failed())?;
    let mut netns = None;
    if !shares_network(&record.config) {
        let path = record.netns();
        let (target, step, users) = (path.clone(), id.to_owned(), record.users());
        let made = tokio::task::spawn_blocking(move || {
            let made = match users {
                Some(users) => sys::userns::create_network(&target, users),
                None => sys::netns::create(&target),
            };
            made.map_err(SandboxError::step(&step, "creation of the network namespace"))
        });
        made.await.map_err(|_| SandboxError::Interrupted { id: id.to_owned() })??;
        netns = Some(path);
    }
    let pod = NativePod {
        agent,
        state: paths.agent_state(),
        layers: layers(&node.config, id),
        cgroup: containers.path().to_owned(),
        netns,
    };
    Ok(Plan {
        sandbox_id: id.to_owned(),
        paths,
        vmm: node.vmm.clone(),
        file_server: None,
        monitor: Monitor::Native(pod),
        kernel: node.config.guest.kernel.clone(),
        initramfs: node.config.guest.initramfs.clone(),
        kernel_arguments: String::new(),
        vcpus: record.handler.vcpus,
        memory_mib: record.handler.memory_mib,
        balloon_mib: 0,
        deflate_on_oom: false,
        tap: Vec::new(),
        scratch: None,
        debug_console: false,
        user: None,
        limits: DeviceLimits::default(),
        cgroup: Some(cgroup),
    })
}

/// Writable layers of a pod's containers.
fn layers(config: &Config, id: &str) -> PathBuf {
    config.daemon.root.join("layers").join(id)
}

/// Removes what an agent that was killed left on the disk. Blocking; idempotent.
pub(super) fn remove_layers(config: &Config, id: &str) -> std::io::Result<()> {
    match std::fs::remove_dir_all(layers(config, id)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Kills containers whose agent is gone: they are ordinary processes, and do not end with it.
pub(super) async fn kill_containers(node: &Arc<Node>, record: &SandboxRecord) {
    let Some(hierarchy) = node.cgroups.as_ref().filter(|_| record.shares_host()) else { return };
    let cgroup = hierarchy.cgroup(&record.cgroup().join(CONTAINERS_LEAF));
    if let Err(error) = cgroup.and_then(|cgroup| cgroup.kill()) {
        tracing::error!(sandbox = %record.id, error = %crate::error_text(&error), "cannot kill the pod's containers");
    }
}

fn mode(config: &cri::PodSandboxConfig, of: impl Fn(&cri::NamespaceOption) -> i32) -> Option<i32> {
    let context = config.linux.as_ref()?.security_context.as_ref()?;
    context.namespace_options.as_ref().map(of)
}

/// Whether the pod has the host's network.
pub(super) fn shares_network(config: &cri::PodSandboxConfig) -> bool {
    mode(config, |options| options.network) == Some(cri::NamespaceMode::Node as i32)
}

/// Whether the pod has the host's IPC objects and /dev/shm.
pub(super) fn shares_ipc(config: &cri::PodSandboxConfig) -> bool {
    mode(config, |options| options.ipc) == Some(cri::NamespaceMode::Node as i32)
}

/// The network of a pod that has the host's: nothing was made, and the kubelet knows the node's addresses.
pub(super) fn host_network() -> PodNetworkState {
    PodNetworkState::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_namespaces_are_told_apart() {
        let node = cri::NamespaceMode::Node as i32;
        let pod = |options: cri::NamespaceOption| cri::PodSandboxConfig {
            linux: Some(cri::LinuxPodSandboxConfig {
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(options),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let network = pod(cri::NamespaceOption { network: node, ..Default::default() });
        assert!(shares_network(&network) && !shares_ipc(&network));
        let ipc = pod(cri::NamespaceOption { ipc: node, ..Default::default() });
        assert!(!shares_network(&ipc) && shares_ipc(&ipc));
        assert!(!shares_network(&cri::PodSandboxConfig::default()));
    }
}
