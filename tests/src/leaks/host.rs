//! Looking at the host: processes, mounts, cgroups, namespaces, links, loop devices, files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::read;

/// Where the daemon binds its pods' network namespaces, as `ip netns` does.
pub const NAMESPACES: &str = "/run/netns";
/// What the names of those begin with.
pub const NAMESPACE_PREFIX: &str = "bulkhead-";

/// Names in a directory; none when it does not exist.
#[must_use]
pub fn names(directory: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Processes that hold a file below `directory`, were told of one, or are in a cgroup below `cgroup`; with a name each.
#[must_use]
pub fn processes_of(directory: &Path, cgroup: &str) -> Vec<(u32, String)> {
    let in_cgroup = cgroup_processes(cgroup);
    let own = ancestors();
    let pids = names("/proc").into_iter().filter_map(|name| name.parse::<u32>().ok());
    pids.filter(|pid| !own.contains(pid) && (in_cgroup.contains(pid) || holds(*pid, directory)))
        .map(|pid| (pid, format!("{pid} ({})", read(format!("/proc/{pid}/comm")))))
        .collect()
}

/// This process and those that wait for it.
fn ancestors() -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    let mut pid = std::process::id();
    while pid > 0 && found.insert(pid) {
        let stat = read(format!("/proc/{pid}/stat"));
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
        pid = parent.unwrap_or(0);
    }
    found
}

fn holds(pid: u32, directory: &Path) -> bool {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let links = ["cwd", "root"].iter().map(|name| process.join(name));
    let descriptors = names(process.join("fd")).into_iter().map(|name| process.join("fd").join(name));
    if links.chain(descriptors).filter_map(|link| fs::read_link(link).ok()).any(|target| target.starts_with(directory))
    {
        return true;
    }
    let told = fs::read(process.join("cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&told).contains(&format!("{}/", directory.display()))
}

/// Mount point of the cgroup v2 hierarchy.
#[must_use]
pub fn cgroup_root() -> Option<PathBuf> {
    read("/proc/self/mountinfo").lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        source.starts_with("cgroup2 ").then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// Controllers of the cgroup v2 hierarchy.
#[must_use]
pub fn cgroup_controllers() -> Vec<String> {
    let listed = cgroup_root().map(|root| read(root.join("cgroup.controllers"))).unwrap_or_default();
    listed.split_whitespace().map(str::to_owned).collect()
}

/// The directory of a cgroup.
#[must_use]
pub fn cgroup_directory(cgroup: &str) -> Option<PathBuf> {
    cgroup_root().map(|root| root.join(cgroup.trim_start_matches('/')))
}

/// Cgroups below `cgroup`, which itself may stay.
#[must_use]
pub fn cgroups_below(cgroup: &str) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(directory) = cgroup_directory(cgroup) {
        collect_directories(&directory, &mut found);
    }
    found
}

fn collect_directories(directory: &Path, found: &mut Vec<String>) {
    for name in names(directory) {
        let path = directory.join(name);
        if path.is_dir() {
            collect_directories(&path, found);
            found.push(path.display().to_string());
        }
    }
}

fn cgroup_processes(cgroup: &str) -> BTreeSet<u32> {
    let directories = cgroups_below(cgroup).into_iter().map(PathBuf::from).chain(cgroup_directory(cgroup));
    directories.flat_map(|directory| numbers(&read(directory.join("cgroup.procs")))).collect()
}

fn numbers(text: &str) -> Vec<u32> {
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Mount points at or below `directory`, deepest first.
#[must_use]
pub fn mounts_below(directory: &Path) -> Vec<String> {
    let info = read("/proc/self/mountinfo");
    let points = info.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut below: Vec<PathBuf> = points.filter(|point| point.starts_with(directory)).collect();
    below.sort();
    below.iter().rev().map(|point| point.display().to_string()).collect()
}

/// Run directory of a daemon that is installed, whose pods are none of a suite's.
const INSTALLED: &str = "/run/bulkhead";

/// Network namespaces of pods that no other daemon's run directory knows: other suites', an installed daemon's.
#[must_use]
pub fn namespaces_of_no_other(directory: &Path) -> Vec<String> {
    let others: BTreeSet<String> = names(std::env::temp_dir())
        .into_iter()
        .map(|name| std::env::temp_dir().join(name))
        .filter(|other| other != directory)
        .map(|other| other.join("run"))
        .chain([PathBuf::from(INSTALLED)])
        .flat_map(|run| names(run.join("sandboxes")))
        .collect();
    let all = names(NAMESPACES).into_iter();
    all.filter(|name| name.strip_prefix(NAMESPACE_PREFIX).is_some_and(|id| !others.contains(id))).collect()
}

/// Links that are plugged into a bridge.
#[must_use]
pub fn ports_of(bridge: &str) -> Vec<String> {
    names(format!("/sys/class/net/{bridge}/brif"))
}

/// Taps in the host's own network namespace.
#[must_use]
pub fn taps() -> Vec<String> {
    names("/sys/class/net")
        .into_iter()
        .filter(|name| Path::new("/sys/class/net").join(name).join("tun_flags").exists())
        .collect()
}

/// Loop devices over files below `directory`.
#[must_use]
pub fn loops_below(directory: &Path) -> Vec<String> {
    let devices = names("/sys/block").into_iter().filter(|name| name.starts_with("loop"));
    devices
        .filter(|name| Path::new(&read(format!("/sys/block/{name}/loop/backing_file"))).starts_with(directory))
        .collect()
}

/// Files and directories below `directory`, down to `depth` levels.
#[must_use]
pub fn files_below(directory: &Path, depth: usize) -> Vec<String> {
    let mut found = Vec::new();
    for name in names(directory) {
        let path = directory.join(name);
        if depth > 1 && path.is_dir() {
            found.extend(files_below(&path, depth - 1));
        }
        found.push(path.display().to_string());
    }
    found
}

/// Open descriptors of a process by kind: socket, pipe, anon_inode:..., or the file's path.
#[must_use]
pub fn descriptors(pid: u32) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    let directory = PathBuf::from(format!("/proc/{pid}/fd"));
    for name in names(&directory) {
        let Ok(target) = fs::read_link(directory.join(name)) else { continue };
        let target = target.to_string_lossy().into_owned();
        let kind =
            if target.starts_with('/') { target } else { target.split(":[").next().unwrap_or_default().to_owned() };
        *kinds.entry(kind).or_insert(0) += 1;
    }
    kinds
}

/// Resident memory of a process in bytes.
#[must_use]
pub fn resident(pid: u32) -> u64 {
    let status = read(format!("/proc/{pid}/status"));
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) << 10
}
