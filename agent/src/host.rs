//! The agent as an ordinary process of the host: the `native` sandboxer.
//!
//! The caller starts it in the pod's network namespace; everything else it isolates itself.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use bulkhead_proto::agent::ConfigureSandboxRequest;
use rustix::mount::MountPropagationFlags;
use thiserror::Error;
use tokio::net::UnixListener;
use tokio::sync::Notify;

use crate::container::cgroups::{CgroupError, PodCgroup};
use crate::container::launch::own_binary;
use crate::log::{info, warning};
use crate::reaper::{self, Reaper};
use crate::rpc::Service;
use crate::sandbox::{Parts, Platform, PlatformError, Sandbox, SandboxError};
use crate::{server, sys};

/// How the agent is told to be a process of the host.
pub const USAGE: &str = "usage: bulkhead-agent --listen unix:DIRECTORY --cgroup DIRECTORY [--volumes DIRECTORY] \
    [--layers DIRECTORY]\n\
    \n\
    --listen unix:DIRECTORY  makes DIRECTORY/agent.sock (ttrpc) and DIRECTORY/stdio.sock (process streams)\n\
    --cgroup DIRECTORY       the pod's cgroup v2, made when missing and removed at the end\n\
    --volumes DIRECTORY      what volume paths are relative to; / when left out\n\
    --layers DIRECTORY       where containers' writable layers go; DIRECTORY/layers of --listen when left out";

/// Why the agent ends at once.
#[derive(Debug, Error)]
enum HostError {
    #[error("{0}\n{USAGE}")]
    Usage(String),
    #[error("cannot {step}: {source}")]
    Io { step: String, source: io::Error },
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error("cannot serve: {0}")]
    Serve(#[from] ttrpc::Error),
}

fn at<E: Into<io::Error>>(step: impl Into<String>) -> impl FnOnce(E) -> HostError {
    move |source| HostError::Io { step: step.into(), source: source.into() }
}

#[derive(Debug, PartialEq, Eq)]
struct Options {
    listen: PathBuf,
    cgroup: PathBuf,
    volumes: PathBuf,
    layers: PathBuf,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let (mut listen, mut cgroup, mut volumes, mut layers) = (None, None, None, None);
        while let Some(name) = arguments.next() {
            let target = match name.as_str() {
                "--listen" => &mut listen,
                "--cgroup" => &mut cgroup,
                "--volumes" => &mut volumes,
                "--layers" => &mut layers,
                _ => return Err(format!("unknown argument {name:?}")),
            };
            *target = Some(arguments.next().ok_or_else(|| format!("{name} needs a value"))?);
        }
        let listen = listen.ok_or("--listen is missing")?;
        let listen = listen.strip_prefix("unix:").ok_or("--listen takes unix:DIRECTORY")?;
        let listen = PathBuf::from(listen);
        Ok(Self {
            cgroup: cgroup.ok_or("--cgroup is missing")?.into(),
            volumes: volumes.map_or_else(|| "/".into(), PathBuf::from),
            layers: layers.map_or_else(|| listen.join("layers"), PathBuf::from),
            listen,
        })
    }
}

/// A process of the host as what carries a pod: nothing to configure, no drives.
#[derive(Debug)]
struct Host {
    layers: PathBuf,
}

impl Platform for Host {
    fn configure(&self, request: &ConfigureSandboxRequest) -> Result<(), PlatformError> {
        if request.interfaces.is_empty() {
            return Ok(());
        }
        let why = "CNI has configured the network namespace that this agent runs in";
        Err(PlatformError {
            step: "configure interfaces".into(),
            source: io::Error::new(io::ErrorKind::Unsupported, why),
        })
    }

    fn image_drive(&self) -> Result<Option<String>, PlatformError> {
        Ok(None)
    }

    fn layers(&self, _: bool) -> Result<PathBuf, PlatformError> {
        let step = || format!("make {}", self.layers.display());
        fs::create_dir_all(&self.layers).map_err(|source| PlatformError { step: step(), source })?;
        Ok(self.layers.clone())
    }

    fn shut_down(&self) {}
}

