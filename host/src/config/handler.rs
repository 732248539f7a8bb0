//! `[runtimes.NAME]`: what a runtime handler means, and what a pod may change of it by annotations.

use std::collections::HashMap;
use std::path::PathBuf;

use bulkhead_proto::launch::{DeviceLimits, RateLimit};
use serde::{Deserialize, Serialize};

use crate::sandboxer::sizing::LEAST_GUEST_MIB;

/// The handler for machines of our own.
pub const MICROVM: &str = "microvm";
/// The handler for machines of QEMU's.
pub const QEMU: &str = "qemu";
/// What annotations of a pod that are meant for us begin with.
pub const ANNOTATION_PREFIX: &str = "bulkhead.dev/";
const VCPUS: &str = "bulkhead.dev/vcpus";
const MEMORY_MIB: &str = "bulkhead.dev/memory-mib";
const KERNEL_ARGUMENTS: &str = "bulkhead.dev/kernel-arguments";
/// Every annotation that a handler may allow.
const ANNOTATIONS: [&str; 3] = [VCPUS, MEMORY_MIB, KERNEL_ARGUMENTS];

/// Devices wait in steps of milliseconds: what such a step brings must find room.
const BURSTS_PER_SECOND: u64 = 100;

/// `[runtimes.NAME]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuntimeHandlerConfig {
    /// What carries the pod.
    pub sandboxer: SandboxerKind,
    /// Guest kernel; empty: `guest.kernel`.
    #[serde(default)]
    pub kernel: PathBuf,
    /// Guest initramfs; empty: `guest.initramfs`.
    #[serde(default)]
    pub initramfs: PathBuf,
    /// How QEMU runs guest code.
    #[serde(default)]
    pub accelerator: Accelerator,
    /// The QEMU binary, looked up in PATH when it has no slash.
    #[serde(default = "default_qemu")]
    pub qemu: PathBuf,
    /// Virtual CPUs of a pod that has no CPU limit.
    #[serde(default = "default_vcpus")]
    pub vcpus: u32,
    /// Virtual CPUs that a pod may be given while it runs, as far as the host has them.
    #[serde(default = "default_max_vcpus")]
    pub max_vcpus: u32,
    /// Memory of the guest in MiB, for a pod that has no memory limit.
    #[serde(default = "default_memory_mib")]
    pub memory_mib: u64,
    /// Memory in MiB that a pod may be given while it runs, if that is more than it starts with; 0 is no more.
    #[serde(default)]
    pub max_memory_mib: u64,
    /// A guest that runs out of memory takes back what its balloon holds instead of killing for it.
    #[serde(default)]
    pub deflate_on_oom: bool,
    /// Appended to the guest's kernel command line.
    #[serde(default)]
    pub kernel_arguments: String,
    /// The guest's console takes input, and the agent answers there (`bulkhead debug-console`). For finding faults.
    #[serde(default)]
    pub debug_console: bool,
    /// Annotations by which a pod may change the values above.
    #[serde(default)]
    pub annotations: Vec<String>,
    /// What each drive of a pod's VM may move, in both directions together.
    #[serde(default)]
    pub disk_limit: RateLimit,
    /// What a pod's VM may receive from the network.
    #[serde(default)]
    pub ingress_limit: RateLimit,
    /// What a pod's VM may send to the network.
    #[serde(default)]
    pub egress_limit: RateLimit,
}

/// What carries a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SandboxerKind {
    /// Our own machine on KVM.
    Microvm,
    /// QEMU's microvm machine.
    Qemu,
    /// Processes of the host's own kernel.
    Native,
}

impl SandboxerKind {
    /// The pod's containers run on the host's kernel: they can be given what is the host's, and nothing separates them
    /// from it but namespaces.
    #[must_use]
    pub fn shares_host(self) -> bool {
        match self {
            Self::Native => true,
            Self::Microvm | Self::Qemu => false,
        }
    }
}

/// How QEMU runs guest code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// KVM where its self-test passes, else TCG.
    #[default]
    Auto,
    /// Hardware virtualisation.
    Kvm,
    /// Software emulation; no security boundary.
    Tcg,
}

fn default_qemu() -> PathBuf {
    "qemu-system-x86_64".into()
}

fn default_vcpus() -> u32 {
    1
}

fn default_max_vcpus() -> u32 {
    4
}

fn default_memory_mib() -> u64 {
    256
}

