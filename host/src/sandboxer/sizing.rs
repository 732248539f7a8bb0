//! How big a pod's machine is: CPUs and memory from what the kubelet says of the pod.
//!
//! ```text
//! limit of the pod's cgroup = limits of its containers + overhead of its RuntimeClass
//!                           = guest RAM + what the processes around the guest need themselves
//! ```
//!
//! docs/sizing.md tells it to people.

use bulkhead_proto::cri::{LinuxContainerResources, LinuxPodSandboxConfig};
use bulkhead_proto::launch::Monitor;
use serde::{Deserialize, Serialize};

use crate::config::RuntimeHandlerConfig;

const MIB: u64 = 1 << 20;
/// The smallest guest that boots and has room for a container.
pub const LEAST_GUEST_MIB: u64 = 96;
/// More memory than any host has: keeps sums of hostile numbers in range.
const MOST_MIB: u64 = 16 << 20;

/// The size of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// CPUs that the guest has.
    pub vcpus: u32,
    /// CPUs that it can be given while it runs.
    pub max_vcpus: u32,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// Memory that it can be given while it runs; 0, as in records of older daemons, is no more than `memory_mib`.
    #[serde(default)]
    pub max_memory_mib: u64,
}

impl Size {
    /// Memory that the machine is made with; what is more than `memory_mib` its balloon holds.
    #[must_use]
    pub fn made_memory_mib(&self) -> u64 {
        self.max_memory_mib.max(self.memory_mib)
    }
}

/// A machine's size over its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizing {
    /// As it was started.
    pub made: Size,
    /// As it was last asked to be.
    pub now: Size,
}

/// A pod for which there is no machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not even the guest's kernel would fit.
    #[error(
        "the pod may use {have_mib} MiB of memory ({limit_mib} MiB of its containers' limits, {overhead_mib} MiB of overhead), which is too little for a machine of handler {handler:?}: the least that works is {least_mib} MiB ({LEAST_GUEST_MIB} MiB for the guest, {own_mib} MiB for the processes that run it). Raise the limits, or the overhead of the RuntimeClass"
    )]
    TooSmall {
        /// The pod's handler.
        handler: String,
        /// All that the pod may use.
        have_mib: u64,
        /// Of its containers.
        limit_mib: u64,
        /// Of its RuntimeClass.
        overhead_mib: u64,
        /// For a guest and its processes.
        least_mib: u64,
        /// For the processes.
        own_mib: u64,
    },
    /// The machine was made for less.
    #[error(
        "the pod shall have {wanted_mib} MiB, but its machine was made with {made_mib} MiB of memory and cannot grow; make the pod anew for more, or set max_memory_mib of its runtime handler for pods that shall grow"
    )]
    CannotGrow {
        /// That was asked for.
        wanted_mib: u64,
        /// That it was made with.
        made_mib: u64,
    },
}

/// memory.max of a pod's cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupLimit {
    /// There is no such cgroup, or the host cannot limit memory in it.
    Unknown,
    /// "max": some container of the pod has no limit.
    None,
    /// In bytes.
    Bytes(u64),
}

/// What is known of a pod.
#[derive(Debug, Clone, Copy)]
pub struct Demand<'a> {
    /// The pod's handler, for messages.
    pub handler: &'a str,
    /// Its settings: for a pod that says nothing.
    pub config: &'a RuntimeHandlerConfig,
    /// What runs the guest.
    pub monitor: &'a Monitor,
    /// As the kubelet sent it.
    pub linux: Option<&'a LinuxPodSandboxConfig>,
    /// Of the cgroup that the kubelet made for the pod.
    pub cgroup: CgroupLimit,
    /// CPUs of the host.
    pub host_cpus: u32,
}

/// Memory of the processes around the guest, in MiB: an estimate on the safe side, with room for a pod that works hard.
#[must_use]
pub fn own_mib(monitor: &Monitor) -> u64 {
    match monitor {
        // The emulator keeps translated code; bulkhead-vmm and bulkhead-fs.
        Monitor::Qemu { accelerator, .. } if accelerator == "tcg" => 160,
        Monitor::Qemu { .. } => 64,
        // bulkhead-vmm with its devices, and bulkhead-fs.
        Monitor::Microvm {} => 24,
        // A pod on the host's kernel has no machine.
        Monitor::Native(_) => 0,
    }
}

