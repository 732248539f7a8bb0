//! Which monitor a runtime handler means on this host.

use std::path::PathBuf;

use bulkhead_proto::launch::Monitor;

use crate::sys::host::find_program;
use crate::config::{Accelerator, RuntimeHandlerConfig, SandboxerKind};

/// What the host can do, found out once at start.
#[derive(Debug, Clone)]
pub struct HostAbilities {
    /// The KVM self-test passed.
    pub kvm: bool,
    /// Why it did not; empty when it did.
    pub kvm_reason: String,
}

/// Why a handler cannot run here.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum MonitorError {
    #[error("runtime handler {handler:?} asks for KVM, which cannot run a stock guest on this host: {reason}; set accelerator = \"tcg\" in [runtimes.{handler}] to emulate (no security boundary)")]
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