impl RuntimeHandlerConfig {
    /// A handler of this kind with every option at its default.
    #[must_use]
    pub fn new(sandboxer: SandboxerKind) -> Self {
        Self {
            sandboxer,
            kernel: PathBuf::new(),
            initramfs: PathBuf::new(),
            accelerator: Accelerator::Auto,
            qemu: default_qemu(),
            vcpus: default_vcpus(),
            max_vcpus: default_max_vcpus(),
            memory_mib: default_memory_mib(),
            max_memory_mib: 0,
            deflate_on_oom: false,
            kernel_arguments: String::new(),
            debug_console: false,
            annotations: Vec::new(),
            disk_limit: RateLimit::default(),
            ingress_limit: RateLimit::default(),
            egress_limit: RateLimit::default(),
        }
    }

    /// What the devices of a VM may move.
    #[must_use]
    pub fn device_limits(&self) -> DeviceLimits {
        DeviceLimits { disk: self.disk_limit, ingress: self.ingress_limit, egress: self.egress_limit }
    }

    /// VMs of our own.
    #[must_use]
    pub fn microvm() -> Self {
        Self::new(SandboxerKind::Microvm)
    }

    /// VMs in QEMU.
    #[must_use]
    pub fn qemu() -> Self {
        Self::new(SandboxerKind::Qemu)
    }

    /// The handlers that stand when the file names none.
    #[must_use]
    pub fn defaults() -> [(String, Self); 3] {
        [
            (MICROVM.into(), Self::microvm()),
            (QEMU.into(), Self::qemu()),
            ("native".into(), Self::new(SandboxerKind::Native)),
        ]
    }

    /// Checks the values of handler `name`.
    ///
    /// # Errors
    /// The key, its value and what is possible.
    pub fn check(&self, name: &str) -> Result<(), String> {
        if self.vcpus == 0 || self.vcpus > 64 {
            return Err(format!("runtimes.{name}.vcpus is {}; 1 to 64 are possible", self.vcpus));
        }
        if self.max_vcpus > 64 {
            return Err(format!("runtimes.{name}.max_vcpus is {}; at most 64 are possible", self.max_vcpus));
        }
        if self.memory_mib < LEAST_GUEST_MIB {
            let (is, least) = (self.memory_mib, LEAST_GUEST_MIB);
            return Err(format!("runtimes.{name}.memory_mib is {is}; a guest needs at least {least}"));
        }
        self.check_limits(name)?;
        if self.max_memory_mib > 0 && self.sandboxer != SandboxerKind::Microvm {
            return Err(format!(
                "runtimes.{name}.max_memory_mib is {}; only machines of the sandboxer \"microvm\" have a balloon to grow by",
                self.max_memory_mib
            ));
        }
        if self.deflate_on_oom && self.sandboxer != SandboxerKind::Microvm {
            return Err(format!(
                "runtimes.{name}.deflate_on_oom is true; only machines of the sandboxer \"microvm\" have a balloon"
            ));
        }
        match self.annotations.iter().find(|annotation| !ANNOTATIONS.contains(&annotation.as_str())) {
            Some(unknown) => {
                Err(format!("runtimes.{name}.annotations has {unknown:?}; there are {}", ANNOTATIONS.join(", ")))
            }
            None => Ok(()),
        }
    }

