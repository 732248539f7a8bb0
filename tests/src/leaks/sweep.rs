//! Removing what an interrupted run left, found by its directory alone.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::{host, read};
use crate::{cni, command, wait};

/// Name of the file in a suite's directory that holds the process which made it.
pub const OWNER: &str = "owner";
/// What suites' directories begin with.
pub const PREFIX: &str = "bt-";

/// Removes everything that belongs to the run in `directory`: processes, cgroups, namespaces, mounts, loop devices, the
/// bridge and the directory itself. Nothing there is success.
///
/// # Errors
/// What cannot be removed.
pub fn sweep(directory: &Path) -> Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    let cgroup = read(directory.join("cgroup"));
    end_processes(directory, &cgroup)?;
    remove_cgroups(&cgroup)?;
    for sandbox in host::names(directory.join("run/sandboxes")) {
        remove_namespace(&format!("{}{sandbox}", host::NAMESPACE_PREFIX))?;
    }
    for point in host::mounts_below(directory) {
        unmount(point.as_str(), UnmountFlags::DETACH).with_context(|| format!("cannot unmount {point}"))?;
    }
    for device in host::loops_below(directory) {
        command::run("losetup", &["--detach", &format!("/dev/{device}")], Duration::from_secs(10))?.success()?;
    }
    let bridge = read(directory.join("bridge"));
    if !bridge.is_empty() {
        cni::remove_bridge(&bridge);
    }
    fs::remove_dir_all(directory).with_context(|| format!("cannot remove {}", directory.display()))
}

/// Sweeps the directories of suites whose process is gone.
///
/// # Errors
/// As [`sweep`].
pub fn sweep_abandoned() -> Result<()> {
    let all = host::names(std::env::temp_dir()).into_iter().filter(|name| name.starts_with(PREFIX));
    for directory in all.map(|name| std::env::temp_dir().join(name)) {
        let owner = read(directory.join(OWNER)).parse().ok().and_then(Pid::from_raw);
        if owner.is_some_and(|owner| test_kill_process(owner).is_err()) {
            sweep(&directory)?;
        }
    }
    Ok(())
}

fn end_processes(directory: &Path, cgroup: &str) -> Result<()> {
    wait::until_ok("the end of an interrupted run's processes", Duration::from_secs(20), || {
        let processes = host::processes_of(directory, cgroup);
        for (pid, _) in &processes {
            if let Some(pid) = i32::try_from(*pid).ok().and_then(Pid::from_raw) {
                // It may have ended by now.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        ensure!(processes.is_empty(), "still there: {processes:?}");
        Ok(())
    })
}

fn remove_cgroups(cgroup: &str) -> Result<()> {
    let Some(directory) = host::cgroup_directory(cgroup).filter(|_| !cgroup.is_empty()) else { return Ok(()) };
    // A process that was killed stays in its cgroup until it has given back its memory.
    wait::until_ok("cgroups to be empty", Duration::from_secs(20), || {
        for below in host::cgroups_below(cgroup).iter().map(Path::new).chain([directory.as_path()]) {
            match fs::remove_dir(below) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove cgroup {}", below.display()));
                }
                _ => {}
            }
        }
        Ok(())
    })
}

fn remove_namespace(name: &str) -> Result<()> {
    let path = Path::new(host::NAMESPACES).join(name);
    if path.exists() {
        // A file without a mount is what an interrupted creation leaves.
        let _ = unmount(&path, UnmountFlags::DETACH);
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}
