//! Pods' networks with real CNI plugins, real namespaces and real frames. Needs root and Debian's
//! `containernetworking-plugins`; without them every test says that it is skipped, and why.
//!
//! Each test is a node of its own: it runs on a thread in a fresh network namespace, so bridges, addresses and packet
//! filter rules never touch this host's network, and what a test leaves behind can be counted.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "network/guest.rs"]
mod guest;
#[path = "network/node.rs"]
mod node;

use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use bulkhead::error_text;
use bulkhead::network::{NetworkRequest, PodNetwork, PodNetworkState};
use bulkhead_proto::cri;
use node::{BRIDGE, Node, on_node};

async fn failure(node: &Node, pod: &str) -> String {
    failure_of(&node.network, node, pod).await
}

async fn failure_of(network: &PodNetwork, node: &Node, pod: &str) -> String {
    let error = network.setup(node.request(pod)).await.unwrap_err();
    error_text(&error).replace(node.directory().to_str().unwrap(), "/t")
}

fn assert_state(node: &Node, state: &PodNetworkState) {
    assert_eq!(state.network, "pods");
    assert_eq!(state.ips, ["10.88.7.2"]);
    let [interface] = state.interfaces.as_slice() else { panic!("{:?}", state.interfaces) };
    assert_eq!((interface.name.as_str(), interface.tap.as_str()), ("eth0", "tap0"));
    assert_eq!((interface.mtu, interface.addresses.as_slice()), (1400, &["10.88.7.2/24".to_owned()][..]));
    let default = state.routes.last().unwrap();
    assert_eq!((default.destination.as_str(), default.gateway.as_str()), ("0.0.0.0/0", "10.88.7.1"));
    assert_eq!(state.routes.len(), 1, "the connected network follows from the address: {:?}", state.routes);
    let inside = node.inside("a", &["ip", "-o", "link", "show", "dev", "eth0"]);
    assert!(inside.contains(&interface.mac), "{} not in {inside}", interface.mac);
    let (interfaces, routes, _) = state.to_agent();
    assert_eq!((interfaces[0].device_index, interfaces[0].mtu, routes.len()), (0, 1400, 1));
    let stored = serde_json::to_string(state).unwrap();
    assert_eq!(serde_json::from_str::<PodNetworkState>(&stored).unwrap(), *state);
}

#[test]
fn a_pod_is_attached_checked_and_detached() {
    on_node(&[("10-pods.conflist", BRIDGE)], async |node| {
        let tap = node.pod("a");
        let state = node.network.setup(node.request("a")).await.unwrap();
        assert_state(node, &state);
        node.network.check("a").await.unwrap();
        assert_eq!(node.network.attached().unwrap(), ["a"]);

        node.inside("a", &["ip", "addr", "flush", "dev", "eth0"]);
        let error = error_text(&node.network.check("a").await.unwrap_err());
        assert!(error.starts_with("CNI CHECK of plugin bridge (network pods"), "{error}");
        node.inside("a", &["ip", "addr", "add", "10.88.7.2/24", "dev", "eth0"]);

        drop(tap);
        node.network.teardown(node.request("a"), Some(&state)).await.unwrap();
        node.network.teardown(node.request("a"), None).await.unwrap();
        node.remove_pod("a");
        node.assert_nothing_left();
    });
}

#[test]
fn frames_reach_the_tap_and_only_the_guest_answers() {
    on_node(&[("10-pods.conflist", BRIDGE)], async |node| {
        let tap = node.pod("a");
        let state = node.network.setup(node.request("a")).await.unwrap();
        assert!(!node.ping("10.88.7.2"), "the namespace's own stack answered for the guest");
        let guest = guest::Guest::start(tap, &state.interfaces[0].mac, "10.88.7.2");
        assert!(node.ping("10.88.7.2"), "no answer from the guest through tap and veth");
        // Refused by the guest's own reset: frames with transport checksums pass in both directions.
        let refused = std::net::TcpStream::connect_timeout(&"10.88.7.2:80".parse().unwrap(), Duration::from_secs(5));
        assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
        let seen = guest.stop();
        assert!(seen.arp > 0 && seen.echo > 0 && seen.tcp > 0, "{seen:?}");
        assert_eq!(seen.unfinished, 0, "frames with unfinished checksums: {seen:?}");
        node.network.teardown(node.request("a"), Some(&state)).await.unwrap();
        node.remove_pod("a");
        node.assert_nothing_left();
    });
}

