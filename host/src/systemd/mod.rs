//! The host's service manager as the owner of cgroups: a pod's is a transient scope in the slice that the kubelet made.
//!
//! systemd demands that nobody else writes above what it delegates (systemd.io/CGROUP_DELEGATION). So the scope is
//! asked for with `Delegate=`, and only what is below it is made here.

pub mod connection;
pub mod message;
mod slice;

use std::path::Path;
use std::time::{Duration, Instant};

use connection::Connection;
pub use connection::ConnectionError;
use message::{Body, Call, Kind, Variant};
pub use slice::Slice;

/// Where systemd listens for root.
pub const SOCKET: &str = "/run/systemd/private";
/// Longest wait for an answer, and for a job's end.
const LIMIT: Duration = Duration::from_secs(30);
const MANAGER: Call<'_> = Call {
    destination: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
    member: "",
    signature: "",
};

/// Why systemd did not do it.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// No conversation.
    #[error(
        "cannot reach systemd at {SOCKET} (cgroup_driver is \"systemd\", which needs it as the host's first process)"
    )]
    Unreachable(#[source] ConnectionError),
    /// A call that failed.
    #[error("cannot start {unit}")]
    Start {
        /// The scope.
        unit: String,
        /// Why.
        source: ConnectionError,
    },
    /// A job with another result than "done".
    #[error("systemd did not start {unit}: the job's result is {result:?}; see `systemctl status {unit}`")]
    Job {
        /// The scope.
        unit: String,
        /// systemd's word for it.
        result: String,
    },
}

/// Whether there is a service manager that listens. Blocking.
///
/// # Errors
/// Why not.
pub fn check() -> Result<(), SystemdError> {
    Connection::open(Path::new(SOCKET), LIMIT).map(drop).map_err(SystemdError::Unreachable)
}

/// Makes the scope `unit` in `slice` with one process in it, and waits until that process is there. Blocking. The scope
/// ends with its last process.
///
/// # Errors
/// When systemd refuses, or the process has ended.
pub fn start_scope(unit: &str, slice: &Slice, description: &str, pid: u32) -> Result<(), SystemdError> {
    let mut connection = Connection::open(Path::new(SOCKET), LIMIT).map_err(SystemdError::Unreachable)?;
    let failed = |source| SystemdError::Start { unit: unit.to_owned(), source };
    let call = Call { member: "StartTransientUnit", signature: "ssa(sv)a(sa(sv))", ..MANAGER };
    connection.call(&call, &scope(unit, slice, description, pid)).map_err(failed)?;
    let until = Instant::now() + LIMIT;
    while Instant::now() < until {
        let signal = connection.signal().map_err(failed)?;
        if signal.kind != Kind::Signal("JobRemoved".to_owned()) {
            continue;
        }
        // The job's object, the unit, the result.
        match signal.texts().map_err(|error| failed(error.into()))?.as_slice() {
            [_, of, result] if of == unit && result == "done" => return Ok(()),
            [_, of, result] if of == unit => {
                return Err(SystemdError::Job { unit: unit.to_owned(), result: result.clone() });
            }
            _ => {}
        }
    }
    Err(SystemdError::Job { unit: unit.to_owned(), result: format!("none within {} s", LIMIT.as_secs()) })
}

/// Arguments of StartTransientUnit (org.freedesktop.systemd1(5)).
fn scope(unit: &str, slice: &Slice, description: &str, pid: u32) -> Body {
    let mut body = Body::default();
    body.text(unit);
    body.text("fail");
    body.properties(&[
        ("Description", Variant::Text(description)),
        ("Slice", Variant::Text(slice.name())),
        ("Delegate", Variant::Bool(true)),
        // The kubelet ends pods when the host shuts down.
        ("DefaultDependencies", Variant::Bool(false)),
        ("CollectMode", Variant::Text("inactive-or-failed")),
        ("PIDs", Variant::Numbers(&[pid])),
    ]);
    body.array(8, |_| {});
    body
}
