//! What is journaled of a container.

use bulkhead_proto::cri;
use serde::{Deserialize, Serialize};

use super::state::ContainerState;
use crate::image::ImageId;
use crate::store::proto_text;

/// Numbers of a process's user and groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All groups, the primary one included.
    pub groups: Vec<u32>,
}

/// A container as it stands in the journal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Its id.
    pub id: String,
    /// Its pod sandbox.
    pub sandbox_id: String,
    /// As the kubelet sent it.
    #[serde(with = "proto_text")]
    pub config: cri::ContainerConfig,
    /// The image it was made from.
    pub image_id: ImageId,
    /// A repository digest of the image, or its id.
    pub image_ref: String,
    /// The image's stop signal; the container's own goes before it.
    pub image_stop_signal: Option<String>,
    /// `agent.v1.Process` of the first process, encoded; exec'd processes inherit from it.
    pub process: Vec<u8>,
    /// Whose rights the first process has, once the container is built.
    #[serde(default)]
    pub identity: Option<Identity>,
    /// The first process in the agent's PID namespace, which with the sandboxer `native` is the host's; 0: not known.
    #[serde(default)]
    pub pid: u32,
    /// `nri.pkg.api.v1alpha1.Container` as NRI plugins made it, encoded; empty when none changed it.
    #[serde(default)]
    pub nri: Vec<u8>,
    /// Names in the pod's volume share.
    pub volumes: Vec<String>,
    /// Absolute; empty without a log.
    pub log_path: String,
    /// Where it stands.
    pub state: ContainerState,
    /// Nanoseconds since 1970.
    pub created_at: i64,
}

impl ContainerRecord {
    /// Its metadata; empty when the kubelet sent none.
    #[must_use]
    pub fn metadata(&self) -> cri::ContainerMetadata {
        self.config.metadata.clone().unwrap_or_default()
    }
}