#[test]
fn host_ports_are_led_to_the_pod_and_given_back() {
    on_node(&[("10-pods.conflist", BRIDGE)], async |node| {
        let _tap = node.pod("a");
        let request = with_port(node, "a");
        let state = node.network.setup(request.clone()).await.unwrap();
        assert!(node.host_ports().contains(&format!("tcp . 18080 : {} . 80", state.ips[0])), "{}", node.host_ports());
        assert!(!node.rules().contains("18080"), "the plugin portmap was told: {}", node.rules());
        assert!(TcpListener::bind("0.0.0.0:18080").is_err(), "the port is not held");
        node.drop_host_ports();
        let until = std::time::Instant::now() + Duration::from_secs(20);
        while !node.host_ports().contains("18080") {
            assert!(std::time::Instant::now() < until, "the rules stayed away");
            tokio::task::yield_now().await;
        }
        node.network.teardown(request, Some(&state)).await.unwrap();
        assert_eq!(node.host_ports(), "");
        drop(TcpListener::bind("0.0.0.0:18080").unwrap());
        node.remove_pod("a");
        node.assert_nothing_left();
    });
}

#[test]
fn host_ports_survive_the_daemon() {
    on_node(&[("10-pods.conflist", BRIDGE)], async |node| {
        let _tap = node.pod("a");
        let request = with_port(node, "a");
        let first = node.restarted();
        let state = first.setup(request.clone()).await.unwrap();
        drop(first);
        node.drop_host_ports();
        let second = node.restarted();
        second.recover(|id| id == "a").await.unwrap();
        assert!(node.host_ports().contains("18080"), "{}", node.host_ports());
        assert!(TcpListener::bind("[::]:18080").is_err(), "the port is not held");
        drop(second);
        let third = node.restarted();
        third.recover(|_| false).await.unwrap();
        assert_eq!(node.host_ports(), "");
        third.teardown(request, Some(&state)).await.unwrap();
        node.remove_pod("a");
        node.assert_nothing_left();
    });
}

#[test]
fn a_host_port_in_use_is_refused_with_its_owner() {
    on_node(&[("10-pods.conflist", BRIDGE)], async |node| {
        let (_a, _b) = (node.pod("a"), node.pod("b"));
        let service = TcpListener::bind("127.0.0.1:18080").unwrap();
        let error = error_text(&node.network.setup(with_port(node, "a")).await.unwrap_err());
        assert!(error.contains("host port 18080/TCP is in use by process") && error.contains("(pid "), "{error}");
        drop(service);
        let state = node.network.setup(with_port(node, "a")).await.unwrap();
        let error = error_text(&node.network.setup(with_port(node, "b")).await.unwrap_err());
        assert!(error.contains("in use by pod default/web (sandbox a)"), "{error}");
        node.network.teardown(with_port(node, "b"), None).await.unwrap();
        node.network.teardown(with_port(node, "a"), Some(&state)).await.unwrap();
        let state = node.network.setup(with_port(node, "b")).await.unwrap();
        node.network.teardown(with_port(node, "b"), Some(&state)).await.unwrap();
        node.remove_pod("a");
        node.remove_pod("b");
        node.assert_nothing_left();
    });
}

fn with_port(node: &Node, pod: &str) -> NetworkRequest {
    let port_mappings = vec![cri::PortMapping { container_port: 80, host_port: 18080, ..Default::default() }];
    NetworkRequest { port_mappings, ..node.request(pod) }
}

