//! A handful of rtnetlink requests, each answered before the next.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::plan::{Mac, Neighbour, Prefix, Route};

const HEADER: usize = 16;
const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const NEW_NEIGHBOUR: u16 = 28;
const ERROR: u16 = 2;
const REQUEST_ACK: u16 = 1 | 4;
const CREATE_REPLACE: u16 = 0x400 | 0x100;
const INTERFACE_UP: u32 = 1;
/// No duplicate detection.
const ADDRESS_NODAD: u32 = 2;
const ROUTE_TABLE_MAIN: u8 = 254;
const ROUTE_PROTOCOL_STATIC: u8 = 4;
const ROUTE_UNICAST: u8 = 1;
const ROUTE_ON_LINK: u32 = 4;
const NEIGHBOUR_PERMANENT: u16 = 0x80;

/// Changes of a link; what is `None` stays.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Link<'a> {
    pub(super) name: Option<&'a str>,
    pub(super) mac: Option<Mac>,
    pub(super) mtu: Option<u32>,
    pub(super) up: Option<bool>,
}

/// A socket to the kernel's routing tables.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        // No protocol is NETLINK_ROUTE, whose number is 0.
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        Ok(Self { socket, sequence: 0 })
    }

    pub(super) fn set_link(&mut self, index: u32, link: &Link<'_>) -> io::Result<()> {
        let flags = if link.up == Some(true) { INTERFACE_UP } else { 0 };
        let change = if link.up.is_some() { INTERFACE_UP } else { 0 };
        let mut message = Message::new(NEW_LINK, REQUEST_ACK);
        message.u8(0).u8(0).u16(0).u32(index).u32(flags).u32(change);
        if let Some(mac) = link.mac {
            message.attribute(1, &mac.0);
        }
        if let Some(name) = link.name {
            message.attribute(3, format!("{name}\0").as_bytes());
        }
        if let Some(mtu) = link.mtu {
            message.attribute(4, &mtu.to_ne_bytes());
        }
        self.send(message)
    }

    pub(super) fn add_address(&mut self, index: u32, prefix: &Prefix) -> io::Result<()> {
        let mut message = Message::new(NEW_ADDRESS, REQUEST_ACK | CREATE_REPLACE);
        message.u8(family(prefix.address)).u8(prefix.length).u8(0).u8(0).u32(index);
        message.attribute(2, &octets(prefix.address)).attribute(1, &octets(prefix.address));
        if let IpAddr::V4(address) = prefix.address
            && prefix.length < 31
        {
            let broadcast = address.to_bits() | (u32::MAX >> prefix.length);
            message.attribute(4, &broadcast.to_be_bytes());
        }
        if prefix.address.is_ipv6() {
            message.attribute(8, &ADDRESS_NODAD.to_ne_bytes());
        }
        self.send(message)
    }

    pub(super) fn add_route(&mut self, index: u32, route: &Route) -> io::Result<()> {
        let destination = route.destination;
        let mut message = Message::new(NEW_ROUTE, REQUEST_ACK | CREATE_REPLACE);
        message.u8(family(destination.address)).u8(destination.length).u8(0).u8(0);
        message.u8(ROUTE_TABLE_MAIN).u8(ROUTE_PROTOCOL_STATIC).u8(route.scope).u8(ROUTE_UNICAST);
        message.u32(if route.on_link { ROUTE_ON_LINK } else { 0 });
        if destination.length > 0 {
            message.attribute(1, &octets(destination.address));
        }
        message.attribute(4, &index.to_ne_bytes());
        if let Some(gateway) = route.gateway {
            message.attribute(5, &octets(gateway));
        }
        if route.metric != 0 {
            message.attribute(6, &route.metric.to_ne_bytes());
        }
        if route.mtu != 0 {
            let mut metrics = Vec::new();
            attribute(&mut metrics, 2, &route.mtu.to_ne_bytes());
            message.attribute(8, &metrics);
        }
        self.send(message)
    }

    pub(super) fn add_neighbour(&mut self, index: u32, neighbour: &Neighbour) -> io::Result<()> {
        let mut message = Message::new(NEW_NEIGHBOUR, REQUEST_ACK | CREATE_REPLACE);
        message.u8(family(neighbour.address)).u8(0).u16(0).u32(index).u16(NEIGHBOUR_PERMANENT).u8(0).u8(0);
        message.attribute(1, &octets(neighbour.address)).attribute(2, &neighbour.mac.0);
        self.send(message)
    }

    fn send(&mut self, message: Message) -> io::Result<()> {
        self.sequence += 1;
        let bytes = message.finish(self.sequence);
        rustix::net::send(&self.socket, &bytes, SendFlags::empty())?;
        let mut answer = [0; 4096];
        loop {
            let received =
                rustix::io::retry_on_intr(|| rustix::net::recv(&self.socket, &mut answer[..], RecvFlags::empty()));
            let (_, length) = received?;
            if let Some(result) = acknowledgement(&answer[..length], self.sequence) {
                return result;
            }
        }
    }
}

/// The kernel's verdict on request `sequence`, when `answer` holds it.
fn acknowledgement(answer: &[u8], sequence: u32) -> Option<io::Result<()>> {
    let u32_at = |at: usize| Some(u32::from_ne_bytes(answer.get(at..at + 4)?.try_into().ok()?));
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    if kind != ERROR || u32_at(8)? != sequence {
        return None;
    }
    match u32_at(HEADER)?.cast_signed() {
        0 => Some(Ok(())),
        code => Some(Err(io::Error::from_raw_os_error(code.saturating_neg()))),
    }
}

struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        let mut message = Self(Vec::with_capacity(128));
        message.u32(0).u16(kind).u16(flags).u32(0).u32(0);
        message
    }

    fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        attribute(&mut self.0, kind, value);
        self
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

fn attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    bytes.extend((4 + value.len() as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

fn family(address: IpAddr) -> u8 {
    // AF_INET and AF_INET6.
    if address.is_ipv4() { 2 } else { 10 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_but_their_length_is_not() {
        let mut bytes = Vec::new();
        attribute(&mut bytes, 3, b"eth0\0");
        assert_eq!(bytes.len(), 12);
        assert_eq!(u16::from_ne_bytes([bytes[0], bytes[1]]), 9);
    }

    #[test]
    fn only_the_own_answer_counts() {
        let mut answer = vec![0; 36];
        answer[4..6].copy_from_slice(&ERROR.to_ne_bytes());
        answer[8..12].copy_from_slice(&7u32.to_ne_bytes());
        assert!(acknowledgement(&answer, 8).is_none());
        assert!(acknowledgement(&answer, 7).unwrap().is_ok());
        answer[16..20].copy_from_slice(&(-17i32).to_ne_bytes());
        assert_eq!(acknowledgement(&answer, 7).unwrap().unwrap_err().raw_os_error(), Some(17));
        assert!(acknowledgement(&answer[..10], 7).is_none());
    }
}
