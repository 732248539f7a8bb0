//! A node that is this process in a network namespace of its own.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bulkhead::network::{NetworkRequest, PodNetwork, Settings};
use bulkhead::sys;
use tempfile::TempDir;

pub const BRIDGE: &str = r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "bh0", "isGateway": true, "ipMasq": true, "mtu": 1400, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.7.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": "IPAM"}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}"#;
const PLUGINS: &str = "/usr/lib/cni";
/// An emulated machine takes its time.
const PATIENT: Duration = Duration::from_secs(60);

pub struct Node {
    pub network: PodNetwork,
    temporary: TempDir,
}

/// Runs `test` on a fresh node, or says why not. Afterwards the host has what it had before.
pub fn on_node(files: &[(&str, &str)], test: impl AsyncFnOnce(&Node) + Send) {
    if let Some(why) = missing() {
        eprintln!("skipped: {why}");
        return;
    }
    std::thread::scope(|scope| {
        let node = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            run(&["ip", "link", "set", "lo", "up"]);
            let node = Node::new(files);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(test(&node));
            let left = fs::read_to_string("/proc/self/mountinfo").unwrap();
            assert!(!left.contains(node.directory().to_str().unwrap()), "mounts are left");
        });
        if let Err(panic) = node.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root".to_owned());
    }
    if let Some(name) = ["bridge", "host-local", "portmap"].iter().find(|name| !Path::new(PLUGINS).join(name).exists())
    {
        return Some(format!("no {name} in {PLUGINS} (apt-get install containernetworking-plugins)"));
    }
    let program = ["ip", "tc", "iptables", "nft", "busybox"]
        .into_iter()
        .find(|p| sys::host::find_program(Path::new(p)).is_none());
    program.map(|name| format!("no {name}"))
}

