//! The whole life of a `bulkhead-vmm` process.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use crate::launch::{self, LaunchError};
use crate::start::{StartError, remove_sockets, start};
use crate::supervise::Supervisor;
use crate::sys;

/// Why the process ends without having carried a machine to its end.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The process itself.
    #[error("cannot prepare the process: {0}")]
    Prepare(io::Error),
    /// The daemon's message.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The machine.
    #[error(transparent)]
    Start(#[from] StartError),
    /// After the start.
    #[error("cannot look after the machine: {0}")]
    Supervise(io::Error),
}

/// Takes orders from standard input and carries them out. Errors have been told to the daemon already.
///
/// # Errors
/// When there is no machine, or it cannot be looked after.
pub fn run() -> Result<(), ProcessError> {
    let socket = prepare().map_err(ProcessError::Prepare)?;
    match begin(&socket) {
        Ok((runtime, supervisor)) => {
            launch::answer(socket, Ok(()));
            runtime.block_on(supervisor.run()).map_err(ProcessError::Supervise)
        }
        Err(error) => {
            launch::answer(socket, Err(&error.to_string()));
            Err(error)
        }
    }
}

fn begin(socket: &UnixStream) -> Result<(tokio::runtime::Runtime, Supervisor), ProcessError> {
    let orders = launch::receive(socket)?;
    let launch = orders.launch.clone();
    let started = start(orders)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let supervised = runtime.and_then(|runtime| {
        let supervisor = runtime.block_on(Supervisor::begin(launch.clone(), started))?;
        Ok((runtime, supervisor))
    });
    supervised.map_err(|error| {
        remove_sockets(&launch);
        ProcessError::Supervise(error)
    })
}

/// Leaves the daemon's session and takes the launch socket off standard input.
fn prepare() -> io::Result<UnixStream> {
    sys::close_from(3)?;
    // Fails for a leader of a process group, which is on its own then.
    let _ = rustix::process::setsid();
    sys::ignore_hangup()?;
    sys::use_little_memory();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    rustix::process::chdir("/")?;
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    nix::unistd::dup2_stdin(File::open("/dev/null")?)?;
    Ok(socket)
}
