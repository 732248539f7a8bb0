//! The whole life of a `bulkhead-vmm` process.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::jail;
use crate::launch::{self, LaunchError};
use crate::start::{StartError, remove_sockets, start};
use crate::supervise::Supervisor;
use crate::sys::{self, Fork};

/// What still goes on after the exit record has this long.
const LEFTOVERS_LIMIT: Duration = Duration::from_secs(1);

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
            let ended = runtime.block_on(supervisor.run());
            // Readers of a dead guest's bytes may take their time; nobody waits for this process that long.
            runtime.shutdown_timeout(LEFTOVERS_LIMIT);
            ended.map_err(ProcessError::Supervise)
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
    if launch.jail.is_some() || orders.cgroup.is_some() {
        let cgroup = orders.cgroup.as_ref().map(AsFd::as_fd);
        go_on_in_child(socket, launch.jail.is_some(), cgroup).map_err(ProcessError::Prepare)?;
    }
    let started = start(orders)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let supervised = runtime.and_then(|runtime| {
        let supervisor = runtime.block_on(Supervisor::begin(launch.clone(), started))?;
        Ok((runtime, supervisor))
    });
    let going = supervised.map_err(ProcessError::Supervise).and_then(|(runtime, mut supervisor)| {
        // Under our own machine everything is open by now, and there is no thread but this one.
        supervisor.go()?;
        Ok((runtime, supervisor))
    });
    going.inspect_err(|_| remove_sockets(&launch))
}

/// Returns in the child. A PID namespace holds only children, and KVM ties a machine to the process that made it.
fn go_on_in_child(socket: &UnixStream, jailed: bool, cgroup: Option<BorrowedFd<'_>>) -> io::Result<()> {
    match jail::go_on_in_child(jailed, cgroup)? {
        Fork::Child => Ok(()),
        Fork::Parent(child) => {
            launch::announce(socket, child);
            std::process::exit(0)
        }
    }
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