pub fn run(command: &[&str]) -> String {
    let output = Command::new(command[0]).args(&command[1..]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn foreign_links() -> Vec<String> {
    let links = run(&["ip", "-o", "link"]);
    let names = links.lines().filter_map(|line| line.split(": ").nth(1));
    names.filter(|name| !["lo", "bh0"].contains(name)).map(str::to_owned).collect()
}

/// The process ends soon; a signal takes effect when its target runs next.
pub fn assert_ends(pid: i32) {
    if let Ok(process) = sys::process::Process::open(pid) {
        assert!(process.wait_timeout(Duration::from_secs(10)).unwrap(), "process {pid} still runs");
    }
}

impl Node {
    fn new(files: &[(&str, &str)]) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        for directory in ["net.d", "bin", "netns"] {
            fs::create_dir(temporary.path().join(directory)).unwrap();
        }
        let network = PodNetwork::new(settings(temporary.path(), PATIENT));
        let node = Self { network, temporary };
        for (name, text) in files {
            node.configure(name, text);
        }
        node
    }

    pub fn directory(&self) -> &Path {
        self.temporary.path()
    }

    pub fn configure(&self, name: &str, text: &str) {
        let ipam = self.directory().join("ipam");
        let text = text.replace("IPAM", ipam.to_str().unwrap());
        fs::write(self.directory().join("net.d").join(name), text).unwrap();
    }

    pub fn plugin(&self, name: &str, script: &str) {
        let path = self.directory().join("bin").join(name);
        // A new file each time: the old one may still be open for running.
        let _ = fs::remove_file(&path);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The network as the next daemon sees it.
    pub fn restarted(&self) -> PodNetwork {
        PodNetwork::new(settings(self.directory(), PATIENT))
    }

    /// A daemon that gives plugins 3 s.
    pub fn impatient(&self) -> PodNetwork {
        PodNetwork::new(settings(self.directory(), Duration::from_secs(3)))
    }

    pub fn netns(&self, pod: &str) -> PathBuf {
        self.directory().join("netns").join(pod)
    }

    pub fn pod(&self, pod: &str) -> OwnedFd {
        sys::netns::create(&self.netns(pod)).unwrap();
        sys::netns::create(&self.netns(pod)).unwrap();
        sys::tap::create(&self.netns(pod), "tap0", 1).unwrap().remove(0)
    }

    pub fn remove_pod(&self, pod: &str) {
        sys::netns::remove(&self.netns(pod)).unwrap();
        sys::netns::remove(&self.netns(pod)).unwrap();
    }

    pub fn request(&self, pod: &str) -> NetworkRequest {
        NetworkRequest {
            sandbox_id: pod.to_owned(),
            pod_name: "web".to_owned(),
            pod_namespace: "default".to_owned(),
            pod_uid: "0f9b".to_owned(),
            netns: self.netns(pod),
            taps: vec!["tap0".to_owned()],
            ..NetworkRequest::default()
        }
    }

    pub fn inside(&self, pod: &str, command: &[&str]) -> String {
        let command: Vec<String> = command.iter().map(|&word| word.to_owned()).collect();
        let work = move || run(&command.iter().map(String::as_str).collect::<Vec<_>>());
        sys::netns::run(&self.netns(pod), work).unwrap()
    }

    pub fn ping(&self, address: &str) -> bool {
        Command::new("busybox").args(["ping", "-c", "1", "-W", "2", address]).output().unwrap().status.success()
    }

    pub fn rules(&self) -> String {
        run(&["iptables-save"])
    }

    /// The daemon's table of host ports; empty without one.
    pub fn host_ports(&self) -> String {
        let all = run(&["nft", "list", "ruleset"]);
        let from = all.find("table inet bulkhead_").unwrap_or(all.len());
        all[from..].split("\n}").next().unwrap_or_default().to_owned()
    }

    /// What somebody else may do; not `flush ruleset`, after which the plugin bridge misses its own rules.
    pub fn drop_host_ports(&self) {
        let listed = self.host_ports();
        let name = listed.split_whitespace().nth(2).unwrap();
        run(&["nft", "delete", "table", "inet", name]);
    }

    /// No device but the loopback and the plugins' bridge, no rule that names a pod, no address in use, no file of ours.
    pub fn assert_nothing_left(&self) {
        self.assert_empty("netns");
        self.assert_nothing_left_of("a");
    }

    /// As [`Self::assert_nothing_left`], but the pod's namespace may still be there.
    pub fn assert_nothing_left_of(&self, pod: &str) {
        // The kernel dismantles a namespace, and with it a veth's other end, after the last reference is gone.
        let until = Instant::now() + Duration::from_secs(10);
        while !foreign_links().is_empty() {
            assert!(Instant::now() < until, "{:?}", foreign_links());
            std::thread::yield_now();
        }
        let rules = self.rules();
        assert!(!rules.contains("10.88.7.") && !rules.contains(&format!("id: \\\"{pod}\\\"")), "{rules}");
        self.assert_empty("records");
        self.assert_empty("host-ports");
        assert_eq!(self.host_ports(), "");
        self.assert_empty("ipam/pods");
    }

    fn assert_empty(&self, directory: &str) {
        let entries = fs::read_dir(self.directory().join(directory)).into_iter().flatten().flatten();
        // host-local keeps its lock and the last address it gave out.
        let files: Vec<String> = entries.map(|e| e.file_name().into_string().unwrap()).collect();
        let ours: Vec<&String> = files.iter().filter(|f| *f != "lock" && !f.starts_with("last_reserved_ip")).collect();
        assert!(ours.is_empty(), "{directory}: {ours:?}");
    }
}

/// A test that fails leaves its pods; their namespaces are mounts.
impl Drop for Node {
    fn drop(&mut self) {
        for pod in fs::read_dir(self.directory().join("netns")).into_iter().flatten().flatten() {
            if let Err(error) = sys::netns::remove(&pod.path()) {
                eprintln!("{error}");
            }
        }
    }
}

fn settings(directory: &Path, plugin_limit: Duration) -> Settings {
    Settings {
        config_directory: directory.join("net.d"),
        plugin_directories: vec![directory.join("bin"), PLUGINS.into()],
        record_directory: directory.join("records"),
        root: directory.to_owned(),
        plugin_limit,
    }
}
