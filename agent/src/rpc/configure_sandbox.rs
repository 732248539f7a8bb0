//! ConfigureSandbox: names, network, files and settings of the pod.

use std::sync::Arc;

use bulkhead_proto::agent::{ConfigureSandboxRequest, ConfigureSandboxResponse};

use super::{Service, blocking};

pub(super) async fn run(
    service: &Service,
    request: ConfigureSandboxRequest,
) -> ttrpc::Result<ConfigureSandboxResponse> {
    let sandbox = Arc::clone(&service.sandbox);
    blocking(move || sandbox.configure(&request)).await?;
    Ok(ConfigureSandboxResponse::new())
}
