//! Which monitor a runtime handler means on this host.

use std::path::PathBuf;
use std::time::Duration;

use bulkhead_proto::launch::Monitor;

use super::sizing::Size;
use crate::config::{Accelerator, Config, MICROVM, QEMU, RuntimeHandlerConfig, SandboxerKind};
use crate::sys::host::find_program;

/// What the host can do, found out once at start.
#[derive(Debug, Clone, Default)]
pub struct HostAbilities {
    /// The KVM self-test passed.
    pub kvm: bool,
    /// How long the self-test took.
    pub kvm_time: Duration,
    /// Why it did not; empty when it did.
    pub kvm_reason: String,
    /// Frequency of the time-stamp counter, which an emulated guest sees too.
    pub tsc_khz: Option<u64>,
    /// Why pods on the host's kernel cannot have users of their own; `None` when they can.
    pub no_user_namespaces: Option<String>,
}

/// What the guest's kernel is told so that it boots fast and with the CPUs it shall have: handler's arguments last.
#[must_use]
pub fn kernel_arguments(config: &RuntimeHandlerConfig, host: &HostAbilities, size: &Size) -> String {
    let mut arguments = Vec::new();
    if size.vcpus < size.max_vcpus {
        // The others are there, and go online when the agent is told so.
        arguments.push(format!("maxcpus={}", size.vcpus));
    }
    if emulates(config, host) {
        // Without it the kernel calibrates the counter against a slow emulated timer, and may distrust it for good.
        arguments.extend(host.tsc_khz.map(|khz| format!("tsc_early_khz={khz}")));
        if size.vcpus == 1 {
            // Patching the lock prefixes away costs an emulator its translated code.
            arguments.push("noreplace-smp".to_owned());
        }
    }
    if config.debug_console {
        arguments.push("bulkhead.debug_shell".to_owned());
    }
    arguments.push(config.kernel_arguments.clone());
    arguments.join(" ").trim().to_owned()
}

/// The handler of pods that name none.
#[must_use]
pub fn default_handler<'a>(config: &'a Config, host: &HostAbilities) -> &'a str {
    match config.daemon.default_runtime.as_str() {
        "" if config.runtimes.contains_key(MICROVM) && (host.kvm || !config.runtimes.contains_key(QEMU)) => MICROVM,
        "" => QEMU,
        named => named,
    }
}

/// Why a handler cannot run here.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum MonitorError {
    #[error(
        "runtime handler {handler:?} asks for KVM, which cannot run a stock guest on this host: {reason}; set accelerator = \"tcg\" in [runtimes.{handler}] to emulate (no security boundary)"
    )]
    NoKvm { handler: String, reason: String },
    #[error(
        "runtime handler {handler:?} runs machines on KVM, which cannot run a stock guest on this host: {reason}; use a handler with sandboxer = \"qemu\" to emulate (no security boundary)"
    )]
    NoMicrovm { handler: String, reason: String },
    #[error("runtime handler {handler:?} needs {}, which was not found; install it (Debian: apt-get install qemu-system-x86) or set qemu in [runtimes.{handler}]", binary.display())]
    NoQemu { handler: String, binary: PathBuf },
}

/// Whether a handler emulates the guest's CPU in software here.
#[must_use]
pub fn emulates(config: &RuntimeHandlerConfig, host: &HostAbilities) -> bool {
    match config.accelerator {
        _ if config.sandboxer != SandboxerKind::Qemu => false,
        Accelerator::Tcg => true,
        Accelerator::Kvm => false,
        Accelerator::Auto => !host.kvm,
    }
}

/// The monitor for a pod of `handler`.
pub fn choose(handler: &str, config: &RuntimeHandlerConfig, host: &HostAbilities) -> Result<Monitor, MonitorError> {
    if config.sandboxer == SandboxerKind::Microvm {
        return match host.kvm {
            true => Ok(Monitor::Microvm {}),
            false => Err(MonitorError::NoMicrovm { handler: handler.to_owned(), reason: host.kvm_reason.clone() }),
        };
    }
    let emulate = emulates(config, host);
    if !emulate && !host.kvm {
        return Err(MonitorError::NoKvm { handler: handler.to_owned(), reason: host.kvm_reason.clone() });
    }
    let binary = find_program(&config.qemu)
        .ok_or_else(|| MonitorError::NoQemu { handler: handler.to_owned(), binary: config.qemu.clone() })?;
    Ok(Monitor::Qemu { binary, accelerator: if emulate { "tcg" } else { "kvm" }.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(kvm: bool) -> HostAbilities {
        HostAbilities {
            kvm,
            kvm_time: Duration::ZERO,
            kvm_reason: "none".into(),
            tsc_khz: Some(2_000_000),
            ..Default::default()
        }
    }

    #[test]
    fn the_self_test_decides_unless_the_configuration_does() {
        let mut config = Config::default();
        for (name, handler) in [(MICROVM, RuntimeHandlerConfig::microvm()), (QEMU, RuntimeHandlerConfig::qemu())] {
            config.runtimes.insert(name.into(), handler);
        }
        assert_eq!(default_handler(&config, &host(true)), MICROVM);
        assert_eq!(default_handler(&config, &host(false)), QEMU);
        let refused = choose(MICROVM, &RuntimeHandlerConfig::microvm(), &host(false)).unwrap_err().to_string();
        assert!(refused.contains("cannot run a stock guest on this host: none"), "{refused}");
        assert!(matches!(choose(MICROVM, &RuntimeHandlerConfig::microvm(), &host(true)), Ok(Monitor::Microvm {})));
        config.daemon.default_runtime = "other".into();
        assert_eq!(default_handler(&config, &host(true)), "other");
    }

    #[test]
    fn only_emulated_guests_are_told_the_counters_frequency() {
        let mut config = RuntimeHandlerConfig { kernel_arguments: "debug".into(), ..RuntimeHandlerConfig::qemu() };
        let mut host = host(false);
        let mut size = Size { vcpus: 1, max_vcpus: 1, memory_mib: 256, max_memory_mib: 256 };
        assert_eq!(kernel_arguments(&config, &host, &size), "tsc_early_khz=2000000 noreplace-smp debug");
        size.max_vcpus = 2;
        assert_eq!(kernel_arguments(&config, &host, &size), "maxcpus=1 tsc_early_khz=2000000 noreplace-smp debug");
        config.debug_console = true;
        assert!(kernel_arguments(&config, &host, &size).contains(" bulkhead.debug_shell debug"));
        config.debug_console = false;
        size.vcpus = 2;
        assert_eq!(kernel_arguments(&config, &host, &size), "tsc_early_khz=2000000 debug");
        host.kvm = true;
        assert_eq!(kernel_arguments(&config, &host, &size), "debug");
        config.accelerator = Accelerator::Kvm;
        host.kvm = false;
        assert!(choose("q", &config, &host).unwrap_err().to_string().contains("no security boundary"));
    }
}