#[test]
fn a_plugin_that_fails_is_quoted_and_what_was_added_is_undone() {
    let list =
        BRIDGE.replace(r#"{"type": "portmap", "capabilities": {"portMappings": true}}"#, r#"{"type": "failing"}"#);
    on_node(&[("10-pods.conflist", &list)], async |node| {
        node.plugin(
            "failing",
            r#"[ "$CNI_COMMAND" = ADD ] || exit 0
            echo '{"cniVersion":"1.0.0","code":11,"msg":"no free uplink","details":"all 4 are taken"}'; exit 1"#,
        );
        let _tap = node.pod("a");
        assert_eq!(
            failure(node, "a").await,
            "CNI ADD of plugin failing (network pods, /t/net.d/10-pods.conflist) failed: no free uplink: all 4 are taken (code 11)"
        );
        assert!(node.network.attached().unwrap().is_empty());
        node.remove_pod("a");
        node.assert_nothing_left();
    });
}

#[test]
fn a_plugin_that_hangs_is_named_and_killed_with_its_children() {
    let list = r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "hanging"}]}"#;
    on_node(&[("10-pods.conflist", list)], async |node| {
        let pids = node.directory().join("pids");
        let script = format!(
            r#"[ "$CNI_COMMAND" = ADD ] || exit 0
            sleep 600 & echo $$ $! > {0}; echo waiting for the cloud >&2; wait"#,
            pids.display()
        );
        node.plugin("hanging", &script);
        let _tap = node.pod("a");
        let started = Instant::now();
        assert_eq!(
            failure_of(&node.impatient(), node, "a").await,
            "CNI ADD of plugin hanging (network pods, /t/net.d/10-pods.conflist): no answer in 3 s, so it was killed; \
             its standard error: waiting for the cloud"
        );
        assert!(started.elapsed() < Duration::from_secs(20));
        for pid in fs::read_to_string(pids).unwrap().split_whitespace() {
            node::assert_ends(pid.parse().unwrap());
        }
        node.remove_pod("a");
        node.assert_nothing_left();
    });
}

