//! A pod's network: CNI plugins make interfaces in the pod's network namespace, and each is cross-connected with a
//! tap that the pod's virtual machine drives.
//!
//! ```text
//!  node's network        pod's network namespace                        guest
//!  bridge -- veth ------ eth0 <== tc ingress, mirred redirect ==> tap0 ------ eth0 (same MAC and addresses)
//! ```
//!
//! The namespace's own stack keeps eth0's addresses, because plugins CHECK for them, but never hears a packet: the
//! ingress redirect takes every frame before it. So only the guest answers ARP, and no bridge learns a second MAC.
//!
//! * [`config`]: which networks the node has. * [`plugin`]: running one plugin. * [`attachment`]: ADD, CHECK and DEL of a
//!   whole list, recorded so that DEL is possible after a crash. * [`link`]: netlink in the pod's namespace.
//! * [`host_ports`]: ports of the host that lead to pods.
//! * [`capability`]: what plugins are told beside their configuration. * [`dns`]: resolv.conf. * [`state`]: the outcome.

pub mod attachment;
pub mod capability;
pub mod config;
pub mod dns;
pub mod host_ports;
pub mod link;
pub mod plugin;
mod pod;
mod record_file;
pub mod result;
pub mod state;
mod turns;

pub use pod::{NetworkError, NetworkRequest, PodNetwork, Settings};
pub use state::{Interface, Neighbour, PodNetworkState, Route};
