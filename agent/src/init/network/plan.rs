//! The pod's network in types: parsed, checked and put in an order that the kernel accepts.

use std::net::IpAddr;
use std::str::FromStr;

use bulkhead_proto::agent::{self, ConfigureSandboxRequest};

/// A hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mac(pub(super) [u8; 6]);

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no hardware address");
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))
                .ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Self(bytes)) }
    }
}

/// An address and the length of its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Prefix {
    pub(super) address: IpAddr,
    pub(super) length: u8,
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no address with a prefix length");
        let (address, length) = text.split_once('/').ok_or_else(bad)?;
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let length = length.parse().ok().filter(|length| *length <= most).ok_or_else(bad)?;
        Ok(Self { address, length })
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl Prefix {
    fn bits(address: IpAddr) -> u128 {
        match address {
            IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
            IpAddr::V6(v6) => v6.to_bits(),
        }
    }

    fn contains(&self, other: IpAddr) -> bool {
        let shift = 128 - u32::from(self.length);
        let network = |address| Self::bits(address).checked_shr(shift).unwrap_or(0);
        self.address.is_ipv4() == other.is_ipv4() && network(self.address) == network(other)
    }
}

/// A route to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) destination: Prefix,
    pub(super) gateway: Option<IpAddr>,
    pub(super) interface: String,
    pub(super) scope: u8,
    pub(super) metric: u32,
    pub(super) mtu: u32,
    /// The gateway is reached directly although no address says so.
    pub(super) on_link: bool,
}

/// A permanent neighbour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Neighbour {
    pub(super) address: IpAddr,
    pub(super) mac: Mac,
    pub(super) interface: String,
}

/// Routes and neighbours of the pod.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) routes: Vec<Route>,
    pub(super) neighbours: Vec<Neighbour>,
}

impl Network {
    pub(super) fn new(request: &ConfigureSandboxRequest) -> Result<Self, String> {
        let addresses = request.interfaces.iter().flat_map(|interface| &interface.addresses);
        let addresses = addresses.map(|address| address.parse()).collect::<Result<Vec<Prefix>, _>>()?;
        let mut routes = request.routes.iter().map(|r| route(r, &addresses)).collect::<Result<Vec<_>, _>>()?;
        // What is reached directly comes before what is reached through it.
        routes.sort_by_key(|route| route.gateway.is_some());
        let neighbours = request.neighbours.iter().map(neighbour).collect::<Result<_, _>>()?;
        Ok(Self { routes, neighbours })
    }
}

fn route(route: &agent::Route, addresses: &[Prefix]) -> Result<Route, String> {
    let destination: Prefix = route.destination.parse()?;
    let gateway: Option<IpAddr> = match route.gateway.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| format!("gateway {text:?} is no address"))?),
    };
    let scope = u8::try_from(route.scope).map_err(|_| format!("{} is no route scope", route.scope))?;
    let on_link = gateway.is_some_and(|gateway| !addresses.iter().any(|prefix| prefix.contains(gateway)));
    // Without a gateway there is nothing beyond the link.
    let scope = if gateway.is_none() && scope == 0 && destination.address.is_ipv4() { 253 } else { scope };
    let (metric, mtu) = (route.metric, route.mtu);
    Ok(Route { destination, gateway, interface: route.interface.clone(), scope, metric, mtu, on_link })
}

fn neighbour(neighbour: &agent::Neighbour) -> Result<Neighbour, String> {
    let address = neighbour.address.parse().map_err(|_| format!("{:?} is no address", neighbour.address))?;
    Ok(Neighbour { address, mac: neighbour.mac.parse()?, interface: neighbour.interface.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_have_six_bytes() {
        assert_eq!("0a:ff:00:01:02:03".parse(), Ok(Mac([10, 255, 0, 1, 2, 3])));
        for bad in ["", "0a:ff:00:01:02", "0a:ff:00:01:02:03:04", "0a:ff:00:01:02:3", "0a:ff:00:01:02:+3"] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn prefixes_are_bounded_by_their_family() {
        assert!("10.0.0.1/32".parse::<Prefix>().is_ok() && "::1/128".parse::<Prefix>().is_ok());
        for bad in ["10.0.0.1", "10.0.0.1/33", "::/129", "x/8", "10.0.0.1/-1"] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
    }

    #[test]
    fn links_come_first_and_far_gateways_are_on_link() {
        let mut request = ConfigureSandboxRequest::new();
        let mut interface = agent::Interface::new();
        interface.addresses.push("10.1.0.5/24".into());
        request.interfaces.push(interface);
        for (destination, gateway) in
            [("0.0.0.0/0", "169.254.1.1"), ("10.2.0.0/16", "10.1.0.1"), ("169.254.1.1/32", "")]
        {
            let mut route = agent::Route::new();
            (route.destination, route.gateway) = (destination.into(), gateway.into());
            request.routes.push(route);
        }
        let routes = Network::new(&request).unwrap().routes;
        let seen: Vec<_> = routes.iter().map(|r| (r.destination.to_string(), r.on_link, r.scope)).collect();
        let expected = [("169.254.1.1/32", false, 253), ("0.0.0.0/0", true, 0), ("10.2.0.0/16", false, 0)];
        assert_eq!(seen, expected.map(|(d, o, s)| (d.to_string(), o, s)));
    }

    #[test]
    fn containment_knows_families() {
        let everything: Prefix = "0.0.0.0/0".parse().unwrap();
        assert!(everything.contains("1.2.3.4".parse().unwrap()) && !everything.contains("::1".parse().unwrap()));
        let one: Prefix = "fd00::1/128".parse().unwrap();
        assert!(one.contains("fd00::1".parse().unwrap()) && !one.contains("fd00::2".parse().unwrap()));
    }
}
