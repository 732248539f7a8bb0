//! What a suite's daemon has of the host, so that a suite can prove that nothing of it stays.
//!
//! Everything is attributed to one suite by its directory, bridge, subnet or cgroup, so that other daemons on the
//! machine do not disturb. [`sweep`] removes what an interrupted run left.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::{command, wait};

pub mod host;
pub mod sweep;

/// The kernel and the daemon need a moment after the last answer (lazy unmounts, closing connections).
const SETTLE: Duration = Duration::from_secs(10);
/// Growth of the daemon's memory that caches and what the allocator keeps of parallel pulls explain.
const MEMORY_GROWTH: u64 = 96 << 20;
/// Idle connections to registries and clients that come and go.
const SPARE_SOCKETS: usize = 6;

/// What belongs to a suite.
#[derive(Debug, Clone)]
pub struct Scope {
    /// Below it are all files.
    pub directory: PathBuf,
    /// Parent of all its pods' cgroups, relative to the hierarchy.
    pub cgroup: String,
    /// Host's end of all its pods' cables.
    pub bridge: String,
    /// "10.1.2"
    pub prefix: String,
    /// Processes that may stay: daemon, registries.
    pub expected: BTreeSet<u32>,
}

/// What there is at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    things: BTreeSet<String>,
    descriptors: BTreeMap<String, usize>,
    memory: u64,
}

impl Snapshot {
    /// Looks around; `daemon` is the process whose descriptors and memory count.
    #[must_use]
    pub fn take(scope: &Scope, daemon: Option<u32>) -> Self {
        Self {
            things: things(scope),
            descriptors: daemon.map(host::descriptors).unwrap_or_default(),
            memory: daemon.map_or(0, host::resident),
        }
    }

    /// What is there now and was not before.
    #[must_use]
    pub fn grown(&self, before: &Self) -> Vec<String> {
        let mut grown: Vec<String> = self.things.difference(&before.things).cloned().collect();
        for (kind, count) in &self.descriptors {
            let earlier = before.descriptors.get(kind).copied().unwrap_or(0);
            let spare = if kind == "socket" { SPARE_SOCKETS } else { 0 };
            if *count > earlier + spare {
                grown.push(format!("descriptors of the daemon: {count} of {kind} instead of {earlier}"));
            }
        }
        if before.memory > 0 && self.memory > before.memory + MEMORY_GROWTH {
            grown.push(format!("memory of the daemon: {} KiB instead of {}", self.memory >> 10, before.memory >> 10));
        }
        grown
    }
}

/// Waits until nothing is there that was not there `before`.
///
/// # Errors
/// What is still there.
pub fn assert_none(scope: &Scope, daemon: Option<u32>, before: &Snapshot) -> Result<()> {
    wait::until_ok("everything to be given back", SETTLE, || {
        let grown = Snapshot::take(scope, daemon).grown(before);
        ensure!(grown.is_empty(), "this is left:\n  {}", grown.join("\n  "));
        Ok(())
    })
}

fn things(scope: &Scope) -> BTreeSet<String> {
    let mut things = BTreeSet::new();
    let directory = &scope.directory;
    let mut add =
        |kind: &str, names: Vec<String>| things.extend(names.into_iter().map(|name| format!("{kind} {name}")));
    let processes = host::processes_of(directory, &scope.cgroup);
    let processes = processes.into_iter().filter(|(pid, _)| !scope.expected.contains(pid));
    add("process", processes.map(|(_, name)| name).collect());
    add("mount", host::mounts_below(directory));
    add("cgroup", host::cgroups_below(&scope.cgroup));
    add("network namespace", host::namespaces_of_no_other(directory));
    add("link", host::ports_of(&scope.bridge));
    add("tap", host::taps());
    add("loop device", host::loops_below(directory));
    add(
        "address",
        host::files_below(&directory.join("addresses"), 2).into_iter().filter(|f| f.contains(&scope.prefix)).collect(),
    );
    add("run file", host::files_below(&directory.join("run/sandboxes"), 1));
    add("root file", root_files(&directory.join("root")));
    add("nftables rule", rules(&scope.prefix));
    add("nftables table", tables(&directory.join("root")));
    things
}

/// Files, not directories, that the daemon keeps beside images.
fn root_files(root: &Path) -> Vec<String> {
    let images = root.join("images");
    let all = host::files_below(root, 3).into_iter();
    all.filter(|name| !Path::new(name).starts_with(&images) && !Path::new(name).is_dir()).collect()
}

/// Lines of the packet filter that speak of the suite's addresses; rules of iptables are in there too.
fn rules(prefix: &str) -> Vec<String> {
    let Ok(listed) = command::run("nft", &["list", "ruleset"], Duration::from_secs(10)) else { return Vec::new() };
    let address = format!("{prefix}.");
    listed.stdout.lines().filter(|line| line.contains(&address)).map(|line| line.trim().to_owned()).collect()
}

/// Tables of host ports; a daemon writes its root directory into the comment.
fn tables(root: &Path) -> Vec<String> {
    let Ok(listed) = command::run("nft", &["list", "ruleset"], Duration::from_secs(10)) else { return Vec::new() };
    let comment = format!("daemon in {}\"", root.display());
    listed.stdout.lines().filter(|line| line.contains(&comment)).map(|line| line.trim().to_owned()).collect()
}

/// Name of a file below /sys or /proc, for messages.
fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}
