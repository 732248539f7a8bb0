//! SetCpus: CPUs of the guest online and offline.

use std::sync::Arc;

use bulkhead_proto::agent::{SetCpusRequest, SetCpusResponse};

use super::{Service, blocking};

pub(super) async fn run(service: &Service, request: SetCpusRequest) -> ttrpc::Result<SetCpusResponse> {
    let sandbox = Arc::clone(&service.sandbox);
    let online = blocking(move || sandbox.set_cpus(request.online)).await?;
    Ok(SetCpusResponse { online, ..Default::default() })
}
