//! ConfigureSandbox: names, network, files and settings of the pod.

use std::sync::Arc;

use bulkhead_proto::AGENT_PROTOCOL_VERSION;
use bulkhead_proto::agent::{ConfigureSandboxRequest, ConfigureSandboxResponse};

use super::{Service, blocking};

pub(super) async fn run(
    service: &Service,
    request: ConfigureSandboxRequest,
) -> ttrpc::Result<ConfigureSandboxResponse> {
    let sandbox = Arc::clone(&service.sandbox);
    blocking(move || sandbox.configure(&request)).await?;
    let sandbox = Arc::clone(&service.sandbox);
    let user_namespace = sandbox.users().is_some();
    // Nobody waits for it: the first container finds the namespaces made, or being made.
    drop(tokio::task::spawn_blocking(move || sandbox.prepare_namespaces()));
    Ok(ConfigureSandboxResponse { protocol_version: AGENT_PROTOCOL_VERSION, user_namespace, ..Default::default() })
}
