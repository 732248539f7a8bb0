//! Which monitor a runtime handler means on this host.

use std::path::PathBuf;

use bulkhead_proto::launch::Monitor;

use crate::config::{Accelerator, RuntimeHandlerConfig, SandboxerKind};
use crate::sys::host::find_program;

/// What the host can do, found out once at start.
#[derive(Debug, Clone)]
pub struct HostAbilities {
    /// The KVM self-test passed.
    pub kvm: bool,
    /// Why it did not; empty when it did.
    pub kvm_reason: String,
    /// Frequency of the time-stamp counter, which an emulated guest sees too.
    pub tsc_khz: Option<u64>,
}

/// What the guest's kernel is told so that it boots fast: handler's arguments last.
#[must_use]
pub fn kernel_arguments(config: &RuntimeHandlerConfig, host: &HostAbilities) -> String {
    let mut arguments = Vec::new();
    if emulates(config, host) {
        // Without it the kernel calibrates the counter against a slow emulated timer, and may distrust it for good.
        arguments.extend(host.tsc_khz.map(|khz| format!("tsc_early_khz={khz}")));
        if config.vcpus == 1 {
            // Patching the lock prefixes away costs an emulator its translated code.
            arguments.push("noreplace-smp".to_owned());
        }
    }
    arguments.push(config.kernel_arguments.clone());
    arguments.join(" ").trim().to_owned()
}

/// Why a handler cannot run here.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum MonitorError {
    #[error(
        "runtime handler {handler:?} asks for KVM, which cannot run a stock guest on this host: {reason}; set accelerator = \"tcg\" in [runtimes.{handler}] to emulate (no security boundary)"
    )]
    NoKvm { handler: String, reason: String },
    #[error("runtime handler {handler:?} needs {}, which was not found; install it (Debian: apt-get install qemu-system-x86) or set qemu in [runtimes.{handler}]", binary.display())]
    NoQemu { handler: String, binary: PathBuf },
}

/// Whether a handler emulates the guest's CPU in software here.
#[must_use]
pub fn emulates(config: &RuntimeHandlerConfig, host: &HostAbilities) -> bool {
    match config.accelerator {
        Accelerator::Tcg => true,
        Accelerator::Kvm => false,
        Accelerator::Auto => !host.kvm,
    }
}

/// The monitor for a pod of `handler`.
pub fn choose(handler: &str, config: &RuntimeHandlerConfig, host: &HostAbilities) -> Result<Monitor, MonitorError> {
    let SandboxerKind::Qemu = config.sandboxer;
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

    #[test]
    fn only_emulated_guests_are_told_the_counters_frequency() {
        let mut config = RuntimeHandlerConfig { kernel_arguments: "debug".into(), ..RuntimeHandlerConfig::qemu() };
        let mut host = HostAbilities { kvm: false, kvm_reason: "none".into(), tsc_khz: Some(2_000_000) };
        assert_eq!(kernel_arguments(&config, &host), "tsc_early_khz=2000000 noreplace-smp debug");
        config.vcpus = 2;
        assert_eq!(kernel_arguments(&config, &host), "tsc_early_khz=2000000 debug");
        host.kvm = true;
        assert_eq!(kernel_arguments(&config, &host), "debug");
        config.accelerator = Accelerator::Kvm;
        host.kvm = false;
        assert!(choose("q", &config, &host).unwrap_err().to_string().contains("no security boundary"));
    }
}