    fn check_limits(&self, name: &str) -> Result<(), String> {
        let limits = [
            ("disk_limit", self.disk_limit, [SandboxerKind::Microvm, SandboxerKind::Qemu].as_slice()),
            ("ingress_limit", self.ingress_limit, &[SandboxerKind::Microvm]),
            ("egress_limit", self.egress_limit, &[SandboxerKind::Microvm]),
        ];
        for (key, limit, sandboxers) in limits {
            if limit != RateLimit::default() && !sandboxers.contains(&self.sandboxer) {
                return Err(format!(
                    "runtimes.{name}.{key} has no effect with sandboxer {:?}, whose pods move these bytes without a device of ours; remove it, or use the sandboxer \"microvm\"",
                    self.sandboxer
                ));
            }
            let pairs = [
                ("bytes", limit.bytes_per_second, limit.bytes_burst),
                ("operations", limit.operations_per_second, limit.operations_burst),
            ];
            for (unit, rate, burst) in pairs {
                if burst > 0 && rate == 0 {
                    return Err(format!("runtimes.{name}.{key} has {unit}_burst, but no {unit}_per_second"));
                }
                let least = rate.div_ceil(BURSTS_PER_SECOND);
                if burst > 0 && burst < least {
                    return Err(format!(
                        "runtimes.{name}.{key}.{unit}_burst is {burst}; with {unit}_per_second = {rate} it must be at least {least}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// The handler `name` as a pod with these annotations gets it.
    ///
    /// # Errors
    /// An annotation of ours that is unknown, not allowed by this handler, or has an impossible value.
    pub fn resolve(mut self, name: &str, annotations: &HashMap<String, String>) -> Result<Self, String> {
        for (key, value) in annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATION_PREFIX)) {
            if !ANNOTATIONS.contains(&key.as_str()) {
                return Err(format!("annotation {key} is not known; there are {}", ANNOTATIONS.join(", ")));
            }
            if !self.annotations.contains(key) {
                return Err(format!(
                    "annotation {key} is not allowed by runtime handler {name:?}; put it into annotations of [runtimes.{name}] to allow it"
                ));
            }
            let number = || format!("annotation {key} is {value:?}, which is no number");
            match key.as_str() {
                VCPUS => self.vcpus = value.parse().map_err(|_| number())?,
                MEMORY_MIB => self.memory_mib = value.parse().map_err(|_| number())?,
                _ => self.kernel_arguments.clone_from(value),
            }
        }
        self.check(name)?;
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(key: &str, value: &str) -> HashMap<String, String> {
        HashMap::from([(key.to_owned(), value.to_owned()), ("other.example/x".to_owned(), "y".to_owned())])
    }

    #[test]
    fn annotations_change_what_the_handler_allows() {
        let mut handler = RuntimeHandlerConfig::qemu();
        let refused = handler.clone().resolve("vm", &with(VCPUS, "2")).unwrap_err();
        assert!(refused.contains("not allowed") && refused.contains("[runtimes.vm]"), "{refused}");
        handler.annotations = vec![VCPUS.into(), MEMORY_MIB.into()];
        assert_eq!(handler.clone().resolve("vm", &with(VCPUS, "2")).unwrap().vcpus, 2);
        assert_eq!(handler.clone().resolve("vm", &with(MEMORY_MIB, "512")).unwrap().memory_mib, 512);
        for (key, value, words) in [
            (VCPUS, "many", "no number"),
            (VCPUS, "1000", "1 to 64"),
            (MEMORY_MIB, "1", "at least 96"),
            ("bulkhead.dev/mystery", "1", "not known"),
        ] {
            let text = handler.clone().resolve("vm", &with(key, value)).unwrap_err();
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn a_handler_allows_only_what_exists() {
        let handler = RuntimeHandlerConfig { max_memory_mib: 512, ..RuntimeHandlerConfig::qemu() };
        assert!(handler.check("vm").unwrap_err().contains("runtimes.vm.max_memory_mib is 512; only"));
        let handler = RuntimeHandlerConfig { deflate_on_oom: true, ..RuntimeHandlerConfig::qemu() };
        assert!(handler.check("vm").unwrap_err().contains("runtimes.vm.deflate_on_oom is true; only"));
        let handler = RuntimeHandlerConfig { annotations: vec!["x".into()], ..RuntimeHandlerConfig::qemu() };
        assert!(handler.check("vm").unwrap_err().contains("runtimes.vm.annotations has \"x\""));
    }

    #[test]
    fn limits_must_be_possible() {
        let limit = RateLimit { bytes_per_second: 1_000_000, bytes_burst: 10_000, ..RateLimit::default() };
        let good = RuntimeHandlerConfig { disk_limit: limit, egress_limit: limit, ..RuntimeHandlerConfig::microvm() };
        good.check("vm").unwrap();
        assert_eq!(good.device_limits().egress, limit);
        let burst = RateLimit { bytes_burst: 9_999, ..limit };
        let alone = RateLimit { operations_burst: 1, ..RateLimit::default() };
        for (handler, words) in [
            (RuntimeHandlerConfig { disk_limit: burst, ..good.clone() }, "must be at least 10000"),
            (RuntimeHandlerConfig { ingress_limit: alone, ..good.clone() }, "no operations_per_second"),
            (RuntimeHandlerConfig { ingress_limit: limit, ..RuntimeHandlerConfig::qemu() }, "no effect"),
            (RuntimeHandlerConfig { sandboxer: SandboxerKind::Native, ..good }, "no effect"),
        ] {
            let text = handler.check("vm").unwrap_err();
            assert!(text.contains(words) && text.contains("runtimes.vm."), "{text}");
        }
        RuntimeHandlerConfig { disk_limit: limit, ..RuntimeHandlerConfig::qemu() }.check("vm").unwrap();
    }
}
