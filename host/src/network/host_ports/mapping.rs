//! One host port as a pod asks for it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bulkhead_proto::cri;
use serde::{Deserialize, Serialize};

/// Transport of a host port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl Protocol {
    /// As nftables and /proc name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// A port of the host that leads to one of the pod's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPort {
    /// Its transport.
    pub protocol: Protocol,
    /// One address of the host, unspecified for all of one family; none for all addresses.
    pub host_ip: Option<IpAddr>,
    /// 1 to 65535
    pub host_port: u16,
    /// 1 to 65535
    pub container_port: u16,
}

impl HostPort {
    /// The mappings that have a host port, checked; a repetition counts once.
    ///
    /// # Errors
    /// The mapping and what is wrong with it.
    pub fn read(mappings: &[cri::PortMapping]) -> Result<Vec<Self>, (String, &'static str)> {
        let mut ports: Vec<Self> = Vec::new();
        for mapping in mappings.iter().filter(|mapping| mapping.host_port != 0) {
            let port = Self::read_one(mapping).map_err(|why| (text(mapping), why))?;
            if ports.contains(&port) {
                continue;
            }
            if ports.iter().any(|other| other.overlaps(&port)) {
                return Err((text(mapping), "the pod asks for this host port twice; leave one out"));
            }
            ports.push(port);
        }
        Ok(ports)
    }

    fn read_one(mapping: &cri::PortMapping) -> Result<Self, &'static str> {
        let number = |value: i32| u16::try_from(value).ok().filter(|port| *port > 0).ok_or("ports are 1 to 65535");
        let protocol = match cri::Protocol::try_from(mapping.protocol) {
            Ok(cri::Protocol::Tcp) => Protocol::Tcp,
            Ok(cri::Protocol::Udp) => Protocol::Udp,
            Ok(cri::Protocol::Sctp) => Protocol::Sctp,
            Err(_) => return Err("protocols are TCP (0), UDP (1) and SCTP (2)"),
        };
        let host_ip = match mapping.host_ip.as_str() {
            "" => None,
            text => Some(text.parse::<IpAddr>().map_err(|_| "host_ip is no IP address")?.to_canonical()),
        };
        if host_ip.is_some_and(|ip| ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST)) {
            return Err("host_ip must be an address of this host");
        }
        if matches!(host_ip, Some(IpAddr::V6(ip)) if ip.is_unicast_link_local() || ip.is_loopback()) {
            return Err("host_ip cannot be an IPv6 link-local address or ::1: the kernel forwards neither to a pod");
        }
        Ok(Self {
            protocol,
            host_ip,
            host_port: number(mapping.host_port)?,
            container_port: number(mapping.container_port)?,
        })
    }

    /// Where the host must not serve anything else.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let all = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        let chosen = self.host_ip.map_or_else(|| all.to_vec(), |ip| vec![ip]);
        chosen.into_iter().map(|ip| SocketAddr::new(ip, self.host_port)).collect()
    }

    /// Whether a connection could mean either.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.protocol == other.protocol
            && self.addresses().iter().any(|own| other.addresses().iter().any(|theirs| meet(*own, *theirs)))
    }

    /// Whether 127.0.0.1 leads to it.
    #[must_use]
    pub fn on_loopback(&self) -> bool {
        match self.host_ip {
            None => true,
            Some(IpAddr::V4(ip)) => ip.is_unspecified() || ip.is_loopback(),
            Some(IpAddr::V6(_)) => false,
        }
    }
}

/// Whether two sockets that have `a` and `b` for themselves exclude each other.
pub(super) fn meet(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port()
        && a.is_ipv4() == b.is_ipv4()
        && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = self.protocol.name().to_uppercase();
        match self.host_ip {
            None => write!(f, "{}/{protocol}", self.host_port),
            Some(ip) => write!(f, "{}/{protocol}", SocketAddr::new(ip, self.host_port)),
        }
    }
}

fn text(mapping: &cri::PortMapping) -> String {
    let cri::PortMapping { host_ip, host_port, container_port, protocol } = mapping;
    format!("host_ip {host_ip:?}, host_port {host_port}, container_port {container_port}, protocol {protocol}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(host_ip: &str, host_port: i32) -> cri::PortMapping {
        cri::PortMapping { host_ip: host_ip.into(), host_port, container_port: 80, ..Default::default() }
    }

    #[test]
    fn mappings_without_a_host_port_are_none() {
        let ports = HostPort::read(&[mapping("", 0), mapping("", 8080), mapping("", 8080)]).unwrap();
        assert_eq!(ports.iter().map(ToString::to_string).collect::<Vec<_>>(), ["8080/TCP"]);
        assert_eq!(ports[0].addresses().len(), 2);
    }

    #[test]
    fn nonsense_is_refused_by_field() {
        let why = |mapping: cri::PortMapping| HostPort::read(&[mapping]).unwrap_err();
        assert!(why(mapping("localhost", 1)).1.contains("host_ip is no IP address"));
        assert!(why(mapping("", 70_000)).0.contains("70000"));
        assert!(why(mapping("", -1)).1.contains("1 to 65535"));
        assert!(why(mapping("ff02::1", 1)).1.contains("host_ip"));
        assert!(why(mapping("fe80::1", 1)).1.contains("link-local"));
        assert!(why(cri::PortMapping { protocol: 9, ..mapping("", 1) }).1.contains("SCTP"));
        assert!(why(cri::PortMapping { container_port: 0, ..mapping("", 1) }).1.contains("1 to 65535"));
    }

    #[test]
    fn one_port_twice_is_refused() {
        let error = HostPort::read(&[mapping("", 80), mapping("192.0.2.1", 80)]).unwrap_err();
        assert!(error.1.contains("twice") && error.0.contains("192.0.2.1"), "{error:?}");
        assert_eq!(HostPort::read(&[mapping("192.0.2.1", 80), mapping("192.0.2.2", 80)]).unwrap().len(), 2);
        assert_eq!(HostPort::read(&[mapping("0.0.0.0", 80), mapping("::", 80)]).unwrap().len(), 2);
    }

    #[test]
    fn overlap_knows_families_and_transports() {
        let port = |ip: &str, protocol| HostPort {
            protocol,
            host_ip: (!ip.is_empty()).then(|| ip.parse().unwrap()),
            host_port: 53,
            container_port: 53,
        };
        let tcp = |ip| port(ip, Protocol::Tcp);
        assert!(tcp("").overlaps(&tcp("192.0.2.1")) && tcp("").overlaps(&tcp("2001:db8::1")));
        assert!(tcp("0.0.0.0").overlaps(&tcp("192.0.2.1")) && !tcp("0.0.0.0").overlaps(&tcp("2001:db8::1")));
        assert!(!tcp("").overlaps(&port("", Protocol::Udp)));
        assert!(!tcp("192.0.2.1").overlaps(&tcp("192.0.2.2")));
        assert!(tcp("").on_loopback() && tcp("127.0.0.1").on_loopback() && !tcp("::").on_loopback());
    }
}
