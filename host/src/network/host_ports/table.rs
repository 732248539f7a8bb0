//! The nftables table: rendered whole from what pods hold, and replaced in one transaction.
//!
//! ```text
//! prerouting, output: to one of the host's addresses? -> chain ports: the maps say which pod's address and port
//! postrouting: one of ours, and its answer would not come back this way? -> masquerade
//! guard: what comes from a pod's side and pretends to be for 127.0.0.0/8 -> dropped, before anything else
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use ipnet::IpNet;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::HostPortError;
use super::mapping::HostPort;
use crate::network::plugin::excerpt;
use crate::sys::host::find_program;

/// The root directory whose daemon has the plain name.
const USUAL_ROOT: &str = "/var/lib/bulkhead";
/// Longest run of `nft`.
const LIMIT: Duration = Duration::from_secs(30);

/// A daemon's table.
#[derive(Debug)]
pub(super) struct Table {
    /// `bulkhead`; of a daemon with an unusual root directory, with a suffix that follows from it.
    pub name: String,
    comment: String,
}

/// What one table shall hold.
#[derive(Debug, Default)]
pub(super) struct Content {
    /// `map` and `set` names with their elements.
    elements: BTreeMap<&'static str, BTreeSet<String>>,
}

impl Content {
    /// Leads `port` to the address in `networks` that is of its family, or to both.
    pub(super) fn add(&mut self, port: &HostPort, addresses: &[IpNet]) {
        for network in addresses {
            let target = network.addr();
            if port.host_ip.is_some_and(|ip| ip.is_ipv4() != target.is_ipv4()) {
                continue;
            }
            let four = target.is_ipv4();
            let (protocol, from, to) = (port.protocol.name(), port.host_port, port.container_port);
            match port.host_ip.filter(|ip| !ip.is_unspecified()) {
                Some(ip) => {
                    let map = if four { "some4" } else { "some6" };
                    self.insert(map, format!("{protocol} . {ip} . {from} : {target} . {to}"));
                }
                None => {
                    let map = if four { "any4" } else { "any6" };
                    self.insert(map, format!("{protocol} . {from} : {target} . {to}"));
                }
            }
            self.insert(if four { "targets4" } else { "targets6" }, format!("{protocol} . {target} . {to}"));
            // A pod's answer to a neighbour, or to itself, does not pass the host unless the host seems to ask.
            self.insert(if four { "near4" } else { "near6" }, format!("{} . {target}", network.trunc()));
        }
    }

    /// Guards the host's loopback addresses against what comes from `interface`.
    pub(super) fn guard(&mut self, interface: &str) {
        self.insert("opened", format!("\"{interface}\""));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }

    fn insert(&mut self, name: &'static str, element: String) {
        self.elements.entry(name).or_default().insert(element);
    }
}

impl Table {
    /// Of the daemon whose state is in `root`.
    pub(super) fn of(root: &Path) -> Self {
        let name = if root == Path::new(USUAL_ROOT) {
            "bulkhead".to_owned()
        } else {
            let digest = Sha256::digest(root.as_os_str().as_encoded_bytes());
            digest.iter().take(4).fold("bulkhead_".to_owned(), |name, byte| format!("{name}{byte:02x}"))
        };
        // nft takes 128 bytes and knows no escapes.
        let place = root.to_string_lossy();
        let plain = place.chars().filter(|c| c.is_ascii_graphic() && *c != '"').take(90);
        Self { comment: format!("host ports of pods, daemon in {}", plain.collect::<String>()), name }
    }

    /// Makes the table hold exactly `content`; nothing of it is left for empty content.
    pub(super) async fn replace(&self, content: &Content) -> Result<(), HostPortError> {
        self.nft(&["-f", "-"], &self.script(content), "change").await.map(drop)
    }

    /// The table as the kernel has it, comparable with other listings; empty when it cannot be listed.
    pub(super) async fn list(&self) -> String {
        let listed = self.nft(&["-s", "-n", "list", "table", "inet", &self.name], "", "list").await;
        // Elements come in no particular order.
        let text = listed.unwrap_or_default();
        let mut words: Vec<&str> = text.split([' ', ',', '\n', '\t']).filter(|word| !word.is_empty()).collect();
        words.sort_unstable();
        words.join(" ")
    }

    fn script(&self, content: &Content) -> String {
        let Self { name, comment } = self;
        // "delete" fails without a table, and "destroy" is too new.
        let mut text = format!("add table inet {name}\ndelete table inet {name}\n");
        if content.is_empty() {
            return text;
        }
        let elements = |name: &str| {
            let all = content.elements.get(name).into_iter().flatten().cloned().collect::<Vec<_>>();
            if all.is_empty() { String::new() } else { format!(" elements = {{ {} }}", all.join(", ")) }
        };
        let _ = writeln!(text, "table inet {name} {{\n  comment \"{comment}\"");
        for (family, address) in [(4, "ipv4_addr"), (6, "ipv6_addr")] {
            let named = |name: &str| elements(&format!("{name}{family}"));
            let _ = write!(
                text,
                "  map any{family} {{ type inet_proto . inet_service : {address} . inet_service;{} }}\n  \
                 map some{family} {{ type inet_proto . {address} . inet_service : {address} . inet_service;{} }}\n  \
                 set targets{family} {{ type inet_proto . {address} . inet_service;{} }}\n  \
                 set near{family} {{ type {address} . {address}; flags interval;{} }}\n",
                named("any"),
                named("some"),
                named("targets"),
                named("near"),
            );
        }
        let _ = writeln!(text, "  set opened {{ type ifname;{} }}", elements("opened"));
        text.push_str(CHAINS);
        text.push_str("}\n");
        text
    }