impl Demand<'_> {
    /// The machine for this pod.
    ///
    /// # Errors
    /// When its limit is too small for any.
    pub fn size(&self) -> Result<Size, SizeError> {
        let vcpus = self.vcpus();
        let max_vcpus = self.config.max_vcpus.min(self.host_cpus).max(vcpus);
        let memory_mib = self.memory_mib()?;
        Ok(Size { vcpus, max_vcpus, memory_mib, max_memory_mib: self.config.max_memory_mib.max(memory_mib) })
    }

    fn vcpus(&self) -> u32 {
        let limits = [self.resources(), self.overhead()].into_iter().flatten();
        // An overhead alone limits nobody.
        let limited = self.resources().and_then(millicpus).is_some();
        let sum: u64 = limits.filter_map(millicpus).sum();
        let wanted = if limited { sum.div_ceil(1000) } else { u64::from(self.config.vcpus) };
        u32::try_from(wanted).unwrap_or(u32::MAX).clamp(1, self.host_cpus.max(1))
    }

    fn memory_mib(&self) -> Result<u64, SizeError> {
        let limit_mib = self.resources().map_or(0, memory_mib);
        let overhead_mib = self.overhead().map_or(0, memory_mib);
        let own_mib = own_mib(self.monitor);
        let declared = (limit_mib > 0).then_some(limit_mib + overhead_mib);
        let have_mib = match (declared, self.cgroup) {
            (Some(declared), CgroupLimit::Bytes(bytes)) => declared.min(bytes / MIB),
            (Some(declared), CgroupLimit::Unknown) => declared,
            // The sum is of some containers only; the others share what a pod without limits gets.
            (Some(declared), CgroupLimit::None) => declared + self.config.memory_mib,
            // Nothing says how much it needs: the handler's default, in what the cgroup leaves.
            (None, CgroupLimit::Bytes(bytes)) => (bytes / MIB).min(self.config.memory_mib + own_mib),
            (None, CgroupLimit::Unknown | CgroupLimit::None) => return Ok(self.config.memory_mib),
        };
        match have_mib.checked_sub(own_mib) {
            Some(guest) if guest >= LEAST_GUEST_MIB => Ok(guest),
            _ => Err(SizeError::TooSmall {
                handler: self.handler.to_owned(),
                have_mib,
                limit_mib,
                overhead_mib,
                least_mib: LEAST_GUEST_MIB + own_mib,
                own_mib,
            }),
        }
    }

    fn resources(&self) -> Option<&LinuxContainerResources> {
        self.linux.and_then(|linux| linux.resources.as_ref())
    }

    fn overhead(&self) -> Option<&LinuxContainerResources> {
        self.linux.and_then(|linux| linux.overhead.as_ref())
    }
}

/// A CPU limit in thousandths of a CPU; `None` for none.
#[must_use]
pub fn millicpus(resources: &LinuxContainerResources) -> Option<u64> {
    let quota = u64::try_from(resources.cpu_quota).ok().filter(|quota| *quota > 0)?;
    // The kernel's own period when none is given.
    let period = u64::try_from(resources.cpu_period).ok().filter(|period| *period > 0).unwrap_or(100_000);
    Some(quota.saturating_mul(1000).div_ceil(period).min(u64::from(u32::MAX)))
}

fn memory_mib(resources: &LinuxContainerResources) -> u64 {
    (u64::try_from(resources.memory_limit_in_bytes).unwrap_or(0) / MIB).min(MOST_MIB)
}

