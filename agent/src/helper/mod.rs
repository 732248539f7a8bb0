//! The single-threaded side of making processes: this binary, exec'd anew by the agent.
//!
//! ```text
//! agent --spec+descriptors--> A (joins namespaces, forks into the cgroup) --Child(pid)--> agent --byte--> A ends
//!                             B (mounts, users, terminal) --Ready--> agent --byte (Start)--> B execs
//! ```
//! The control socket closes on exec: its end means success, a last `Failed` says why not.

mod capabilities;
mod command;
mod container;
mod devices;
mod hidden;
mod mounts;
mod paths;
mod pause;
pub mod spec;
mod terminal;
mod user_namespace;
pub mod users;
pub mod wire;

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use thiserror::Error;

pub use self::devices::STANDARD as STANDARD_DEVICES;
pub use self::mounts::detached as detached_mount;
pub use self::paths::{Root, clean};
use self::spec::{ExecSpec, Fd, Join, Reply, Spec};
use crate::sys::{self, Fork};

/// `argv[1]` of every helper.
pub const ARGUMENT: &str = "set-up-helper";

/// Why a helper gives up; its text goes to whoever asked for the container.
#[derive(Debug, Error)]
pub enum HelperError {
    /// A step failed.
    #[error("cannot {step}: {source}")]
    Step {
        /// What, on what.
        step: String,
        /// Why.
        source: io::Error,
    },
    /// A demand that cannot be met.
    #[error("{0}")]
    Refused(String),
    /// The specification names a descriptor that did not come.
    #[error("descriptor {0} is missing from the specification")]
    MissingDescriptor(Fd),
}

/// Names the step that an I/O error interrupted.
pub(crate) fn at<E: Into<io::Error>>(step: impl Into<String>) -> impl FnOnce(E) -> HelperError {
    move |source| HelperError::Step { step: step.into(), source: source.into() }
}

/// The descriptors that came with a specification.
#[derive(Debug)]
struct Descriptors(Vec<OwnedFd>);

impl Descriptors {
    fn get(&self, index: Fd) -> Result<BorrowedFd<'_>, HelperError> {
        self.0.get(index).map(AsFd::as_fd).ok_or(HelperError::MissingDescriptor(index))
    }
}

/// Runs as a helper; its control socket is standard input.
#[must_use]
pub fn main() -> ExitCode {
    // Until its exec this process has the agent's descriptors, which nobody may reach through /proc.
    if let Err(error) = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable) {
        crate::log::warning!("helper cannot become non-dumpable: {error}");
        return ExitCode::FAILURE;
    }
    let control = match take_control_socket() {
        Ok(control) => control,
        Err(error) => {
            crate::log::warning!("helper has no control socket: {error}");
            return ExitCode::FAILURE;
        }
    };
    let Err(error) = run(&control) else { return ExitCode::SUCCESS };
    let failed = Reply::Failed { message: error.to_string() };
    // With the agent gone nobody is left to tell.
    let _ = wire::send(&control, &failed, &[]);
    ExitCode::from(127)
}

fn take_control_socket() -> io::Result<UnixStream> {
    let control = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(control.into())
}

fn run(control: &UnixStream) -> Result<(), HelperError> {
    let received = wire::receive::<Spec>(control).map_err(at("read the specification"))?;
    let Some((spec, fds)) = received else { return Ok(()) };
    let fds = Descriptors(fds);
    match spec {
        Spec::Container(spec) => container::run(control, &spec, fds),
        Spec::Exec(spec) => exec(control, &spec, fds),
        Spec::Pause(spec) => pause::run(control, &spec, fds),
    }
}

fn exec(control: &UnixStream, spec: &ExecSpec, fds: Descriptors) -> Result<(), HelperError> {
    let mut warnings = Vec::new();
    command::set_oom_score(&spec.process, &mut warnings)?;
    let entry = Entry { cgroup: spec.cgroup, join: &spec.join, unshare: 0 };
    if spec.join.iter().any(|join| join.namespaces & libc::CLONE_NEWUSER != 0) {
        user_namespace::join(&entry, &fds)?;
        user_namespace::become_root()?;
        go_on_in_child(control, None, &spec.join, &fds)?;
    } else {
        enter_and_fork(control, &entry, &fds)?;
    }
    let prepared = command::prepare(&spec.process, &fds, &mut warnings)?;
    // The container says what lies at the paths that are followed from here on, and /proc/self/fd would lead out of it.
    drop(fds);
    command::report_and_start(control, &spec.process, prepared, warnings)
}

/// Where the second stage is.
struct Entry<'a> {
    cgroup: Fd,
    join: &'a [Join],
    unshare: libc::c_int,
}

/// Joins namespaces, then goes on in a child in the cgroup; the first process never returns from here.
fn enter_and_fork(control: &UnixStream, entry: &Entry<'_>, fds: &Descriptors) -> Result<(), HelperError> {
    join(entry.join, !libc::CLONE_NEWCGROUP, fds)?;
    sys::unshare(entry.unshare).map_err(at("make namespaces"))?;
    go_on_in_child(control, Some(fds.get(entry.cgroup)?), entry.join, fds)
}

/// Goes on in a child in `cgroup`, or in the one that this process is in; the first process never returns from here.
fn go_on_in_child(
    control: &UnixStream,
    cgroup: Option<BorrowedFd<'_>>,
    joins: &[Join],
    fds: &Descriptors,
) -> Result<(), HelperError> {
    let (gate_reader, gate_writer) = io::pipe().map_err(at("make a pipe"))?;
    match sys::fork(cgroup).map_err(at("fork into the container's cgroup"))? {
        Fork::Parent(pid) => {
            let told = wire::send(control, &Reply::Child(pid), &[]);
            // The child's exit must find its entry in the agent's table, so it may not be orphaned before.
            if told.is_ok() {
                let _ = (&mut &*control).read(&mut [0]);
            }
            drop(gate_writer);
            std::process::exit(0);
        }
        Fork::Child => {
            drop(gate_writer);
            // Until the first process has taken its byte, both would read from one socket.
            let _ = (&gate_reader).read(&mut [0]).map_err(at("wait for the first stage"))?;
            // Only now: from inside it, the cgroup that this process comes from would not exist.
            join(joins, libc::CLONE_NEWCGROUP, fds)?;
            rustix::process::setsid().map_err(at("start a session"))?;
            // What a process of another container, or of the host, put into its keyring is nobody else's.
            sys::new_session_keyring().map_err(at("make a session keyring"))
        }
    }
}

/// Enters those of the namespaces that are among `kinds`.
fn join(joins: &[Join], kinds: libc::c_int, fds: &Descriptors) -> Result<(), HelperError> {
    for join in joins.iter().filter(|join| join.namespaces & kinds != 0) {
        let namespaces = ThreadNameSpaceType::from_bits_retain((join.namespaces & kinds).cast_unsigned());
        move_into_thread_name_spaces(fds.get(join.pidfd)?, namespaces).map_err(at("enter the pod's namespaces"))?;
    }
    Ok(())
}

/// Waits for the agent's word; false when it is gone instead.
fn wait_for_start(mut control: &UnixStream) -> Result<bool, HelperError> {
    Ok(control.read(&mut [0]).map_err(at("wait for the start"))? == 1)
}

/// Writes a setting below /proc or /sys.
fn write_setting(path: &str, value: &str) -> io::Result<()> {
    std::fs::OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}
