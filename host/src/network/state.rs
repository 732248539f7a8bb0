//! What a pod's network is once it is set up; journaled by the daemon and handed to the agent.

use bulkhead_proto::agent;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::result::Dns;

/// The outcome of [`super::PodNetwork::setup`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodNetworkState {
    /// The CNI network's name.
    pub network: String,
    /// In the order of the guest's network devices.
    pub interfaces: Vec<Interface>,
    /// Directly connected networks before those behind a gateway, the default last.
    pub routes: Vec<Route>,
    /// Permanent entries that plugins made.
    pub neighbours: Vec<Neighbour>,
    /// The pod's addresses without prefix, the primary first.
    pub ips: Vec<String>,
    /// DNS as the plugins answered it.
    pub dns: Dns,
    /// The last plugin's answer, JSON.
    pub cni_result: String,
}

/// One of the pod's interfaces, as it is in the network namespace and shall be in the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// The tap it is cross-connected with.
    pub tap: String,
    /// "aa:bb:cc:dd:ee:ff"
    pub mac: String,
    /// Bytes.
    pub mtu: u32,
    /// CIDR notation; no link-local IPv6.
    pub addresses: Vec<String>,
}

/// A route of the main table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// CIDR notation.
    pub destination: String,
    /// Empty when directly connected.
    pub gateway: String,
    /// The interface's name.
    pub interface: String,
    /// rtnetlink's number.
    pub scope: u32,
    /// 0 is the kernel's default.
    pub metric: u32,
    /// 0 is the interface's.
    pub mtu: u32,
}

/// A permanent neighbour.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// IP address.
    pub address: String,
    /// "aa:bb:cc:dd:ee:ff"
    pub mac: String,
    /// The interface's name.
    pub interface: String,
}

impl PodNetworkState {
    /// The address that the kubelet calls the pod's.
    #[must_use]
    pub fn primary_ip(&self) -> Option<String> {
        self.ips.first().cloned()
    }

    /// Its addresses but the primary.
    #[must_use]
    pub fn additional_ips(&self) -> &[String] {
        self.ips.get(1..).unwrap_or_default()
    }

    /// Its addresses with their networks' prefix lengths, the primary first.
    #[must_use]
    pub fn networks(&self) -> Vec<IpNet> {
        let all: Vec<IpNet> =
            self.interfaces.iter().flat_map(|i| &i.addresses).filter_map(|text| text.parse().ok()).collect();
        let of = |ip: &String| all.iter().find(|network| network.addr().to_string() == *ip).copied();
        self.ips.iter().filter_map(of).collect()
    }

    /// As the agent is told.
    #[must_use]
    pub fn to_agent(&self) -> (Vec<agent::Interface>, Vec<agent::Route>, Vec<agent::Neighbour>) {
        let interfaces = (0..).zip(&self.interfaces).map(|(device_index, interface)| agent::Interface {
            name: interface.name.clone(),
            mac: interface.mac.clone(),
            mtu: interface.mtu,
            addresses: interface.addresses.clone(),
            device_index,
            ..Default::default()
        });
        let routes = self.routes.iter().map(|route| agent::Route {
            destination: route.destination.clone(),
            gateway: route.gateway.clone(),
            interface: route.interface.clone(),
            scope: route.scope,
            metric: route.metric,
            mtu: route.mtu,
            ..Default::default()
        });
        let neighbours = self.neighbours.iter().map(|neighbour| agent::Neighbour {
            address: neighbour.address.clone(),
            mac: neighbour.mac.clone(),
            interface: neighbour.interface.clone(),
            ..Default::default()
        });
        (interfaces.collect(), routes.collect(), neighbours.collect())
    }
}
