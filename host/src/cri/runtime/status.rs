//! Status: conditions, handlers and, on request, what was found out about the host.

use std::collections::HashMap;
use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use crate::node::Node;
use crate::sandboxer::monitor;

pub(super) async fn status(node: &Arc<Node>, request: cri::StatusRequest) -> Result<cri::StatusResponse, Status> {
    let network = node.network.ready().await;
    let conditions = vec![
        condition("RuntimeReady", Ok(handlers_in_words(node))),
        condition("NetworkReady", network.map(|()| String::new()).map_err(|e| crate::error_text(&e))),
    ];
    let features = cri::RuntimeHandlerFeatures { recursive_read_only_mounts: true, user_namespaces: false };
    let mut names = vec![String::new()];
    names.extend(node.config.runtimes.keys().cloned());
    let info = if request.verbose { info(node) } else { HashMap::new() };
    Ok(cri::StatusResponse {
        status: Some(cri::RuntimeStatus { conditions }),
        info,
        runtime_handlers: names
            .into_iter()
            .map(|name| cri::RuntimeHandler { name, features: Some(features) })
            .collect(),
        features: Some(cri::RuntimeFeatures { supplemental_groups_policy: true, ..Default::default() }),
    })
}

fn condition(name: &str, state: Result<String, String>) -> cri::RuntimeCondition {
    let status = state.is_ok();
    let reason = if status { "" } else { "NotReady" };
    let message = state.unwrap_or_else(|why| why);
    cri::RuntimeCondition { r#type: name.into(), status, reason: reason.into(), message }
}

/// Emulation is told wherever the runtime is looked at: it is no security boundary.
fn handlers_in_words(node: &Node) -> String {
    let emulating: Vec<&str> = node
        .config
        .runtimes
        .iter()
        .filter(|(_, handler)| monitor::emulates(handler, &node.abilities))
        .map(|(name, _)| name.as_str())
        .collect();
    if emulating.is_empty() {
        return String::new();
    }
    format!(
        "handlers that emulate the guest in software (TCG), which is no security boundary: {}",
        emulating.join(", ")
    )
}

fn info(node: &Node) -> HashMap<String, String> {
    let config = serde_json::to_string(&node.config).unwrap_or_default();
    let kvm = if node.abilities.kvm { "passed".to_owned() } else { format!("failed: {}", node.abilities.kvm_reason) };
    HashMap::from([("config".to_owned(), config), ("kvmSelfTest".to_owned(), serde_json::Value::from(kvm).to_string())])
}
