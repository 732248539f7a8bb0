//! Status: conditions, handlers and, on request, what was found out about the host.

use std::collections::HashMap;
use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use crate::node::Node;
use crate::sandboxer::monitor::{self, HostAbilities};

pub(super) async fn status(node: &Arc<Node>, request: cri::StatusRequest) -> Result<cri::StatusResponse, Status> {
    let network = node.network.ready().await;
    let conditions = vec![
        condition("RuntimeReady", Ok(handlers_in_words(node))),
        condition("NetworkReady", network.map(|()| String::new()).map_err(|e| crate::error_text(&e))),
    ];
    let info = if request.verbose { info(node) } else { HashMap::new() };
    Ok(cri::StatusResponse {
        status: Some(cri::RuntimeStatus { conditions }),
        info,
        runtime_handlers: handlers(node),
        features: Some(cri::RuntimeFeatures { supplemental_groups_policy: true, ..Default::default() }),
    })
}

/// The kubelet matches these against the pods' needs; the empty name is the default handler.
fn handlers(node: &Node) -> Vec<cri::RuntimeHandler> {
    let features = |name: &str| cri::RuntimeHandlerFeatures {
        recursive_read_only_mounts: true,
        user_namespaces: node.abilities.no_user_namespaces.is_none()
            && node.config.runtimes.get(name).is_some_and(|handler| handler.sandboxer.shares_host()),
    };
    let default = monitor::default_handler(&node.config, &node.abilities);
    let named = node.config.runtimes.keys().map(|name| (name.as_str(), name.as_str()));
    std::iter::once(("", default))
        .chain(named)
        .map(|(name, handler)| cri::RuntimeHandler { name: name.to_owned(), features: Some(features(handler)) })
        .collect()
}

fn condition(name: &str, state: Result<String, String>) -> cri::RuntimeCondition {
    let status = state.is_ok();
    let reason = if status { "" } else { "NotReady" };
    let message = state.unwrap_or_else(|why| why);
    cri::RuntimeCondition { r#type: name.into(), status, reason: reason.into(), message }
}

/// What limits the handlers, told wherever the runtime is looked at.
fn handlers_in_words(node: &Node) -> String {
    [emulation(node), unlimited(node)].into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// Limits that pods on the host's kernel do not get here.
fn unlimited(node: &Node) -> Option<String> {
    let native = node.config.runtimes.iter().filter(|(_, handler)| handler.sandboxer.shares_host());
    let native: Vec<&str> = native.map(|(name, _)| name.as_str()).collect();
    let offered = node.cgroups.as_ref().map(|hierarchy| hierarchy.controllers.as_slice()).unwrap_or_default();
    let missing: Vec<&str> =
        ["cpu", "cpuset", "memory", "pids"].into_iter().filter(|name| !offered.iter().any(|o| o == name)).collect();
    (!native.is_empty() && !missing.is_empty()).then(|| {
        format!(
            "handlers whose limits of {} have no effect, because this host's cgroup v2 has no controllers for them: {}",
            missing.join(", "),
            native.join(", ")
        )
    })
}

/// Emulation is no security boundary.
fn emulation(node: &Node) -> Option<String> {
    let emulating: Vec<&str> = node
        .config
        .runtimes
        .iter()
        .filter(|(_, handler)| monitor::emulates(handler, &node.abilities))
        .map(|(name, _)| name.as_str())
        .collect();
    (!emulating.is_empty()).then(|| {
        format!(
            "handlers that emulate the guest in software (TCG), which is no security boundary: {}",
            emulating.join(", ")
        )
    })
}

fn info(node: &Node) -> HashMap<String, String> {
    let config = serde_json::to_string(&node.config).unwrap_or_default();
    let HostAbilities { kvm, kvm_time, kvm_reason, .. } = &node.abilities;
    let verdict = if *kvm { "passed".to_owned() } else { format!("failed: {kvm_reason}") };
    let verdict = format!("{verdict} ({} ms)", kvm_time.as_millis());
    let default = monitor::default_handler(&node.config, &node.abilities);
    let text = |text: &str| serde_json::Value::from(text).to_string();
    HashMap::from([
        ("config".to_owned(), config),
        ("kvmSelfTest".to_owned(), text(&verdict)),
        ("defaultRuntimeHandler".to_owned(), text(default)),
    ])
}
