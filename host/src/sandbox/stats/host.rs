//! What the host's kernel sees of a pod: its cgroup, its processes, its network namespace, its scratch drive.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bulkhead_proto::agent::{CgroupStats, InterfaceStats};
use bulkhead_proto::figures;

use crate::node::{Node, now_ns};
use crate::sandbox::SandboxRecord;
use crate::sys;

/// Processes of one pod that are looked at; a VM has three, a native pod what its containers start.
const MAX_PROCESSES: usize = 4096;
/// Open files of one process that are looked at.
const MAX_FILES: usize = 4096;

/// Figures of one pod by the host.
#[derive(Debug, Default)]
pub struct HostFigures {
    /// Of the pod's cgroup, the per-pod processes included. Memory is measured by process where the host's cgroup v2 has
    /// no memory controller.
    pub cgroup: Option<CgroupStats>,
    /// Cores in use, in billionths.
    pub rate: Option<u64>,
    /// The pod's interfaces, the default one first; `None` when its namespace cannot be entered.
    pub interfaces: Option<Vec<InterfaceStats>>,
    /// What the scratch drive takes on disk; `None` when the pod has none, or its processes are not known.
    pub scratch_bytes: Option<u64>,
}

/// Where a pod's figures are read.
#[derive(Debug)]
pub struct Place {
    cgroup: Option<PathBuf>,
    netns: PathBuf,
    /// Names of the pod's interfaces, in its own order.
    interfaces: Vec<String>,
    scratch: PathBuf,
}

impl Place {
    /// Of the pod in `record`.
    #[must_use]
    pub fn of(node: &Node, record: &SandboxRecord) -> Self {
        let cgroup = node.cgroups.as_ref().and_then(|hierarchy| hierarchy.cgroup(&record.cgroup()).ok());
        let network = record.network.as_ref();
        Self {
            cgroup: cgroup.map(|cgroup| cgroup.path().to_owned()),
            netns: record.netns(),
            interfaces: network.map(|n| n.interfaces.iter().map(|i| i.name.clone()).collect()).unwrap_or_default(),
            scratch: node.scratch.directory().to_owned(),
        }
    }
}

/// Reads all of it. Blocking: a process that the kernel holds may hold this up.
#[must_use]
pub fn read(place: &Place) -> HostFigures {
    let cgroup = place.cgroup.as_deref().filter(|path| path.exists());
    let processes = cgroup.map(processes).unwrap_or_default();
    HostFigures {
        cgroup: cgroup.map(|path| cgroup_figures(path, &processes)),
        rate: None,
        interfaces: interfaces(place),
        scratch_bytes: scratch_bytes(&processes, &place.scratch),
    }
}

fn cgroup_figures(path: &Path, processes: &[u32]) -> CgroupStats {
    let read = |file: &str| fs::read_to_string(path.join(file)).unwrap_or_default();
    let mut found = figures::cgroup(now_ns(), &read);
    if found.memory_usage_bytes.is_none() && !processes.is_empty() {
        let memory = processes.iter().filter_map(|pid| sys::memory::of_process(*pid).ok());
        let (total, anonymous) = memory.fold((0, 0), |(total, anonymous), memory| {
            (total + memory.proportional_bytes, anonymous + memory.anonymous_bytes)
        });
        (found.memory_usage_bytes, found.memory_working_set_bytes) = (Some(total), Some(total));
        found.memory_rss_bytes = Some(anonymous);
    }
    found
}

/// The processes in a cgroup and below.
fn processes(path: &Path) -> Vec<u32> {
    let mut found = Vec::new();
    let mut left = vec![path.to_owned()];
    while let Some(path) = left.pop() {
        let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
        found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
        if found.len() > MAX_PROCESSES {
            found.truncate(MAX_PROCESSES);
            return found;
        }
        let below = fs::read_dir(&path).into_iter().flatten().flatten();
        left.extend(below.filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir())).map(|entry| entry.path()));
    }
    found
}

/// The scratch drive has no name: it is found among the files that the pod's processes hold.
fn scratch_bytes(processes: &[u32], directory: &Path) -> Option<u64> {
    let mut seen = HashSet::new();
    let mut bytes = 0;
    for pid in processes {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().take(MAX_FILES);
        for file in files.map(|file| file.path()) {
            if !fs::read_link(&file).is_ok_and(|target| target.starts_with(directory)) {
                continue;
            }
            let Ok(metadata) = fs::metadata(&file) else { continue };
            if seen.insert((metadata.dev(), metadata.ino())) {
                bytes += metadata.blocks() * 512;
            }
        }
    }
    (!seen.is_empty()).then_some(bytes)
}

/// The pod's side of its interfaces: what they receive is what the pod received.
fn interfaces(place: &Place) -> Option<Vec<InterfaceStats>> {
    let table = sys::netns::run(&place.netns, || fs::read_to_string("/proc/thread-self/net/dev")).ok()?.ok()?;
    let all = figures::interfaces(&table);
    let named = |name: &String| all.iter().find(|interface| interface.name == *name).cloned();
    Some(place.interfaces.iter().filter_map(named).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_file_without_a_name_is_found_once() {
        let directory = tempfile::tempdir().unwrap();
        let file = tempfile::tempfile_in(directory.path()).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[1; 8192], 0).unwrap();
        let _twice = file.try_clone().unwrap();
        let own = std::process::id();
        assert_eq!(scratch_bytes(&[own, own], directory.path()), Some(file.metadata().unwrap().blocks() * 512));
        assert_eq!(scratch_bytes(&[own], Path::new("/nowhere")), None);
    }

    #[test]
    fn memory_is_counted_by_process_without_a_controller() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("cpu.stat"), "usage_usec 5\n").unwrap();
        std::fs::write(directory.path().join("cgroup.procs"), format!("{}\n", std::process::id())).unwrap();
        let place = Place {
            cgroup: Some(directory.path().to_owned()),
            netns: "/nowhere".into(),
            interfaces: Vec::new(),
            scratch: "/nowhere".into(),
        };
        let figures = read(&place);
        let cgroup = figures.cgroup.unwrap();
        assert_eq!(cgroup.cpu_usage_ns, Some(5000));
        assert!(cgroup.memory_working_set_bytes.is_some_and(|bytes| bytes > 4096));
        assert!(figures.interfaces.is_none());
    }
}