/// Runs until it is shut down or terminated.
#[must_use]
pub fn main(arguments: impl Iterator<Item = String>) -> ExitCode {
    match Options::parse(arguments).map_err(HostError::Usage).and_then(|options| start(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bulkhead-agent: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(options: &Options) -> Result<(), HostError> {
    // Mounts made here must never be seen by the host, and end with this process whatever becomes of it.
    sys::unshare(libc::CLONE_NEWNS).map_err(at("make a mount namespace"))?;
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", slave).map_err(at("separate this process's mounts from the host's"))?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(at("become a reaper"))?;
    let state = options.listen.join("state");
    fs::create_dir_all(&state).map_err(at(format!("make {}", state.display())))?;
    let helper = protect_binary(&state)?;
    let cgroup = PodCgroup::create(&options.cgroup)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(at("start the runtime"))?;
    let result = runtime.block_on(run(options, state, helper, cgroup));
    runtime.shutdown_background();
    result
}

/// A container that reaches its helper through /proc must not be able to write to the agent's binary.
fn protect_binary(state: &Path) -> Result<PathBuf, HostError> {
    let binary = own_binary().map_err(at("find the agent's binary"))?;
    let copy = state.join("agent");
    fs::File::create(&copy).map_err(at(format!("make {}", copy.display())))?;
    let step = || format!("bind {} read-only", binary.display());
    rustix::mount::mount_bind(&binary, &copy).map_err(at(step()))?;
    let mount = rustix::fs::open(&copy, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).map_err(at(step()))?;
    let readonly = 1;
    sys::mount_setattr(std::os::fd::AsFd::as_fd(&mount), false, readonly, 0).map_err(at(step()))?;
    Ok(copy)
}

async fn run(options: &Options, state: PathBuf, helper: PathBuf, cgroup: PodCgroup) -> Result<(), HostError> {
    let started = server::since_boot_us();
    let reaper = Arc::new(Reaper::default());
    let child_signal = reaper::child_signal().map_err(at("watch for SIGCHLD"))?;
    tokio::spawn(Arc::clone(&reaper).run(child_signal));
    let sandbox = Arc::new(Sandbox::new(Parts {
        state: state.clone(),
        volumes: (options.volumes.clone(), None),
        helper,
        cgroup,
        reaper,
        platform: Box::new(Host { layers: options.layers.clone() }),
    })?);
    let stdio_path = options.listen.join("stdio.sock");
    let stdio = UnixListener::bind(&stdio_path).map_err(at(format!("listen on {}", stdio_path.display())))?;
    // Second, and moved into place: who sees it finds both sockets listening.
    let rpc_path = options.listen.join("agent.sock");
    let unfinished = options.listen.join("agent.sock.new");
    let rpc = UnixListener::bind(&unfinished).map_err(at(format!("listen on {}", rpc_path.display())))?;
    let shutdown = Arc::new(Notify::new());
    let boot_us = server::since_boot_us() - started;
    let service = Service { sandbox: Arc::clone(&sandbox), shutdown: Arc::clone(&shutdown), boot_us };
    let _server = server::serve_rpc(rpc.into(), service).await?;
    let stdio = Arc::new(stdio);
    tokio::spawn(server::serve_stdio(Arc::clone(&sandbox), move || {
        let stdio = Arc::clone(&stdio);
        async move { Ok(stdio.accept().await?.0) }
    }));
    fs::rename(&unfinished, &rpc_path).map_err(at(format!("make {}", rpc_path.display())))?;
    server::until_shutdown(shutdown).await.map_err(at("watch for SIGTERM"))?;
    info!("shutting down");
    let torn_down = tokio::task::spawn_blocking(move || sandbox.tear_down()).await;
    if let Err(error) = torn_down {
        warning!("shutting down: {error}");
    }
    clean_up(options, &state);
    Ok(())
}

/// Removes what this process has made; what it was given stays.
fn clean_up(options: &Options, state: &Path) {
    use rustix::mount::{UnmountFlags, unmount};
    // Lazily: this very process still runs from the mount.
    let _ = unmount(state.join("agent"), UnmountFlags::DETACH);
    let memory = fs::read_dir(state.join("memory")).into_iter().flatten().flatten();
    for mount in memory {
        let _ = unmount(mount.path(), UnmountFlags::DETACH);
    }
    let removed = fs::remove_dir_all(state)
        .and_then(|()| fs::remove_file(options.listen.join("agent.sock")))
        .and_then(|()| fs::remove_file(options.listen.join("stdio.sock")));
    if let Err(error) = removed {
        warning!("cannot remove the agent's own files: {error}");
    }
    // Gone already, or not empty because a layer could not be removed, which was told.
    let _ = fs::remove_dir(&options.layers);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(line.split_whitespace().map(String::from))
    }

    #[test]
    fn the_command_line_is_checked() {
        let options = parse("--listen unix:/run/x --cgroup /c").unwrap();
        assert_eq!((options.volumes, options.layers), ("/".into(), "/run/x/layers".into()));
        for (line, message) in [
            ("", "--listen is missing"),
            ("--listen /x --cgroup /c", "--listen takes unix:DIRECTORY"),
            ("--listen", "--listen needs a value"),
            ("--what", "unknown argument \"--what\""),
            ("--listen unix:/x", "--cgroup is missing"),
        ] {
            assert_eq!(parse(line).unwrap_err(), message);
        }
    }
}