    async fn nft(&self, arguments: &[&str], input: &str, action: &'static str) -> Result<String, HostPortError> {
        let failed = |why: String| HostPortError::Nft { action, table: self.name.clone(), why };
        let program: PathBuf = find_program(Path::new("nft")).ok_or(HostPortError::NoNft)?;
        let child = Command::new(&program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let mut child = child.map_err(|e| failed(format!("cannot start {}: {e}", program.display())))?;
        if let Some(mut stdin) = child.stdin.take() {
            // It ended without reading when this fails; its words say why.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        let output = match tokio::time::timeout(LIMIT, child.wait_with_output()).await {
            Ok(output) => output.map_err(|e| failed(e.to_string()))?,
            Err(_) => return Err(failed(format!("no answer in {} s, so it was killed", LIMIT.as_secs()))),
        };
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(failed(excerpt(&output.stderr)))
    }
}

/// What does not depend on pods.
const CHAINS: &str = "  chain ports {
    dnat ip to meta l4proto . ip daddr . th dport map @some4
    dnat ip to meta l4proto . th dport map @any4
    dnat ip6 to meta l4proto . ip6 daddr . th dport map @some6
    dnat ip6 to meta l4proto . th dport map @any6
  }
  chain prerouting {
    type nat hook prerouting priority -100; policy accept;
    fib daddr type local jump ports
  }
  chain output {
    type nat hook output priority -100; policy accept;
    fib daddr type local jump ports
  }
  chain sources {
    ip saddr . ip daddr @near4 masquerade
    ip6 saddr . ip6 daddr @near6 masquerade
    fib saddr type local masquerade
  }
  chain postrouting {
    type nat hook postrouting priority 100; policy accept;
    ct status dnat meta l4proto . ip daddr . th dport @targets4 jump sources
    ct status dnat meta l4proto . ip6 daddr . th dport @targets6 jump sources
  }
  chain guard {
    type filter hook prerouting priority -300; policy accept;
    iifname @opened ip daddr 127.0.0.0/8 drop
    iifname @opened ip saddr 127.0.0.0/8 drop
  }
";

/// Whether an address is of the family that `port` may lead to.
pub(super) fn serves(port: &HostPort, addresses: &[IpNet]) -> bool {
    addresses.iter().any(|network| port.host_ip.is_none_or(|ip: IpAddr| ip.is_ipv4() == network.addr().is_ipv4()))
}

#[cfg(test)]
mod tests {
    use super::super::mapping::Protocol;
    use super::*;

    fn port(protocol: Protocol, host_ip: &str, host_port: u16) -> HostPort {
        let host_ip = (!host_ip.is_empty()).then(|| host_ip.parse().unwrap());
        HostPort { protocol, host_ip, host_port, container_port: 80 }
    }

    fn script(ports: &[HostPort], addresses: &[&str]) -> String {
        let addresses: Vec<IpNet> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        let mut content = Content::default();
        ports.iter().for_each(|port| content.add(port, &addresses));
        Table::of(Path::new(USUAL_ROOT)).script(&content)
    }

    #[test]
    fn a_port_without_an_address_serves_both_families() {
        let text = script(&[port(Protocol::Tcp, "", 8080)], &["10.1.0.2/24", "fd00::2/64"]);
        assert!(text.contains("tcp . 8080 : 10.1.0.2 . 80"), "{text}");
        assert!(text.contains("tcp . 8080 : fd00::2 . 80"), "{text}");
        assert!(text.contains("10.1.0.0/24 . 10.1.0.2") && text.contains("fd00::/64 . fd00::2"), "{text}");
    }

    #[test]
    fn a_port_with_an_address_serves_that() {
        let text = script(&[port(Protocol::Udp, "192.0.2.1", 53)], &["10.1.0.2/24", "fd00::2/64"]);
        assert!(text.contains("udp . 192.0.2.1 . 53 : 10.1.0.2 . 80") && !text.contains("fd00::2"), "{text}");
        let text = script(&[port(Protocol::Sctp, "::", 9)], &["10.1.0.2/24", "fd00::2/64"]);
        assert!(text.contains("sctp . 9 : fd00::2 . 80") && !text.contains("10.1.0.2"), "{text}");
    }

    #[test]
    fn no_ports_leave_no_table() {
        assert_eq!(script(&[], &[]), "add table inet bulkhead\ndelete table inet bulkhead\n");
    }

    #[test]
    fn daemons_have_tables_of_their_own() {
        let (a, b) = (Table::of(Path::new("/a")), Table::of(Path::new("/b\"; flush ruleset")));
        assert!(a.name != b.name && a.name.starts_with("bulkhead_"), "{a:?} {b:?}");
        assert!(!b.comment.contains('"'), "{b:?}");
    }
}
