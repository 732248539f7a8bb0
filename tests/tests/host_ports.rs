//! Host ports: from everywhere to the pod, for one owner at a time, and gone with the pod, whatever happened to the daemon.
//!
//! The suite runs in a network namespace of its own, which is the pods' host; a second one is a machine beside it.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bulkhead_proto::cri;
use bulkhead_tests::cri::CallError;
use bulkhead_tests::environment::Environment;
use bulkhead_tests::fixture::Fixture;
use bulkhead_tests::images::catalogue::PAGE;
use bulkhead_tests::pod::{Container, Pod, Spec};
use bulkhead_tests::suite::{self, Case, SuiteFixture};
use bulkhead_tests::{command, http, wait};
use serde_json::json;

const HOST4: &str = "192.168.77.1";
const HOST6: &str = "fd00:77::1";
/// A second address of the host.
const OTHER4: &str = "192.168.77.9";
const LIMIT: Duration = Duration::from_secs(20);

fn main() -> std::process::ExitCode {
    const CASES: &[Case<Ports>] = &[
        ("tcp_leads_to_the_pod_from_everywhere", tcp_leads_to_the_pod_from_everywhere),
        ("udp_leads_to_the_pod", udp_leads_to_the_pod),
        ("sctp_is_mapped", sctp_is_mapped),
        ("the_port_is_held_while_the_pod_lives", the_port_is_held_while_the_pod_lives),
        ("a_port_of_a_host_service_is_refused_with_its_name", a_port_of_a_host_service_is_refused_with_its_name),
        ("two_pods_share_a_port_on_two_addresses", two_pods_share_a_port_on_two_addresses),
        ("ports_survive_the_death_of_the_daemon", ports_survive_the_death_of_the_daemon),
        ("a_flushed_ruleset_is_restored", a_flushed_ruleset_is_restored),
        ("wrong_mappings_are_refused_by_field", wrong_mappings_are_refused_by_field),
    ];
    suite::in_own_network(CASES)
}

struct Ports {
    fixture: Fixture,
    outside: Child,
}

impl SuiteFixture for Ports {
    fn start(environment: &Environment) -> Result<Self> {
        let fixture = Fixture::start(environment)?;
        let mut list = fixture.network.bridge_list();
        let bridge = &mut list["plugins"][0];
        // A bridge sends nothing back through the port it came from, unless it is told to.
        bridge["hairpinMode"] = json!(true);
        let six = json!([{ "subnet": "fd00:78::/64" }]);
        bridge["ipam"]["ranges"].as_array_mut().context("no ranges")?.push(six);
        bridge["ipam"]["routes"].as_array_mut().context("no routes")?.push(json!({ "dst": "::/0" }));
        fixture.network.configure(&list)?;
        Ok(Self { outside: outside()?, fixture })
    }

    fn after_case(&mut self, failed: bool) -> Result<()> {
        if failed {
            println!("    {}", command::run("nft", &["list", "ruleset"], LIMIT)?.stdout);
        }
        self.fixture.after_case(failed)
    }

    fn finish(self) -> Result<()> {
        let Self { fixture, mut outside } = self;
        outside.kill()?;
        outside.wait()?;
        fixture.finish()
    }
}

/// A network namespace with a cable to the host's.
fn outside() -> Result<Child> {
    let child = Command::new("unshare").args(["--net", "sleep", "100000"]).stdin(Stdio::null()).spawn()?;
    let pid = child.id().to_string();
    let own = fs::read_link("/proc/self/ns/net")?;
    wait::until("the machine beside the host", LIMIT, || {
        let theirs = fs::read_link(Path::new("/proc").join(&pid).join("ns/net"))?;
        Ok((theirs != own).then_some(()))
    })?;
    let host = format!(
        "ip link add cable type veth peer name eth0 netns {pid}; ip link set cable up; \
         ip addr add {HOST4}/24 dev cable; ip addr add {OTHER4}/24 dev cable; ip addr add {HOST6}/64 dev cable nodad"
    );
    let there = "ip link set lo up; ip link set eth0 up; ip addr add 192.168.77.2/24 dev eth0; \
                 ip addr add fd00:77::2/64 dev eth0 nodad";
    command::run("sh", &["-ec", &host], LIMIT)?.success()?;
    command::run("nsenter", &["-t", &pid, "-n", "sh", "-ec", there], LIMIT)?.success()?;
    Ok(child)
}

impl Ports {
    /// What a web server says to the machine beside the host.
    fn get_outside(&self, address: &str) -> Result<String> {
        let (pid, url) = (self.outside.id().to_string(), format!("http://{address}/"));
        let arguments = ["-t", &pid, "-n", "busybox", "timeout", "5", "busybox", "wget", "-q", "-O", "-", &url];
        Ok(command::run("nsenter", &arguments, LIMIT)?.success()?.stdout)
    }

