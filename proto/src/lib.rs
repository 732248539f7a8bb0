//! The protocols of Bulkhead and the code generated from them; no logic.
//!
//! * [`cri`]: CRI v1 (gRPC), what the kubelet and crictl speak to the daemon.
//! * [`agent`]: daemon to agent (ttrpc over vsock): containers in the guest.
//! * [`vmm`]: daemon to `bulkhead-vmm` (ttrpc over a unix socket): the machine, its drives, logs and volumes.
//! * [`nri`]: NRI (ttrpc over a unix socket): plugins of the node that watch and change containers.
//! * [`stdio`]: framing of process streams between the agent and whoever reads them.
//! * [`figures`]: figures of cgroups and interfaces as [`agent`] tells them.
//! * [`launch`]: what `bulkhead-vmm` is told when it is started, and how descriptors are handed to it.

#[cfg(feature = "agent")]
pub mod figures;
pub mod launch;
pub mod stdio;

/// CRI v1 of k8s.io/cri-api v0.37.2.
#[cfg(feature = "cri")]
#[allow(missing_docs, missing_debug_implementations, clippy::all, clippy::unwrap_used)]
#[path = "gen/cri.rs"]
#[rustfmt::skip]
pub mod cri;

/// Messages of `protos/agent.proto`.
#[cfg(feature = "agent")]
#[allow(clippy::unwrap_used)]
#[path = "gen/agent.rs"]
#[rustfmt::skip]
pub mod agent;

/// Client and server of `protos/agent.proto`.
#[cfg(feature = "agent")]
#[allow(missing_docs, missing_debug_implementations, clippy::all, clippy::unwrap_used)]
#[path = "gen/agent_ttrpc.rs"]
#[rustfmt::skip]
pub mod agent_ttrpc;

/// Messages of `protos/vmm.proto`.
#[cfg(feature = "vmm")]
#[allow(clippy::unwrap_used)]
#[path = "gen/vmm.rs"]
#[rustfmt::skip]
pub mod vmm;

/// Client and server of `protos/vmm.proto`.
#[cfg(feature = "vmm")]
#[allow(missing_docs, missing_debug_implementations, clippy::all, clippy::unwrap_used)]
#[path = "gen/vmm_ttrpc.rs"]
#[rustfmt::skip]
pub mod vmm_ttrpc;

/// Messages of `protos/nri.proto`: containerd/nri 0.12, pkg/api/api.proto.
#[cfg(feature = "nri")]
#[allow(clippy::unwrap_used)]
#[path = "gen/nri.rs"]
#[rustfmt::skip]
pub mod nri;

/// Client and server of `protos/nri.proto`.
#[cfg(feature = "nri")]
#[allow(missing_docs, missing_debug_implementations, clippy::all, clippy::unwrap_used)]
#[path = "gen/nri_ttrpc.rs"]
#[rustfmt::skip]
pub mod nri_ttrpc;

/// The version of agent.proto and [`stdio`]; that of vmm.proto is [`launch::PROTOCOL_VERSION`].
pub const AGENT_PROTOCOL_VERSION: u32 = 1;
/// vsock port on which the agent serves [`agent`] (guest listens).
pub const AGENT_RPC_PORT: u32 = 1024;
/// vsock port on which the agent serves [`stdio`] connections (guest listens).
pub const AGENT_STDIO_PORT: u32 = 1025;
/// vsock port to which the agent connects once both of its ports listen (host listens).
pub const AGENT_READY_PORT: u32 = 1026;
/// The guest's vsock address.
pub const GUEST_CID: u64 = 3;
