//! From CRI's limits, which speak cgroup v1, to the files of cgroup v2.

use bulkhead_proto::agent::Resources;

use super::cgroups::{CgroupError, Setting};

const DEFAULT_PERIOD_US: u64 = 100_000;

/// The settings that `resources` ask for; what is unset is not touched.
///
/// # Errors
/// A value that cannot be expressed, or a `unified` key that is no file name.
pub fn settings(resources: &Resources) -> Result<Vec<Setting>, CgroupError> {
    let mut all: Vec<Setting> = Vec::new();
    let mut set = |file: &str, value: String| all.push((file.into(), value));
    if resources.cpu_shares != 0 {
        set("cpu.weight", cpu_weight(resources.cpu_shares).to_string());
    }
    if resources.cpu_quota_us != 0 || resources.cpu_period_us != 0 {
        set("cpu.max", cpu_max(resources.cpu_quota_us, resources.cpu_period_us));
    }
    if !resources.cpuset_cpus.is_empty() {
        set("cpuset.cpus", resources.cpuset_cpus.clone());
    }
    if !resources.cpuset_mems.is_empty() {
        set("cpuset.mems", resources.cpuset_mems.clone());
    }
    if let Some(value) = swap_max(resources.memory_limit_bytes, resources.memory_swap_limit_bytes)? {
        set("memory.swap.max", value);
    }
    if resources.memory_limit_bytes != 0 {
        set("memory.max", limit(resources.memory_limit_bytes));
    }
    if resources.pids_limit != 0 {
        set("pids.max", limit(resources.pids_limit));
    }
    let mut unified: Vec<_> = resources.unified.iter().collect();
    unified.sort();
    for (file, value) in unified {
        if file.contains('/') || !file.contains('.') || file.starts_with("cgroup.") || file.starts_with('.') {
            return Err(CgroupError::BadFile(file.clone()));
        }
        set(file, value.clone());
    }
    Ok(all)
}

/// What a new container's cgroup gets whether asked or not: the kernel's OOM killer takes a container as a whole.
#[must_use]
pub fn defaults() -> Vec<Setting> {
    vec![("memory.oom.group".into(), "1".into())]
}

fn limit(value: i64) -> String {
    if value > 0 { value.to_string() } else { "max".into() }
}

/// cgroup v1's shares (2 to 262144) on the scale of `cpu.weight` (1 to 10000).
fn cpu_weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn cpu_max(quota: i64, period: u64) -> String {
    let period = if period == 0 { DEFAULT_PERIOD_US } else { period };
    format!("{} {period}", limit(quota))
}

/// cgroup v1 limits memory and swap together; v2 limits swap alone.
fn swap_max(memory: i64, both: i64) -> Result<Option<String>, CgroupError> {
    match (memory, both) {
        (_, 0) => Ok(None),
        (_, both) if both < 0 => Ok(Some("max".into())),
        (memory, _) if memory <= 0 => Err(CgroupError::BadValue("a limit of memory with swap needs one of memory")),
        (memory, both) if both < memory => {
            Err(CgroupError::BadValue("the limit of memory with swap is below the one of memory"))
        }
        (memory, both) => Ok(Some((both - memory).to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_span_the_scale() {
        let weights: Vec<u64> = [0, 2, 1024, 262_144, u64::MAX].into_iter().map(cpu_weight).collect();
        assert_eq!(weights, [1, 1, 39, 10_000, 10_000]);
    }

    #[test]
    fn limits_become_files() {
        let mut resources = Resources::new();
        resources.cpu_quota_us = 50_000;
        resources.cpu_shares = 2;
        resources.memory_limit_bytes = 100;
        resources.memory_swap_limit_bytes = 150;
        resources.pids_limit = -1;
        resources.unified.insert("memory.high".into(), "90".into());
        let expected = [
            ("cpu.weight", "1"),
            ("cpu.max", "50000 100000"),
            ("memory.swap.max", "50"),
            ("memory.max", "100"),
            ("pids.max", "max"),
            ("memory.high", "90"),
        ];
        let expected: Vec<Setting> = expected.map(|(k, v)| (k.into(), v.into())).into();
        assert_eq!(settings(&resources).unwrap(), expected);
    }

    #[test]
    fn nothing_asked_for_is_nothing_set() {
        assert!(settings(&Resources::new()).unwrap().is_empty());
    }

    #[test]
    fn unified_keys_are_file_names_of_controllers() {
        for bad in ["../memory.max", "a/b.c", "memory", "cgroup.procs", ".hidden"] {
            let mut resources = Resources::new();
            resources.unified.insert(bad.into(), "1".into());
            assert!(settings(&resources).is_err(), "{bad}");
        }
    }

    #[test]
    fn swap_below_memory_is_refused() {
        assert!(swap_max(100, 50).is_err());
        assert!(swap_max(0, 50).is_err());
        assert_eq!(swap_max(100, -1).unwrap().as_deref(), Some("max"));
    }
}
