//! What plugins have been told of. A plugin that connects is told of exactly this, and of everything else by an event.

use std::collections::HashMap;

use bulkhead_proto::nri;

/// A container that plugins know.
#[derive(Debug, Clone)]
pub(super) struct KnownContainer {
    /// As it was when they were told; its record is newer, where there is one.
    pub(super) message: nri::Container,
    /// They know of its end.
    pub(super) has_ended: bool,
}

/// A pod that plugins know.
#[derive(Debug, Clone)]
pub(super) struct KnownPod {
    /// As it was when they were told.
    pub(super) message: nri::PodSandbox,
    /// They know that it was stopped.
    pub(super) is_stopped: bool,
}

/// Pods and containers by id.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) pods: HashMap<String, KnownPod>,
    pub(super) containers: HashMap<String, KnownContainer>,
}

impl Told {
    /// Containers of a pod whose end is not told yet.
    pub(super) fn running_in(&self, pod: &str) -> Vec<String> {
        let of_pod = self.containers.values().filter(|known| known.message.pod_sandbox_id == pod);
        of_pod.filter(|known| !known.has_ended).map(|known| known.message.id.clone()).collect()
    }
}
