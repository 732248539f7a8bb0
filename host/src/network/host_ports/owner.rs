//! Who has a port of the host: from /proc's tables of sockets to the process that has the socket open.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use super::mapping::{Protocol, meet};

/// Most processes that are named.
const MAX_NAMES: usize = 3;

/// The processes that have a socket on `address`, in words.
pub(super) fn owner(protocol: Protocol, address: SocketAddr) -> String {
    let inodes = inodes(Path::new("/proc/thread-self/net"), protocol, address);
    let names = if inodes.is_empty() { Vec::new() } else { holders(&inodes) };
    if names.is_empty() {
        // A socket that is bound and does not listen stands in no table.
        return "something that no process's open files show (a socket that does not listen, or the kernel's own)"
            .to_owned();
    }
    names.join(", ")
}

fn inodes(tables: &Path, protocol: Protocol, wanted: SocketAddr) -> BTreeSet<u64> {
    let read = |name: &str| fs::read_to_string(tables.join(name)).unwrap_or_default();
    if protocol == Protocol::Sctp {
        return read("sctp/eps").lines().filter_map(|line| endpoint(line, wanted.port())).collect();
    }
    let names = [protocol.name().to_owned(), format!("{}6", protocol.name())];
    let found = names.iter().flat_map(|name| read(name).lines().filter_map(socket).collect::<Vec<_>>());
    let matching = found.filter(|(address, _)| meet(*address, wanted) || is_dual(*address, wanted));
    matching.map(|(_, inode)| inode).filter(|inode| *inode != 0).collect()
}

// A socket on [::] may serve IPv4 too; the tables do not say.
fn is_dual(address: SocketAddr, wanted: SocketAddr) -> bool {
    address.port() == wanted.port() && address.is_ipv6() && address.ip().is_unspecified() && wanted.is_ipv4()
}

// "sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode ..."
fn socket(line: &str) -> Option<(SocketAddr, u64)> {
    let mut fields = line.split_whitespace();
    let (address, port) = fields.nth(1)?.split_once(':')?;
    let inode = fields.nth(7)?.parse().ok()?;
    Some((SocketAddr::new(address_of(address)?, u16::from_str_radix(port, 16).ok()?), inode))
}

// Words of 32 bits in the host's byte order.
fn address_of(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(hex.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for (chunk, at) in bytes.chunks_exact_mut(4).zip((0..).step_by(8)) {
                chunk.copy_from_slice(&word(at)?);
            }
            Some(IpAddr::from(Ipv6Addr::from(bytes)).to_canonical())
        }
        _ => None,
    }
}

// "ENDPT SOCK STY SST HBKT LPORT UID INODE LADDRS"
fn endpoint(line: &str, port: u16) -> Option<u64> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    (fields.get(5)?.parse() == Ok(port)).then(|| fields.get(7)?.parse().ok())?
}

fn holders(inodes: &BTreeSet<u64>) -> Vec<String> {
    let links: BTreeSet<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<u32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    let holding = pids.into_iter().filter(|pid| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        descriptors
            .filter_map(|entry| fs::read_link(entry.path()).ok())
            .any(|link| links.contains(&*link.to_string_lossy()))
    });
    holding.take(MAX_NAMES).map(|pid| format!("process {} (pid {pid})", name_of(pid))).collect()
}

fn name_of(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let name: String = name.trim().chars().filter(|c| !c.is_control()).collect();
    if name.is_empty() { "of unknown name".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};

    #[test]
    fn the_process_of_a_service_is_named() {
        let this = format!("(pid {})", std::process::id());
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let said = owner(Protocol::Tcp, SocketAddr::new("0.0.0.0".parse().unwrap(), tcp.local_addr().unwrap().port()));
        assert!(said.starts_with("process ") && said.contains(&this), "{said}");
        let udp = UdpSocket::bind("[::1]:0").unwrap();
        assert!(owner(Protocol::Udp, udp.local_addr().unwrap()).contains(&this));
        let other = SocketAddr::new("192.0.2.1".parse().unwrap(), tcp.local_addr().unwrap().port());
        assert!(owner(Protocol::Tcp, other).contains("no process's open files"));
    }

    #[test]
    fn lines_of_proc_are_read() {
        let line =
            "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0";
        assert_eq!(socket(line), Some(("127.0.0.1:8080".parse().unwrap(), 4711)));
        let six = "1: 00000000000000000000000001000000:0016 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 9 1";
        assert_eq!(socket(six), Some(("[::1]:22".parse().unwrap(), 9)));
        assert_eq!(socket("  sl  local_address rem_address   st tx_queue"), None);
        let sctp = "ffff0000 ffff1111 0   10  29   9899     0 23456 127.0.0.1";
        assert_eq!((endpoint(sctp, 9899), endpoint(sctp, 1)), (Some(23456), None));
    }
}
