//! What is journaled of a sandbox, and the names that follow from it.

use std::path::{Path, PathBuf};

use bulkhead_proto::cri;
use serde::{Deserialize, Serialize};

use super::state::SandboxState;
use super::user_namespace;
use crate::config::{CgroupDriver, Config, RuntimeHandlerConfig};
use crate::network::PodNetworkState;
use crate::sandboxer::MachinePaths;
use crate::sandboxer::place::Owner;
use crate::sandboxer::sizing::Sizing;
use crate::store::proto_text;
use crate::sys::userns::Mapping;
use crate::systemd::Slice;

/// Longest label of a domain name (RFC 1035, section 2.3.4).
const MAX_LABEL: usize = 63;

/// A pod sandbox as it stands in the journal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// Its id.
    pub id: String,
    /// As the kubelet sent it; labels and annotations go back unaltered.
    #[serde(with = "proto_text")]
    pub config: cri::PodSandboxConfig,
    /// Name of the handler it was made with.
    pub runtime_handler: String,
    /// That handler's options then, as the pod's annotations changed them: changing the configuration orphans nobody.
    #[serde(default = "RuntimeHandlerConfig::qemu")]
    pub handler: RuntimeHandlerConfig,
    /// Where it stands.
    pub state: SandboxState,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    /// User and group of its process, which no other sandbox has while this one exists.
    #[serde(default)]
    pub user: Option<u32>,
    /// How big its machine is; `None` before it is known, and in records older than this field.
    #[serde(default)]
    pub sizing: Option<Sizing>,
    /// Who made its cgroup.
    #[serde(default)]
    pub cgroup_driver: CgroupDriver,
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

    /// As asked for, else the pod's name as far as it can be one: a DNS label is shorter than a pod's name may be.
    #[must_use]
    pub fn hostname(&self) -> String {
        if !self.config.hostname.is_empty() {
            return self.config.hostname.clone();
        }
        let name = self.metadata().name;
        let kept = name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).take(MAX_LABEL);
        kept.collect::<String>().trim_matches(['-', '.']).to_owned()
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
        match self.cgroup_owner() {
            Owner::Own => self.cgroup_parent().unwrap_or("bulkhead".into()).join(format!("bulkhead-{}", self.id)),
            Owner::Scope(slice) => slice.path().join(format!("bulkhead-{}.scope", self.id)),
        }
    }

    /// Who makes that cgroup.
    #[must_use]
    pub fn cgroup_owner(&self) -> Owner {
        match self.cgroup_driver {
            CgroupDriver::Cgroupfs => Owner::Own,
            CgroupDriver::Systemd => Owner::Scope(self.slice().unwrap_or_else(Slice::own)),
        }
    }

    /// What the kubelet asks for; empty when it does not care.
    fn asked_parent(&self) -> &str {
        self.config.linux.as_ref().map_or("", |linux| linux.cgroup_parent.as_str()).trim_matches('/')
    }

    fn slice(&self) -> Option<Slice> {
        Slice::of_parent(self.asked_parent()).ok()
    }

    /// The cgroup that the kubelet made for the pod, relative to the hierarchy's root.
    #[must_use]
    pub fn cgroup_parent(&self) -> Option<PathBuf> {
        if self.cgroup_driver == CgroupDriver::Systemd {
            return self.slice().map(|slice| slice.path());
        }
        let asked = self.asked_parent();
        let plain = !asked.is_empty() && asked.split('/').all(|part| !matches!(part, "" | "." | ".."));
        plain.then(|| asked.into())
    }

    /// Whether its containers run on the host's own kernel.
    #[must_use]
    pub fn shares_host(&self) -> bool {
        self.handler.sandboxer.shares_host()
    }

    /// Whether it has the host's network.
    #[must_use]
    pub fn shares_network(&self) -> bool {
        super::native::shares_network(&self.config)
    }

    /// The ids of the pod's user namespace; `None` for the host's. It was checked before the record was made.
    #[must_use]
    pub fn users(&self) -> Option<Mapping> {
        user_namespace::mapping(&self.config).ok().flatten()
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
    sandboxes_dir(config).join(id)
}

/// Where the run directories of all sandboxes are.
#[must_use]
pub fn sandboxes_dir(config: &Config) -> PathBuf {
    config.daemon.run.join("sandboxes")
}

/// Where a sandbox's network namespace is bound.
#[must_use]
pub fn netns_path(id: &str) -> PathBuf {
    Path::new("/run/netns").join(format!("bulkhead-{id}"))
}