#[test]
fn broken_plugins_are_told_apart() {
    let list = r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "odd"}]}"#;
    on_node(&[("10-pods.conflist", list)], async |node| {
        let _tap = node.pod("a");
        let start = "CNI ADD of plugin odd (network pods, /t/net.d/10-pods.conflist): ";
        let missing = failure(node, "a").await;
        assert!(missing.starts_with(&format!("{start}no such plugin in /t/bin, ")), "{missing}");
        let cases = [
            ("echo not json at all", "its answer is no JSON (expected ident at line 1 column 2): \"not json at all\""),
            ("echo '[]'", "its answer is no JSON object: \"[]\""),
            ("echo oops >&2; exit 7", "it exited with 7 and no answer; its standard error: oops"),
            ("kill -9 $$", "it was killed by signal 9 and no answer"),
            ("yes | head -c 3000000", "its answer is longer than 1048576 bytes"),
        ];
        for (script, expected) in cases {
            node.plugin("odd", &format!(r#"[ "$CNI_COMMAND" = ADD ] || exit 0; {script}"#));
            assert_eq!(failure(node, "a").await, format!("{start}{expected}"));
        }
        // It answers well but makes no interface.
        node.plugin("odd", r#"echo '{"cniVersion":"1.0.0"}'"#);
        let lying = failure(node, "a").await;
        assert!(lying.starts_with("there is no interface eth0 in "), "{lying}");
        node.remove_pod("a");
        node.assert_nothing_left();
    });
}

#[test]
fn a_crash_between_add_and_del_loses_nothing() {
    on_node(&[("10-pods.conflist", BRIDGE)], async |node| {
        let tap = node.pod("a");
        let state = node.network.setup(node.request("a")).await.unwrap();
        // The next daemon finds another configuration.
        drop(tap);
        node.configure("10-pods.conflist", r#"{"cniVersion": "1.0.0", "name": "other", "type": "no-such-plugin"}"#);
        let next = node.restarted();
        assert_eq!(next.attached().unwrap(), ["a"]);
        next.teardown(node.request("a"), Some(&state)).await.unwrap();
        assert!(next.attached().unwrap().is_empty());
        node.remove_pod("a");
        node.assert_nothing_left();
    });
}

#[test]
fn a_namespace_that_is_gone_does_not_hold_up_del() {
    // The bridge plugin finds its masquerading rules by the addresses in the namespace, so it forgets them here.
    let list = BRIDGE.replace("\"ipMasq\": true, ", "");
    on_node(&[("10-pods.conflist", &list)], async |node| {
        let tap = node.pod("a");
        let state = node.network.setup(node.request("a")).await.unwrap();
        drop(tap);
        node.remove_pod("a");
        node.network.teardown(node.request("a"), Some(&state)).await.unwrap();
        node.assert_nothing_left();
    });
}

#[test]
fn a_setup_that_nobody_waits_for_is_still_undone_whole() {
    on_node(&[("10-pods.conflist", BRIDGE)], async |node| {
        let _tap = node.pod("a");
        for milliseconds in [5, 20, 40, 80, 120] {
            // Dropped in the middle, as a cancelled request is.
            let limit = Duration::from_millis(milliseconds);
            let _ = tokio::time::timeout(limit, node.network.setup(node.request("a"))).await;
            let _ = tokio::time::timeout(limit, node.network.teardown(node.request("a"), None)).await;
            node.network.teardown(node.request("a"), None).await.unwrap();
            node.assert_nothing_left_of("a");
        }
        let state = node.network.setup(node.request("a")).await.unwrap();
        // Again over a whole set-up, as after a crash before its result was journaled.
        let again = node.restarted().setup(node.request("a")).await.unwrap();
        assert_eq!((again.interfaces.len(), again.network), (1, state.network));
        node.network.teardown(node.request("a"), None).await.unwrap();
        node.remove_pod("a");
        node.assert_nothing_left();
    });
}

#[test]
fn both_families_reach_the_guest() {
    let list = BRIDGE
        .replace(r#""ranges": [["#, r#""ranges": [[{"subnet": "fd00:88:7::/64"}], ["#)
        .replace(r#""routes": ["#, r#""routes": [{"dst": "::/0"}, "#)
        .replace("\"ipMasq\": true, ", "");
    on_node(&[("10-pods.conflist", &list)], async |node| {
        if !std::path::Path::new("/proc/sys/net/ipv6").exists() {
            eprintln!("skipped: the kernel has no IPv6");
            return;
        }
        let _tap = node.pod("a");
        let state = node.network.setup(node.request("a")).await.unwrap();
        assert_eq!(state.ips, ["fd00:88:7::2", "10.88.7.2"], "the plugins' order decides which is primary");
        let mut addresses = state.interfaces[0].addresses.clone();
        addresses.sort();
        assert_eq!(addresses, ["10.88.7.2/24", "fd00:88:7::2/64"]);
        let defaults: Vec<_> = state.routes.iter().map(|r| (r.destination.as_str(), r.gateway.as_str())).collect();
        assert_eq!(defaults, [("0.0.0.0/0", "10.88.7.1"), ("::/0", "fd00:88:7::1")]);
        node.network.teardown(node.request("a"), Some(&state)).await.unwrap();
        node.remove_pod("a");
        node.assert_nothing_left();
    });
}

#[test]
fn the_newest_version_that_every_plugin_has_is_used() {
    let list = BRIDGE.replace("\"name\"", "\"cniVersions\": [\"0.4.0\", \"1.1.0\"], \"name\"");
    on_node(&[("10-pods.conflist", &list)], async |node| {
        node.plugin(
            "bridge",
            r#"if [ "$CNI_COMMAND" = VERSION ]; then
            echo '{"cniVersion":"1.1.0","supportedVersions":["0.3.1","0.4.0"]}'; else exec /usr/lib/cni/bridge; fi"#,
        );
        let _tap = node.pod("a");
        let state = node.network.setup(node.request("a")).await.unwrap();
        assert!(state.cni_result.contains(r#""cniVersion":"0.4.0""#), "{}", state.cni_result);
        node.network.teardown(node.request("a"), Some(&state)).await.unwrap();
        node.remove_pod("a");
        node.assert_nothing_left();
    });
}

#[test]
fn without_configuration_the_reason_is_told() {
    on_node(&[], async |node| {
        let ready = async || {
            error_text(&node.network.ready().await.unwrap_err()).replace(node.directory().to_str().unwrap(), "/t")
        };
        assert_eq!(
            ready().await,
            "no CNI configuration in /t/net.d (*.conflist, *.conf, *.json); install a network plugin"
        );
        node.configure("10-pods.conflist", "{");
        assert!(ready().await.contains("/t/net.d/10-pods.conflist, line 1: EOF"), "{}", ready().await);
        node.configure("10-pods.conflist", BRIDGE);
        node.network.ready().await.unwrap();
        let list = r#"{"cniVersion": "1.1.0", "name": "pods", "plugins": [{"type": "unready"}]}"#;
        node.configure("10-pods.conflist", list);
        node.plugin("unready", r#"echo '{"cniVersion":"1.1.0","code":50,"msg":"agent is starting"}'; exit 1"#);
        assert_eq!(
            ready().await,
            "CNI STATUS of plugin unready (network pods, /t/net.d/10-pods.conflist) failed: agent is starting (code 50)"
        );
    });
}
