//! What is journaled of a sandbox, and the names that follow from it.

use std::path::{Path, PathBuf};

use bulkhead_proto::cri;
use serde::{Deserialize, Serialize};

use super::state::SandboxState;
use crate::config::Config;
use crate::network::PodNetworkState;
use crate::sandboxer::MachinePaths;
use crate::store::proto_text;

/// A pod sandbox as it stands in the journal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// Its id.
    pub id: String,
    /// As the kubelet sent it; labels and annotations go back unaltered.
    #[serde(with = "proto_text")]
    pub config: cri::PodSandboxConfig,
    /// The handler it was made with, resolved: changing the configuration orphans nobody.
    pub runtime_handler: String,
    /// Where it stands.
    pub state: SandboxState,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    /// The host's boot it was made in.
    pub boot_id: String,
    /// Interfaces and addresses, once CNI answered.
    pub network: Option<PodNetworkState>,
    /// Why the machine ended, when it did by itself.
    pub end: Option<String>,
}

impl SandboxRecord {
    /// The pod's metadata; empty when the kubelet sent none.
    #[must_use]
    pub fn metadata(&self) -> cri::PodSandboxMetadata {
        self.config.metadata.clone().unwrap_or_default()
    }

    /// Sockets and files of the machine.
    #[must_use]
    pub fn paths(&self, config: &Config) -> MachinePaths {
        MachinePaths::new(run_dir(config, &self.id))
    }

    /// The pod's network namespace on the host.
    #[must_use]
    pub fn netns(&self) -> PathBuf {
        netns_path(&self.id)
    }

    /// The pod's cgroup relative to the hierarchy's root, honouring the kubelet's cgroup_parent.
    #[must_use]
    pub fn cgroup(&self) -> PathBuf {
        let asked = self.config.linux.as_ref().map_or("", |linux| linux.cgroup_parent.as_str()).trim_matches('/');
        let plain = !asked.is_empty() && asked.split('/').all(|part| !matches!(part, "" | "." | ".."));
        Path::new(if plain { asked } else { "bulkhead" }).join(format!("bulkhead-{}", self.id))
    }

    /// The name that makes two creations the same.
    #[must_use]
    pub fn key(config: &cri::PodSandboxConfig) -> String {
        let m = config.metadata.clone().unwrap_or_default();
        format!("{}_{}_{}_{}", m.name, m.namespace, m.uid, m.attempt)
    }
}

/// A sandbox's run directory.
#[must_use]
pub fn run_dir(config: &Config, id: &str) -> PathBuf {
    config.daemon.run.join("sandboxes").join(id)
}

/// Where a sandbox's network namespace is bound.
#[must_use]
pub fn netns_path(id: &str) -> PathBuf {
    Path::new("/run/netns").join(format!("bulkhead-{id}"))
}
