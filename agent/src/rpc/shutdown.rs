//! Shutdown: the pod ends.

use bulkhead_proto::agent::ShutdownResponse;

use super::Service;

pub(super) fn run(service: &Service) -> ShutdownResponse {
    service.shutdown.notify_one();
    ShutdownResponse::new()
}