    fn run(&self, name: &str, mappings: &[cri::PortMapping]) -> Result<Pod, CallError> {
        let config = cri::PodSandboxConfig { port_mappings: mappings.to_vec(), ..self.fixture.pod_config(name) };
        Pod::run(self.fixture.cri(), config, "")
    }

    /// A pod with a web server on port 80 that answers, and what it is asked by.
    fn web(&self, name: &str, mappings: &[cri::PortMapping]) -> Result<(Pod, Container)> {
        let pod = self.run(name, mappings)?;
        let container = pod.start(&Spec::new(&self.fixture.image("httpd")?, &[]))?;
        let address = format!("{}:80", pod.address()?);
        wait::until_ok("the web server", LIMIT, || http::get(&address, "/"))?;
        Ok((pod, container))
    }
}

fn port(host_ip: &str, host_port: i32) -> cri::PortMapping {
    cri::PortMapping { host_ip: host_ip.into(), host_port, container_port: 80, ..Default::default() }
}

fn expect_page(who: &str, answer: Result<String>) -> Result<()> {
    let text = answer.with_context(|| format!("{who} gets no answer"))?;
    ensure!(text == PAGE, "{who} got {text:?}");
    Ok(())
}

fn on_host(address: &str) -> Result<String> {
    http::get(address, "/").map(|answer| answer.text())
}

fn tcp_leads_to_the_pod_from_everywhere(p: &mut Ports) -> Result<()> {
    let (pod, server) = p.web("web", &[port("", 18080)])?;
    for address in [format!("{HOST4}:18080"), format!("[{HOST6}]:18080")] {
        expect_page("the machine beside the host", p.get_outside(&address)).context(address.clone())?;
        expect_page("the host", on_host(&address)).context(address)?;
    }
    expect_page("the host at 127.0.0.1", on_host("127.0.0.1:18080"))?;
    let urls = [format!("http://{HOST4}:18080/"), format!("http://[{HOST6}]:18080/")];
    let client = p.fixture.pod("client")?;
    for url in &urls {
        let script = format!("timeout 5 wget -q -O - {url}");
        let outcome = client.once(&p.fixture.shell(&script)?)?;
        expect_page("another pod", Ok(outcome.stdout)).with_context(|| format!("{url}: {}", outcome.stderr))?;
        let own = server.exec(&["sh", "-c", &script])?;
        expect_page("the pod itself", Ok(own.stdout)).with_context(|| format!("{url}: {}", own.stderr))?;
    }
    // Who asks from elsewhere is seen as who it is.
    let seen = logs(&server)?;
    ensure!(seen.contains("192.168.77.2"), "the server does not know who asked: {seen}");
    pod.remove()?;
    ensure!(p.get_outside(&format!("{HOST4}:18080")).is_err(), "the port answers without a pod");
    Ok(())
}

fn logs(container: &Container) -> Result<String> {
    Ok(String::from_utf8_lossy(&fs::read(&container.log)?).into_owned())
}

fn udp_leads_to_the_pod(p: &mut Ports) -> Result<()> {
    let mapping = cri::PortMapping { protocol: cri::Protocol::Udp as i32, ..port("", 15353) };
    let (_pod, server) = p.web("udp", &[mapping])?;
    // busybox serves nothing over UDP, so the guest counts datagrams for a port where nobody listens, and says so.
    let count = || -> Result<u64> {
        let text = server.exec(&["sh", "-c", "grep Udp: /proc/net/snmp | tail -n 1 | cut -d ' ' -f 3"])?.stdout;
        text.trim().parse().with_context(|| format!("no number: {text:?}"))
    };
    let before = count()?;
    for host in [HOST4, "127.0.0.1"] {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(LIMIT))?;
        socket.connect((host, 15353))?;
        socket.send(b"anybody there?")?;
        let error = socket.recv(&mut [0; 64]).err().context("an answer from nobody")?;
        ensure!(error.kind() == std::io::ErrorKind::ConnectionRefused, "{host}: {error}");
    }
    ensure!(count()? == before + 2, "the guest saw {} datagrams", count()? - before);
    ensure!(UdpSocket::bind("0.0.0.0:15353").is_err(), "the port is not held");
    drop(TcpListener::bind("0.0.0.0:15353").context("the same port of TCP is held too")?);
    Ok(())
}

fn sctp_is_mapped(p: &mut Ports) -> Result<()> {
    let mapping = cri::PortMapping { protocol: cri::Protocol::Sctp as i32, ..port("", 19899) };
    let pod = p.run("sctp", &[mapping])?;
    let rules = command::run("nft", &["list", "ruleset"], LIMIT)?.success()?.stdout;
    ensure!(rules.contains(&format!("sctp . 19899 : {} . 80", pod.address()?)), "{rules}");
    pod.remove()?;
    if !Path::new("/proc/net/sctp").exists() {
        bulkhead_tests::skip!("traffic over SCTP: this kernel has none (CONFIG_IP_SCTP); only the rule was looked at");
    }
    Ok(())
}

