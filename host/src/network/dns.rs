//! The pod's resolv.conf: from the CRI's dns_config, else from what CNI answered, else from the host's.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use bulkhead_proto::cri;

use super::state::PodNetworkState;

const HOST_FILE: &str = "/etc/resolv.conf";
/// Where systemd-resolved keeps the servers behind its stub on 127.0.0.53.
const RESOLVED_FILE: &str = "/run/systemd/resolve/resolv.conf";
/// Longest host file that is looked at, in bytes.
const MAX_FILE: usize = 64 << 10;

/// The whole text. Entries that would break out of their line are left out with a warning.
#[must_use]
pub fn resolv_conf(config: Option<&cri::DnsConfig>, network: &PodNetworkState) -> String {
    if let Some(config) = config
        && !(config.servers.is_empty() && config.searches.is_empty() && config.options.is_empty())
    {
        return text(&config.servers, &config.searches, &config.options);
    }
    let dns = &network.dns;
    if !dns.servers.is_empty() {
        return text(&dns.servers, &dns.searches, &dns.options);
    }
    from_host(&read(HOST_FILE), || read(RESOLVED_FILE))
}

fn text(servers: &[String], searches: &[String], options: &[String]) -> String {
    let mut lines: Vec<String> = Vec::new();
    let searches = one_word(searches);
    if !searches.is_empty() {
        lines.push(format!("search {}", searches.join(" ")));
    }
    lines.extend(one_word(servers).iter().map(|server| format!("nameserver {server}")));
    let options = one_word(options);
    if !options.is_empty() {
        lines.push(format!("options {}", options.join(" ")));
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn one_word(entries: &[String]) -> Vec<&str> {
    let (good, bad): (Vec<&str>, Vec<&str>) = entries
        .iter()
        .map(String::as_str)
        .partition(|entry| !entry.is_empty() && !entry.contains(|c: char| c.is_whitespace() || c.is_control()));
    if !bad.is_empty() {
        tracing::warn!(entries = ?bad, "DNS entries that are no single word are left out of the pod's resolv.conf");
    }
    good
}

fn read(path: &str) -> String {
    let mut text = fs::read_to_string(Path::new(path)).unwrap_or_default();
    while text.len() > MAX_FILE {
        let Some(end) = text.rfind('\n') else { return String::new() };
        text.truncate(end);
    }
    text
}

// A server on the host's loopback does not exist for a guest.
fn from_host(host: &str, resolved: impl FnOnce() -> String) -> String {
    if usable(host) {
        return without_loopback(host);
    }
    let resolved = resolved();
    without_loopback(if usable(&resolved) { &resolved } else { host })
}

fn usable(text: &str) -> bool {
    text.lines().any(|line| server(line).is_some_and(|address| !address.is_loopback()))
}

fn without_loopback(text: &str) -> String {
    let kept = text.lines().filter(|line| !line.trim_start().starts_with(['#', ';']));
    kept.filter(|line| !server(line).is_some_and(|a| a.is_loopback())).map(|line| format!("{line}\n")).collect()
}

fn server(line: &str) -> Option<IpAddr> {
    let mut words = line.split_whitespace();
    (words.next() == Some("nameserver")).then(|| words.next()).flatten()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn the_pods_own_configuration_wins() {
        let config = cri::DnsConfig {
            servers: strings(&["10.96.0.10", "::1"]),
            searches: strings(&["a.svc", "b\nnameserver 6.6.6.6"]),
            options: strings(&["ndots:5", "edns0"]),
        };
        let text = resolv_conf(Some(&config), &PodNetworkState::default());
        assert_eq!(text, "search a.svc\nnameserver 10.96.0.10\nnameserver ::1\noptions ndots:5 edns0\n");
    }

    #[test]
    fn the_networks_servers_come_second() {
        let mut network = PodNetworkState::default();
        network.dns.servers = strings(&["10.1.0.1"]);
        assert_eq!(resolv_conf(Some(&cri::DnsConfig::default()), &network), "nameserver 10.1.0.1\n");
        assert_eq!(resolv_conf(None, &network), "nameserver 10.1.0.1\n");
    }

    #[test]
    fn a_stub_on_the_hosts_loopback_is_not_passed_on() {
        let host = "# by hand\nsearch corp\nnameserver 127.0.0.53\n";
        let resolved = || "nameserver 192.0.2.1\nsearch corp\n".to_owned();
        assert_eq!(from_host(host, resolved), "nameserver 192.0.2.1\nsearch corp\n");
        assert_eq!(from_host(host, String::new), "search corp\n");
        assert_eq!(from_host("nameserver 192.0.2.7\nnameserver ::1\n", String::new), "nameserver 192.0.2.7\n");
    }
}
