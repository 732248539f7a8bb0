//! The jail around a process that parses what a guest controls.
//!
//! ```text
//! bulkhead-vmm, root, one thread
//!   | go_on_in_child: in its cgroup and a PID namespace, and the first process ends
//!   | sockets, files, /dev/kvm, guest memory, the file server: everything that takes a path or a right
//!   | enter: namespaces, empty root, own uid, no capabilities, rlimits, Landlock
//!   | threads are started; each calls enter_thread(role) first, the main thread last
//!   v seccomp
//! the guest runs
//! ```
//!
//! docs/threat-model.md lists what each wall is for; tests/jail.rs tries every one from inside.

mod identity;
mod landlock;
mod namespaces;
mod plan;
mod rlimits;
mod root;
mod seccomp;
mod starter;

use std::sync::OnceLock;

pub use self::landlock::LandlockState;
pub use self::namespaces::go_on_in_child;
pub use self::plan::{JailError, Plan, Report};
use self::seccomp::Filters;
pub use self::seccomp::Role;
pub use self::starter::spawn;

static FILTERS: OnceLock<Filters> = OnceLock::new();

/// Closes every wall but seccomp around this process, which must have one thread only and keep none of its rights. From
/// now on [`enter_thread`] restricts the threads that call it.
///
/// # Errors
/// Names the wall that could not be closed. The process is then neither free nor jailed, and must end.
pub fn enter(plan: &Plan) -> Result<Report, JailError> {
    // Credentials are a thread's own: another one would stay free.
    plan::step("make sure that there is one thread", crate::sys::forget_backtraces())?;
    // One arena: those of threads look into /proc when they shrink.
    crate::sys::use_little_memory();
    let filters = Filters::compile()?;
    namespaces::enter()?;
    root::enter()?;
    rlimits::apply(plan)?;
    identity::take(plan)?;
    let landlock = landlock::restrict()?;
    FILTERS.set(filters).map_err(|_| JailError::Twice)?;
    plan::step("start a thread that starts threads", starter::begin())?;
    Ok(Report { landlock })
}

/// Whether this process is in a jail: what takes a path or a signal to another process will fail.
#[must_use]
pub fn is_jailed() -> bool {
    FILTERS.get().is_some()
}

/// Restricts the calling thread, and every thread that it starts, to the system calls of its role. Does nothing in a
/// process without a jail. A thread that cannot be restricted ends the process.
pub fn enter_thread(role: Role) {
    let Some(filters) = FILTERS.get() else { return };
    if let Err(error) = filters.apply(role) {
        tracing::error!("cannot restrict the system calls of a thread ({role:?}): {error}");
        std::process::abort();
    }
}