fn the_port_is_held_while_the_pod_lives(p: &mut Ports) -> Result<()> {
    let pod = p.run("first", &[port("", 18081)])?;
    ensure!(TcpListener::bind("0.0.0.0:18081").is_err(), "a host service may take the pod's port");
    ensure!(TcpListener::bind("[::1]:18081").is_err(), "a host service may take the pod's port of IPv6");
    let error = p.run("second", &[port(HOST4, 18081)]).err().context("two pods have one port")?.message;
    for word in ["18081", "pod tests/first", &pod.id] {
        ensure!(error.contains(word), "{word:?} is not in {error:?}");
    }
    p.fixture.cri().stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() })?;
    drop(TcpListener::bind("0.0.0.0:18081").context("a stopped pod holds its port")?);
    p.run("second", &[port(HOST4, 18081)])?;
    Ok(())
}

fn a_port_of_a_host_service_is_refused_with_its_name(p: &mut Ports) -> Result<()> {
    let _service = TcpListener::bind("0.0.0.0:18022")?;
    let error = p.run("taken", &[port("", 18022)]).err().context("the pod has the service's port")?.message;
    let name = fs::read_to_string("/proc/self/comm")?;
    for word in ["18022/TCP", name.trim(), &format!("pid {}", std::process::id())] {
        ensure!(error.contains(word), "{word:?} is not in {error:?}");
    }
    p.fixture.assert_nothing_left()
}

fn two_pods_share_a_port_on_two_addresses(p: &mut Ports) -> Result<()> {
    let (one, _) = p.web("one", &[port(HOST4, 18082)])?;
    let script = "mkdir /tmp/w; echo other > /tmp/w/index.html; exec httpd -f -p 80 -h /tmp/w";
    let other = p.run("other", &[port(OTHER4, 18082)])?;
    other.start(&Spec::shell(&p.fixture.image("httpd")?, script))?;
    let address = format!("{OTHER4}:18082");
    wait::until_ok("the other web server", LIMIT, || {
        let text = p.get_outside(&address)?;
        ensure!(text == "other\n", "{text:?}");
        Ok(())
    })?;
    expect_page("the machine beside the host", p.get_outside(&format!("{HOST4}:18082")))?;
    ensure!(on_host("127.0.0.1:18082").is_err(), "an address that nobody asked for is mapped");
    one.remove()?;
    ensure!(p.get_outside(&format!("{HOST4}:18082")).is_err(), "the port answers without a pod");
    ensure!(p.get_outside(&address)? == "other\n", "one pod took the other's port away");
    Ok(())
}

fn ports_survive_the_death_of_the_daemon(p: &mut Ports) -> Result<()> {
    let (pod, _) = p.web("survivor", &[port("", 18083)])?;
    p.fixture.daemon.kill()?;
    expect_page("the machine beside the host", p.get_outside(&format!("{HOST4}:18083")))?;
    command::run("nft", &["flush", "ruleset"], LIMIT)?.success()?;
    p.fixture.daemon.start_again()?;
    expect_page("the machine beside the host", p.get_outside(&format!("{HOST4}:18083")))?;
    ensure!(TcpListener::bind("0.0.0.0:18083").is_err(), "the port is not held again");
    let error = p.run("second", &[port("", 18083)]).err().context("two pods have one port")?.message;
    ensure!(error.contains("pod tests/survivor"), "{error}");
    p.fixture.daemon.kill()?;
    p.fixture.daemon.start_again()?;
    pod.remove()?;
    drop(TcpListener::bind("0.0.0.0:18083").context("a removed pod holds its port")?);
    p.fixture.assert_nothing_left()
}

fn a_flushed_ruleset_is_restored(p: &mut Ports) -> Result<()> {
    let (_pod, _) = p.web("flushed", &[port("", 18084)])?;
    command::run("nft", &["flush", "ruleset"], LIMIT)?.success()?;
    wait::until_ok("the rules to be back", LIMIT, || {
        expect_page("the machine beside the host", p.get_outside(&format!("{HOST4}:18084")))
    })
}

fn wrong_mappings_are_refused_by_field(p: &mut Ports) -> Result<()> {
    for (mapping, words) in [
        (port("192.0.2.77", 18085), ["192.0.2.77", "no address"]),
        (port("localhost", 18085), ["localhost", "host_ip is no IP address"]),
        (port("", 70_000), ["70000", "1 to 65535"]),
    ] {
        let error = p.run("wrong", &[mapping]).err().context("the sandbox runs")?.message;
        ensure!(words.iter().all(|word| error.contains(word)), "{words:?} are not in {error:?}");
    }
    p.fixture.assert_nothing_left()
}
