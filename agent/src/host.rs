//! The agent as an ordinary process of the host: the `native` sandboxer.
//!
//! The caller starts it in the pod's network namespace; everything else it isolates itself.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use bulkhead_proto::agent::ConfigureSandboxRequest;
use rustix::mount::MountPropagationFlags;
use rustix::process::DumpableBehavior;
use thiserror::Error;
use tokio::net::UnixListener;
use tokio::sync::Notify;

use crate::container::cgroups::{CgroupError, PodCgroup};
use crate::container::launch::own_binary;
use crate::container::volumes::Share;
use crate::log::{info, warning};
use crate::reaper::{self, Reaper};
use crate::rpc::Service;
use crate::sandbox::{Parts, Platform, PlatformError, Sandbox, SandboxError};
use crate::{server, sys};

/// How the agent is told to be a process of the host.
pub const USAGE: &str = "usage: bulkhead-agent --listen unix:PATH --state DIRECTORY --cgroup DIRECTORY [--volumes DIRECTORY] \
    [--layers DIRECTORY] [--ready DESCRIPTOR]\n\
    \n\
    --listen unix:PATH    the socket that leads to the agent's ports\n\
    --state DIRECTORY     the agent's own files, made when missing and removed at the end\n\
    --cgroup DIRECTORY    the containers' cgroup v2, made when missing and removed at the end\n\
    --volumes DIRECTORY   what volume paths are relative to; / when left out\n\
    --layers DIRECTORY    where containers' writable layers go; DIRECTORY/layers of --state when left out\n\
    --ready DESCRIPTOR    an inherited descriptor that is written to when the socket listens";

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
    state: PathBuf,
    cgroup: PathBuf,
    volumes: PathBuf,
    layers: PathBuf,
    ready: Option<i32>,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let (mut listen, mut state, mut cgroup, mut volumes, mut layers) = (None, None, None, None, None);
        let mut ready = None;
        while let Some(name) = arguments.next() {
            let target = match name.as_str() {
                "--listen" => &mut listen,
                "--state" => &mut state,
                "--cgroup" => &mut cgroup,
                "--volumes" => &mut volumes,
                "--layers" => &mut layers,
                "--ready" => &mut ready,
                _ => return Err(format!("unknown argument {name:?}")),
            };
            *target = Some(arguments.next().ok_or_else(|| format!("{name} needs a value"))?);
        }
        let listen = listen.ok_or("--listen is missing")?;
        let listen = listen.strip_prefix("unix:").ok_or("--listen takes unix:PATH")?;
        let state = PathBuf::from(state.ok_or("--state is missing")?);
        let ready = ready.map(|number| number.parse().map_err(|_| format!("--ready {number:?} is no descriptor")));
        Ok(Self {
            listen: listen.into(),
            cgroup: cgroup.ok_or("--cgroup is missing")?.into(),
            volumes: volumes.map_or_else(|| "/".into(), PathBuf::from),
            layers: layers.map_or_else(|| state.join("layers"), PathBuf::from),
            ready: ready.transpose()?,
            state,
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
        private_directory(&self.layers).map_err(|source| PlatformError { step: step(), source })?;
        Ok(self.layers.clone())
    }

    fn shares_host(&self) -> bool {
        true
    }

    fn set_cpus(&self, _: u32) -> Result<u32, PlatformError> {
        let why = "this pod has no machine of its own: the host's CPUs are its";
        Err(PlatformError { step: "change the CPUs".into(), source: io::Error::new(io::ErrorKind::Unsupported, why) })
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
    // Containers with the host's processes in sight must not look into this one's memory and descriptors.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(at("become non-dumpable"))?;
    let ready = options.ready.map(sys::take_descriptor).transpose().map_err(at("take the --ready descriptor"))?;
    let host = fs::File::open("/proc/self/ns/mnt").map_err(at("open the host's mount namespace"))?;
    // Afterwards the kernel would name it from the host's root, which is another one where the daemon runs in a chroot.
    let binary = own_binary().map_err(at("find the agent's binary"))?;
    // Mounts made here must never be seen by the host, and end with this process whatever becomes of it.
    sys::unshare(libc::CLONE_NEWNS).map_err(at("make a mount namespace"))?;
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", slave).map_err(at("separate this process's mounts from the host's"))?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(at("become a reaper"))?;
    // What users of containers read (resolv.conf) is made in a directory that users of the host cannot enter.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    private_directory(&options.state).map_err(at(format!("make {}", options.state.display())))?;
    let helper = protect_binary(&binary, &options.state)?;
    drop_mounts(&[&options.state, &options.layers, &options.cgroup]).map_err(at("drop the host's mounts"))?;
    let cgroup = PodCgroup::create(&options.cgroup)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(at("start the runtime"))?;
    let result = runtime.block_on(run(options, helper, cgroup, host.into(), ready));
    runtime.shutdown_background();
    result
}

/// Takes the host's mounts out of this process's namespace, but for the kernel's own file systems, what the program itself
/// may be loaded from, and what `needed` paths lie on: a volume that the host unmounts must not live on in here.
fn drop_mounts(needed: &[&Path]) -> io::Result<()> {
    let points = droppable(&fs::read_to_string("/proc/self/mountinfo")?, needed);
    for point in points {
        // One that is gone with its parent, or was hidden below another, is none any more.
        let _ = rustix::mount::unmount(&point, rustix::mount::UnmountFlags::DETACH);
    }
    Ok(())
}

/// Mount points to be dropped, deepest first.
fn droppable(mountinfo: &str, needed: &[&Path]) -> Vec<PathBuf> {
    const KEPT: [&str; 6] = ["/proc", "/sys", "/dev", "/usr", "/lib", "/lib64"];
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(unescaped);
    let mut dropped: Vec<PathBuf> = points
        .filter(|point| !KEPT.iter().any(|kept| point.starts_with(kept)))
        .filter(|point| !needed.iter().any(|path| path.starts_with(point) || point.starts_with(path)))
        .collect();
    dropped.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    dropped
}

/// The kernel writes blanks, tabs, newlines and backslashes as `\\OOO`.
pub(crate) fn unescaped(field: &str) -> PathBuf {
    let codes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    codes.iter().fold(field.to_owned(), |text, (code, plain)| text.replace(code, plain)).into()
}

/// Makes a directory, and its parents, for this user alone: set-user-id files of images lie below.
fn private_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// A container that reaches its helper through /proc must not be able to write to the agent's binary.
fn protect_binary(binary: &Path, state: &Path) -> Result<PathBuf, HostError> {
    let copy = state.join("agent");
    fs::File::create(&copy).map_err(at(format!("make {}", copy.display())))?;
    let step = || format!("bind {} read-only", binary.display());
    rustix::mount::mount_bind(binary, &copy).map_err(at(step()))?;
    let mount = rustix::fs::open(&copy, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).map_err(at(step()))?;
    let readonly = 1;
    sys::mount_setattr(std::os::fd::AsFd::as_fd(&mount), false, readonly, 0).map_err(at(step()))?;
    Ok(copy)
}

async fn run(
    options: &Options,
    helper: PathBuf,
    cgroup: PodCgroup,
    host: OwnedFd,
    ready: Option<OwnedFd>,
) -> Result<(), HostError> {
    let started = server::since_boot_us();
    let reaper = Arc::new(Reaper::default());
    let child_signal = reaper::child_signal().map_err(at("watch for SIGCHLD"))?;
    tokio::spawn(Arc::clone(&reaper).run(child_signal));
    let sandbox = Arc::new(Sandbox::new(Parts {
        state: options.state.clone(),
        volumes: (options.volumes.clone(), Share::Host(Arc::new(host))),
        helper,
        cgroup,
        reaper,
        platform: Box::new(Host { layers: options.layers.clone() }),
    })?);
    let listener = UnixListener::bind(&options.listen);
    let listener = listener.map_err(at(format!("listen on {}", options.listen.display())))?;
    rustix::fs::chmod(&options.listen, rustix::fs::Mode::RWXU).map_err(at("protect the socket"))?;
    let shutdown = Arc::new(Notify::new());
    let boot_us = server::since_boot_us() - started;
    let service = Service { sandbox: Arc::clone(&sandbox), shutdown: Arc::clone(&shutdown), boot_us };
    let _server = server::serve_socket(listener, service).await?;
    if let Some(ready) = ready {
        rustix::io::write(&ready, b"ready\n").map_err(at("tell that the socket listens"))?;
    }
    server::until_shutdown(shutdown).await.map_err(at("watch for SIGTERM"))?;
    info!("shutting down");
    let torn_down = tokio::task::spawn_blocking(move || sandbox.tear_down()).await;
    if let Err(error) = torn_down {
        warning!("shutting down: {error}");
    }
    clean_up(options);
    Ok(())
}

/// Removes what this process has made; what it was given stays.
fn clean_up(options: &Options) {
    use rustix::mount::{UnmountFlags, unmount};
    let state = &options.state;
    // Lazily: this very process still runs from the mount.
    let _ = unmount(state.join("agent"), UnmountFlags::DETACH);
    let memory = fs::read_dir(state.join("memory")).into_iter().flatten().flatten();
    for mount in memory {
        let _ = unmount(mount.path(), UnmountFlags::DETACH);
    }
    // Gone already, or not empty because a layer could not be removed, which was told.
    let _ = fs::remove_dir(&options.layers);
    if let Err(error) = fs::remove_dir_all(state).and_then(|()| fs::remove_file(&options.listen)) {
        warning!("cannot remove the agent's own files: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(line.split_whitespace().map(String::from))
    }

    #[test]
    fn only_mounts_that_nobody_needs_are_dropped() {
        let table = "1 0 8:1 / / rw - ext4 x rw\n2 1 0:5 / /proc rw - proc x rw\n3 1 0:6 / /run rw - tmpfs x rw\n\
                     4 1 0:7 / /mnt rw - ext4 x rw\n5 4 0:8 / /mnt/a\\040b rw - ext4 x rw\n\
                     6 3 0:9 / /run/x/state/agent rw - ext4 x rw\n7 1 0:6 / /runs rw - tmpfs x rw\n";
        let state = Path::new("/run/x/state");
        assert_eq!(
            droppable(table, &[state]),
            [PathBuf::from("/mnt/a b"), PathBuf::from("/mnt"), PathBuf::from("/runs")]
        );
    }

    #[test]
    fn the_command_line_is_checked() {
        let options = parse("--listen unix:/run/x.sock --state /run/x --cgroup /c").unwrap();
        assert_eq!((options.volumes, options.layers), ("/".into(), "/run/x/layers".into()));
        for (line, message) in [
            ("", "--listen is missing"),
            ("--listen /x --state /s --cgroup /c", "--listen takes unix:PATH"),
            ("--listen", "--listen needs a value"),
            ("--what", "unknown argument \"--what\""),
            ("--listen unix:/x --state /s", "--cgroup is missing"),
            ("--listen unix:/x --cgroup /c", "--state is missing"),
            ("--listen unix:/x --state /s --cgroup /c --ready x", "--ready \"x\" is no descriptor"),
        ] {
            assert_eq!(parse(line).unwrap_err(), message);
        }
    }
}
