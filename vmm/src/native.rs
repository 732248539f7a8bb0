//! A pod without a machine: the agent as a process of the host, beside this one.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bulkhead_proto::launch::{Launch, NativePod};

use crate::agent_link::{AgentLink, SocketLink};
use crate::console::{ConsoleFile, Words};
use crate::devices::block::ImageDrive;
use crate::monitor::{MonitorError, Running};
use crate::start::{Guest, StartError, Started, listen};
use crate::sys;

/// From the request to end until the agent has removed its containers.
pub const END_LIMIT: Duration = Duration::from_secs(15);

/// Starts the agent in the pod's network namespace.
///
/// # Errors
/// When a socket cannot be made or the agent cannot be executed; no process is left then.
pub fn start(launch: &Launch, pod: &NativePod) -> Result<Started, StartError> {
    let at = |step, path: &Path| {
        let path = path.to_owned();
        move |source| StartError::Path { step, path, source }
    };
    let console = ConsoleFile::open(&launch.console_file).map_err(at("open the log file", &launch.console_file))?;
    let control = listen(&launch.control_socket)?;
    let descriptors = listen(&launch.descriptor_socket)?;
    let netns = match &pod.netns {
        Some(path) => Some(File::open(path).map_err(at("open the network namespace", path))?.into()),
        None => None,
    };
    let (ours, theirs) = UnixStream::pair().map_err(|source| StartError::Device { device: "ready socket", source })?;
    let started = Instant::now();
    let child = spawn(launch, pod, netns, theirs.into()).map_err(|source| MonitorError::Spawn {
        what: "the agent",
        binary: pod.agent.clone(),
        source,
    })?;
    Ok(Started {
        guest: Guest::Process(Running { child, started }, Vec::new()),
        file_server: None,
        control,
        descriptors,
        agent: AgentLink::Socket(SocketLink::new(launch.vsock_socket.clone(), ours)),
        images: Arc::new(ImageDrive::new()),
        block_counters: Vec::new(),
        net_counters: Vec::new(),
        balloon: None,
        keyboard: None,
        console: Words::default(),
        console_file: Arc::new(Mutex::new(console)),
    })
}

fn spawn(launch: &Launch, pod: &NativePod, netns: Option<OwnedFd>, ready: OwnedFd) -> io::Result<Child> {
    let mut listen = std::ffi::OsString::from("unix:");
    listen.push(&launch.vsock_socket);
    let mut command = Command::new(&pod.agent);
    command.arg("--listen").arg(listen).arg("--ready").arg(ready.as_raw_fd().to_string());
    let paths: [(&str, &PathBuf); 3] = [("--state", &pod.state), ("--layers", &pod.layers), ("--cgroup", &pod.cgroup)];
    for (option, path) in paths {
        command.arg(option).arg(path);
    }
    command.env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    sys::bind_agent(&mut command, ready, netns);
    command.spawn()
}

/// Asks the agent to remove its containers and end.
pub fn ask_to_end(agent: &Child) {
    if let Some(pid) = i32::try_from(agent.id()).ok().and_then(rustix::process::Pid::from_raw) {
        // An agent that has ended needs no signal.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}

/// Kills whatever an agent left running; a cgroup that is gone is as it should be.
pub fn kill_containers(pod: &NativePod) {
    match std::fs::write(pod.cgroup.join("cgroup.kill"), "1") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::error!("cannot kill the containers in {}: {error}", pod.cgroup.display());
        }
        _ => {}
    }
}
