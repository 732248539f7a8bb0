//! 127.0.0.1 of the host as a way to a pod: `route_localnet` of the interface that leads to the pod. What the switch
//! would let in from there is dropped by the table's chain `guard`.

use std::fs;
use std::io;
use std::net::Ipv4Addr;

use super::HostPortError;

/// The interface through which the host reaches `address`.
pub(super) fn interface_to(address: Ipv4Addr) -> Option<String> {
    let routes = fs::read_to_string("/proc/thread-self/net/route").ok()?;
    // A name of unusual letters could not be quoted for nft.
    best(&routes, address).filter(|name| name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.@".contains(c)))
}

// "Iface Destination Gateway Flags RefCnt Use Metric Mask ...", numbers in the host's byte order.
fn best(routes: &str, address: Ipv4Addr) -> Option<String> {
    let address = u32::from_ne_bytes(address.octets());
    let number = |field: Option<&str>| u32::from_str_radix(field?, 16).ok();
    let matching = routes.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let (name, destination) = (fields.next()?, number(fields.next())?);
        let mask = number(fields.nth(5))?;
        (address & mask == destination).then_some((mask.count_ones(), name))
    });
    matching.max_by_key(|(length, _)| *length).map(|(_, name)| name.to_owned())
}

/// Whether the interface takes such packets now.
pub(super) fn is_open(interface: &str) -> bool {
    fs::read_to_string(setting(interface)).is_ok_and(|value| value.trim() == "1")
}

/// An interface that is gone is success: nothing is to be reached there, and a pod may take its own away.
pub(super) fn open(interface: &str) -> Result<(), HostPortError> {
    set(interface, "1")
}

/// An interface that is gone is success.
pub(super) fn close(interface: &str) -> Result<(), HostPortError> {
    set(interface, "0")
}

fn set(interface: &str, value: &str) -> Result<(), HostPortError> {
    match fs::write(setting(interface), value) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(interface)(error)),
        _ => Ok(()),
    }
}

fn setting(interface: &str) -> String {
    format!("/proc/sys/net/ipv4/conf/{interface}/route_localnet")
}

fn failed(interface: &str) -> impl FnOnce(io::Error) -> HostPortError {
    let setting = setting(interface);
    move |source| HostPortError::Setting { setting, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_route_wins() {
        let routes = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                      eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                      br0\t0001C80A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
                      v2\t0201C80A\t00000000\t0001\t0\t0\t0\tFFFFFFFF\t0\t0\t0\n";
        let to = |text: &str| best(routes, text.parse().unwrap());
        assert_eq!(to("10.200.1.3").as_deref(), Some("br0"));
        assert_eq!(to("10.200.1.2").as_deref(), Some("v2"));
        assert_eq!(to("8.8.8.8").as_deref(), Some("eth0"));
        assert_eq!(best("", Ipv4Addr::LOCALHOST), None);
    }
}