/// CPUs for a pod whose containers' limits changed: never fewer than the pod itself says, and only known when all of them
/// have a limit.
#[must_use]
pub fn vcpus_of_containers(pod: u32, containers: &[Option<u64>]) -> Option<u32> {
    let sum = containers.iter().copied().sum::<Option<u64>>()?;
    Some(u32::try_from(sum.div_ceil(1000)).unwrap_or(u32::MAX).max(pod))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tcg() -> Monitor {
        Monitor::Qemu { binary: "/q".into(), accelerator: "tcg".into() }
    }

    fn resources(quota: i64, memory_mib: i64) -> LinuxContainerResources {
        LinuxContainerResources {
            cpu_quota: quota,
            cpu_period: 100_000,
            memory_limit_in_bytes: memory_mib << 20,
            ..Default::default()
        }
    }

    fn size(limits: Option<(i64, i64)>, overhead: Option<(i64, i64)>, cgroup: CgroupLimit) -> Result<Size, SizeError> {
        let of = |(quota, memory)| resources(quota, memory);
        let linux =
            LinuxPodSandboxConfig { resources: limits.map(of), overhead: overhead.map(of), ..Default::default() };
        let config = RuntimeHandlerConfig::qemu();
        let monitor = tcg();
        let demand =
            Demand { handler: "qemu", config: &config, monitor: &monitor, linux: Some(&linux), cgroup, host_cpus: 8 };
        demand.size()
    }

    #[test]
    fn a_pod_that_says_nothing_gets_the_default() {
        let default = Size { vcpus: 1, max_vcpus: 4, memory_mib: 256, max_memory_mib: 256 };
        assert_eq!(size(None, None, CgroupLimit::Unknown), Ok(default));
        assert_eq!(size(Some((0, 0)), Some((50_000, 64)), CgroupLimit::None), Ok(default));
    }

    #[test]
    fn limits_and_overhead_make_the_machine() {
        let of = |limits, overhead| {
            size(Some(limits), Some(overhead), CgroupLimit::Unknown).map(|size| (size.vcpus, size.memory_mib))
        };
        assert_eq!(of((150_000, 512), (0, 0)), Ok((2, 512 - 160)));
        assert_eq!(of((150_000, 512), (0, 160)), Ok((2, 512)));
        assert_eq!(of((200_000, 512), (25_000, 160)), Ok((3, 512)));
        assert_eq!(of((-1, 512), (0, 160)), Ok((1, 512)));
        assert_eq!(of((10_000_000, 512), (0, 160)), Ok((8, 512)));
    }

    #[test]
    fn the_cgroup_has_the_last_word() {
        let memory = |limits, cgroup| size(limits, None, cgroup).map(|size| size.memory_mib);
        let mib = |mib: u64| CgroupLimit::Bytes(mib << 20);
        assert_eq!(memory(Some((0, 4096)), mib(1024)), Ok(1024 - 160));
        assert_eq!(memory(None, mib(4096)), Ok(256));
        assert_eq!(memory(None, mib(300)), Ok(140));
        // One container of several has a limit.
        assert_eq!(memory(Some((0, 512)), CgroupLimit::None), Ok(512 + 256 - 160));
    }

    #[test]
    fn room_to_grow_is_what_the_handler_has_beyond_the_pods_own() {
        let made = |max_memory_mib| {
            let config = RuntimeHandlerConfig { max_memory_mib, ..RuntimeHandlerConfig::microvm() };
            let linux = LinuxPodSandboxConfig { resources: Some(resources(0, 512)), ..Default::default() };
            let (monitor, cgroup) = (Monitor::Microvm {}, CgroupLimit::Unknown);
            let linux = Some(&linux);
            let demand = Demand { handler: "m", config: &config, monitor: &monitor, linux, cgroup, host_cpus: 8 };
            demand.size().map(|size| (size.memory_mib, size.made_memory_mib()))
        };
        assert_eq!(made(0), Ok((488, 488)));
        assert_eq!(made(100), Ok((488, 488)));
        assert_eq!(made(2048), Ok((488, 2048)));
        let old: Size = serde_json::from_str(r#"{"vcpus":1,"max_vcpus":2,"memory_mib":300}"#).unwrap();
        assert_eq!(old.made_memory_mib(), 300);
    }

    #[test]
    fn too_little_names_the_least_that_works() {
        let text = size(Some((0, 128)), Some((0, 10)), CgroupLimit::Unknown).unwrap_err().to_string();
        for part in ["138 MiB", "128 MiB", "10 MiB of overhead", "\"qemu\"", "the least that works is 256 MiB"] {
            assert!(text.contains(part), "{text} lacks {part}");
        }
    }

    #[test]
    fn containers_count_when_all_have_limits() {
        assert_eq!(vcpus_of_containers(1, &[Some(500), Some(1600)]), Some(3));
        assert_eq!(vcpus_of_containers(4, &[Some(500)]), Some(4));
        assert_eq!(vcpus_of_containers(1, &[Some(500), None]), None);
    }

    proptest! {
        /// Guest and processes fit into what the pod may use, whatever it says; a guest is never too small to boot.
        #[test]
        fn nothing_exceeds_the_pods_limit(
            quota in any::<i64>(),
            period in any::<i64>(),
            limit in any::<i64>(),
            overhead in any::<i64>(),
            cgroup in proptest::option::of(any::<u64>()),
            host_cpus in 0..512_u32,
            default_mib in LEAST_GUEST_MIB..1 << 20,
        ) {
            let one = |memory| LinuxContainerResources {
                cpu_quota: quota,
                cpu_period: period,
                memory_limit_in_bytes: memory,
                ..Default::default()
            };
            let linux = LinuxPodSandboxConfig {
                resources: Some(one(limit)),
                overhead: Some(one(overhead)),
                ..Default::default()
            };
            let config = RuntimeHandlerConfig { memory_mib: default_mib, ..RuntimeHandlerConfig::qemu() };
            let monitor = tcg();
            let demand = Demand {
                handler: "qemu",
                config: &config,
                monitor: &monitor,
                linux: Some(&linux),
                cgroup: cgroup.map_or(CgroupLimit::Unknown, CgroupLimit::Bytes),
                host_cpus,
            };
            if let Ok(size) = demand.size() {
                prop_assert!(size.memory_mib >= LEAST_GUEST_MIB);
                prop_assert!(size.vcpus >= 1 && size.vcpus <= host_cpus.max(1));
                prop_assert!(size.max_vcpus >= size.vcpus);
                let used = u128::from(size.memory_mib + own_mib(&monitor)) << 20;
                if let Some(cgroup) = cgroup {
                    prop_assert!(used <= u128::from(cgroup));
                }
                if let (Ok(limit @ 1048576..), overhead) = (u128::try_from(limit), u128::try_from(overhead).unwrap_or(0)) {
                    prop_assert!(used <= limit + overhead);
                }
            }
        }
    }
}
