//! What runs the guest's instructions: QEMU, a process of its own, or [`microvm`], a machine in this one.

pub mod microvm;
mod qemu;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use bulkhead_proto::launch::Launch;

pub use self::qemu::Machine;
use crate::sys;

/// The monitor does not start.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// A program.
    #[error("cannot start {what} {}: {source}", binary.display())]
    Spawn {
        /// QEMU or the agent.
        what: &'static str,
        /// Its path.
        binary: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Our own machine.
    #[error(transparent)]
    Machine(#[from] crate::kvm::MachineError),
    /// A file of the guest.
    #[error("cannot read the guest's {what} {}: {source}", path.display())]
    File {
        /// Kernel or initramfs.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Connections to the vhost-user backends; each listener has one of them in its backlog.
#[derive(Debug)]
pub struct Backends {
    /// The guest's sockets.
    pub vsock: UnixStream,
    /// The image drive.
    pub images: UnixStream,
    /// The scratch drive.
    pub scratch: Option<UnixStream>,
    /// The volumes.
    pub volumes: Option<UnixStream>,
}

/// A monitor that runs.
#[derive(Debug)]
pub struct Running {
    /// The process; this one is its parent.
    pub child: Child,
    /// When it was started.
    pub started: Instant,
}

/// Sees to it that the guest's files can be read, before anything is started.
///
/// # Errors
/// Names the file that cannot.
pub fn check_files(launch: &Launch) -> Result<(), MonitorError> {
    for (what, path) in [("kernel", &launch.kernel), ("initramfs", &launch.initramfs)] {
        std::fs::File::open(path).map_err(|source| MonitorError::File { what, path: path.clone(), source })?;
    }
    Ok(())
}

/// Starts QEMU. It inherits the taps and connections, and dies with the calling thread.
///
/// # Errors
/// When QEMU cannot be executed.
pub fn start_qemu(
    launch: &Launch,
    binary: &Path,
    accelerator: &str,
    taps: Vec<Vec<OwnedFd>>,
    backends: Backends,
) -> Result<Running, MonitorError> {
    let machine = Machine {
        name: &launch.sandbox_id,
        accelerator,
        kernel: &launch.kernel,
        initramfs: &launch.initramfs,
        kernel_arguments: &launch.kernel_arguments,
        vcpus: launch.vcpus,
        memory_mib: launch.memory_mib,
        taps: taps.iter().flatten().map(AsRawFd::as_raw_fd).collect(),
        vsock: backends.vsock.as_raw_fd(),
        images: backends.images.as_raw_fd(),
        scratch: backends.scratch.as_ref().map(AsRawFd::as_raw_fd),
        volumes: backends.volumes.as_ref().map(AsRawFd::as_raw_fd),
    };
    let mut command = Command::new(binary);
    command.args(machine.arguments()).env_clear().current_dir("/");
    let keyboard = if launch.debug_console { Stdio::piped() } else { Stdio::null() };
    command.stdin(keyboard).stdout(Stdio::piped()).stderr(Stdio::piped());
    let connections = [Some(backends.vsock), Some(backends.images), backends.scratch, backends.volumes];
    let keep = taps.into_iter().flatten().chain(connections.into_iter().flatten().map(OwnedFd::from)).collect();
    sys::bind_child(&mut command, keep);
    let started = Instant::now();
    let child =
        command.spawn().map_err(|source| MonitorError::Spawn { what: "QEMU", binary: binary.to_owned(), source })?;
    Ok(Running { child, started })
}
