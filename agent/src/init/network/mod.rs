//! The guest's network, as CNI made it on the host.

mod netlink;
mod plan;

use std::fs;
use std::io;
use std::path::Path;

use bulkhead_proto::agent::{ConfigureSandboxRequest, Interface};

use self::netlink::{Link, Netlink};
use self::plan::{Mac, Network};
use crate::sandbox::PlatformError;

const INTERFACES: &str = "/sys/class/net";
const LOOPBACK: &str = "lo";

fn at(step: impl Into<String>) -> impl FnOnce(io::Error) -> PlatformError {
    move |source| PlatformError { step: step.into(), source }
}

fn invalid(what: String) -> PlatformError {
    at("read the pod's network")(io::Error::new(io::ErrorKind::InvalidInput, what))
}

/// A network device of the guest.
#[derive(Debug)]
struct Device {
    name: String,
    index: u32,
    mac: Option<Mac>,
}

/// Brings up the loopback and every interface, with addresses, neighbours and routes.
pub(super) fn configure(request: &ConfigureSandboxRequest) -> Result<(), PlatformError> {
    let mut netlink = Netlink::open().map_err(at("open a netlink socket"))?;
    let loopback = index_of(LOOPBACK)?;
    netlink.set_link(loopback, &Link { up: Some(true), ..Link::default() }).map_err(at("bring up lo"))?;
    if request.interfaces.is_empty() {
        return Ok(());
    }
    let devices = devices().map_err(at("list network devices"))?;
    let chosen = choose(&request.interfaces, &devices)?;
    for (interface, device) in request.interfaces.iter().zip(&chosen) {
        set_names_aside(&mut netlink, interface, device)?;
    }
    for (interface, device) in request.interfaces.iter().zip(&chosen) {
        configure_interface(&mut netlink, interface, device.index)?;
    }
    let network = Network::new(request).map_err(invalid)?;
    for neighbour in &network.neighbours {
        let index = index_of(&neighbour.interface)?;
        netlink.add_neighbour(index, neighbour).map_err(at(format!("add the neighbour {}", neighbour.address)))?;
    }
    for route in &network.routes {
        let index = index_of(&route.interface)?;
        netlink.add_route(index, route).map_err(at(format!("add the route to {}", route.destination)))?;
    }
    Ok(())
}

/// By hardware address where one matches, else by position.
fn choose<'a>(interfaces: &[Interface], devices: &'a [Device]) -> Result<Vec<&'a Device>, PlatformError> {
    let mut chosen = Vec::new();
    for interface in interfaces {
        let mac: Option<Mac> = interface.mac.parse().ok();
        let device = devices
            .iter()
            .find(|device| mac.is_some() && device.mac == mac)
            .or_else(|| devices.get(interface.device_index as usize));
        chosen.push(device.ok_or_else(|| {
            invalid(format!("{} is device {} of {}", interface.name, interface.device_index, devices.len()))
        })?);
    }
    Ok(chosen)
}

/// Two interfaces may swap names, so each device that must change its name first gets one that nobody wants.
fn set_names_aside(netlink: &mut Netlink, interface: &Interface, device: &Device) -> Result<(), PlatformError> {
    if interface.name == device.name {
        return Ok(());
    }
    let aside = format!("bulkhead{}", device.index);
    let link = Link { name: Some(&aside), up: Some(false), ..Link::default() };
    netlink.set_link(device.index, &link).map_err(at(format!("rename {} to {aside}", device.name)))
}

fn configure_interface(netlink: &mut Netlink, interface: &Interface, index: u32) -> Result<(), PlatformError> {
    let name = interface.name.as_str();
    let mac: Option<Mac> = match interface.mac.as_str() {
        "" => None,
        mac => Some(mac.parse().map_err(invalid)?),
    };
    let mtu = Some(interface.mtu).filter(|mtu| *mtu != 0);
    let down = Link { name: Some(name), mac, mtu, up: Some(false) };
    netlink.set_link(index, &down).map_err(at(format!("set name, address and MTU of {name}")))?;
    settle_ipv6(name)?;
    netlink.set_link(index, &Link { up: Some(true), ..Link::default() }).map_err(at(format!("bring up {name}")))?;
    for address in &interface.addresses {
        let prefix = address.parse().map_err(invalid)?;
        netlink.add_address(index, &prefix).map_err(at(format!("give {address} to {name}")))?;
    }
    Ok(())
}

/// CNI has decided everything: no router shall change it, and nothing waits for duplicate detection.
fn settle_ipv6(name: &str) -> Result<(), PlatformError> {
    for setting in ["accept_dad", "accept_ra"] {
        let path = format!("/proc/sys/net/ipv6/conf/{name}/{setting}");
        match fs::write(&path, "0") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(format!("write {path}"))(error)),
            _ => {}
        }
    }
    Ok(())
}

fn index_of(name: &str) -> Result<u32, PlatformError> {
    let path = Path::new(INTERFACES).join(name).join("ifindex");
    read_number(&path).map_err(at(format!("find the interface {name:?}")))
}

fn read_number(path: &Path) -> io::Result<u32> {
    fs::read_to_string(path)?.trim().parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Devices behind a bus, in the order in which the kernel found them.
fn devices() -> io::Result<Vec<Device>> {
    let mut devices = Vec::new();
    for entry in fs::read_dir(INTERFACES)? {
        let path = entry?.path();
        if path.join("device").exists() {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let mac = fs::read_to_string(path.join("address"))?.trim().parse().ok();
            devices.push(Device { name, index: read_number(&path.join("ifindex"))?, mac });
        }
    }
    devices.sort_by_key(|device| device.index);
    Ok(devices)
}
