//! Sockets that keep a host port from everybody else. Nothing ever arrives at them: packets are translated before.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, socket_with, sockopt};

use super::mapping::Protocol;

/// Whether an address that the host does not have is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Absent {
    /// For a new pod: it is a mistake in the pod.
    Refused,
    /// For one that runs on: the address may come back.
    Allowed,
}

/// Binds `address`. Nothing when the host's kernel lacks the protocol, so that no service of the host can have the port.
pub(super) fn hold(protocol: Protocol, address: SocketAddr, absent: Absent) -> io::Result<Option<OwnedFd>> {
    let bound = match try_hold(protocol, address, absent, false) {
        // What remains of closed connections also counts as use, but harms nobody; a second socket does.
        Err(Errno::ADDRINUSE) if protocol == Protocol::Tcp => try_hold(protocol, address, absent, true),
        bound => bound,
    };
    match bound {
        Ok(socket) => Ok(Some(socket)),
        Err(Errno::PROTONOSUPPORT | Errno::SOCKTNOSUPPORT | Errno::AFNOSUPPORT) => Ok(None),
        // IPv6 is compiled in but switched off.
        Err(Errno::ADDRNOTAVAIL) if address.ip().is_unspecified() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn try_hold(protocol: Protocol, address: SocketAddr, absent: Absent, reuse: bool) -> rustix::io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let (kind, number) = match protocol {
        Protocol::Tcp => (SocketType::STREAM, ipproto::TCP),
        Protocol::Udp => (SocketType::DGRAM, ipproto::UDP),
        Protocol::Sctp => (SocketType::STREAM, ipproto::SCTP),
    };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, Some(number))?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    match (absent, address.is_ipv6()) {
        (Absent::Refused, _) => {}
        (Absent::Allowed, false) => sockopt::set_ip_freebind(&socket, true)?,
        (Absent::Allowed, true) => sockopt::set_ipv6_freebind(&socket, true)?,
    }
    if protocol == Protocol::Udp {
        // Stray packets are not worth memory.
        sockopt::set_socket_recv_buffer_size(&socket, 0)?;
    }
    sockopt::set_socket_reuseaddr(&socket, reuse)?;
    bind(&socket, &address)?;
    // From here on nobody may share the port, whatever options they set.
    sockopt::set_socket_reuseaddr(&socket, false)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    fn free(ip: &str) -> SocketAddr {
        TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap()
    }

    #[test]
    fn a_held_port_is_nobody_elses() {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let address = free("127.0.0.1");
            let held = hold(protocol, address, Absent::Refused).unwrap().unwrap();
            let again = hold(protocol, address, Absent::Refused).unwrap_err();
            assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
            // std's listener sets SO_REUSEADDR.
            let refused = match protocol {
                Protocol::Udp => UdpSocket::bind(address).map(drop),
                _ => TcpListener::bind(address).map(drop),
            };
            assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::AddrInUse, "{protocol:?}");
            drop(held);
            hold(protocol, address, Absent::Refused).unwrap().unwrap();
        }
    }

    #[test]
    fn a_service_keeps_its_port_and_closed_connections_do_not() {
        let service = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = service.local_addr().unwrap();
        assert!(hold(Protocol::Tcp, address, Absent::Refused).is_err());
        let client = TcpStream::connect(address).unwrap();
        let (served, _) = service.accept().unwrap();
        // The side that closes first keeps the port in TIME_WAIT.
        drop(served);
        drop(client);
        drop(service);
        hold(Protocol::Tcp, address, Absent::Refused).unwrap().unwrap();
    }

    #[test]
    fn families_do_not_exclude_each_other() {
        let address = free("0.0.0.0");
        let _four = hold(Protocol::Tcp, address, Absent::Refused).unwrap().unwrap();
        hold(Protocol::Tcp, SocketAddr::new("::".parse().unwrap(), address.port()), Absent::Refused).unwrap();
    }

    #[test]
    fn an_address_of_others_is_refused_to_new_pods_only() {
        let address: SocketAddr = "192.0.2.254:5".parse().unwrap();
        let error = hold(Protocol::Tcp, address, Absent::Refused).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
        hold(Protocol::Tcp, address, Absent::Allowed).unwrap().unwrap();
    }
}
