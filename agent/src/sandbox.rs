//! The pod: what its containers share.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bulkhead_proto::agent::ConfigureSandboxRequest;
use thiserror::Error;

use crate::container::cgroups::{CgroupError, PodCgroup};
use crate::container::images::Images;
use crate::container::launch::{LaunchError, Launcher};
use crate::container::pause::Pause;
use crate::container::process::Process;
use crate::container::user_namespace::UserNamespace;
use crate::container::volumes::{Share, Tree, VolumeError, Volumes, tree_of};
use crate::container::{Container, ContainerError};
use crate::helper::spec::PauseSpec;
use crate::reaper::Reaper;

/// Size of /dev/shm when nothing else is asked for.
const DEFAULT_SHM: u64 = 64 << 20;
/// What containers have of their pod, unless it shares them with the agent.
const POD_NAMESPACES: i32 = libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
/// Leaf below the pod's cgroup; no container can have this id.
const PAUSE_CGROUP: &str = ".pause";

/// Why the pod cannot be prepared.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// A second ConfigureSandbox.
    #[error("the sandbox is configured already")]
    Configured,
    /// A demand that makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// A setting was refused.
    #[error("cannot {step}: {source}")]
    Io {
        /// What, on what.
        step: String,
        /// Why.
        source: io::Error,
    },
    /// The namespaces' holder.
    #[error("cannot make the pod's namespaces: {0}")]
    Pause(#[source] LaunchError),
    /// Its cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// What carries the pod: its drives or its network.
    #[error(transparent)]
    Platform(#[from] PlatformError),
}

/// Why the machine, or what stands in for it, refuses.
#[derive(Debug, Error)]
#[error("cannot {step}: {source}")]
pub struct PlatformError {
    /// What, on what.
    pub step: String,
    /// Why.
    pub source: io::Error,
}

/// What differs between a guest and a process of the host.
pub trait Platform: std::fmt::Debug + Send + Sync {
    /// Configures hostname and network of a guest.
    ///
    /// # Errors
    /// What the kernel refused.
    fn configure(&self, request: &ConfigureSandboxRequest) -> Result<(), PlatformError>;
    /// The image drive as "MAJOR:MINOR", if there is one.
    ///
    /// # Errors
    /// When it should be there and is not.
    fn image_drive(&self) -> Result<Option<String>, PlatformError>;
    /// The directory for writable layers; the scratch drive is mounted at the first call.
    ///
    /// # Errors
    /// When it cannot be mounted.
    fn layers(&self, has_scratch_drive: bool) -> Result<PathBuf, PlatformError>;
    /// Containers run on the host's kernel: what keeps them from the host must hold or be refused.
    fn shares_host(&self) -> bool;
    /// Takes CPUs online or offline; gives how many there are then.
    ///
    /// # Errors
    /// When the machine has fewer, or is not the agent's to change.
    fn set_cpus(&self, online: u32) -> Result<u32, PlatformError>;
    /// Ends it all, after the containers were killed.
    fn shut_down(&self);
}

/// Directories of the agent.
#[derive(Debug, Clone)]
pub struct Places {
    /// Empty, for containers' roots.
    pub attach_point: PathBuf,
    /// resolv.conf, hosts, hostname.
    pub files: PathBuf,
}

#[derive(Debug, Default)]
struct Settings {
    configured: bool,
    hostname: String,
    shm_size: u64,
    has_scratch_drive: bool,
    /// `CLONE_NEW*` flags of what the containers share with the agent instead of having it for the pod.
    shared: i32,
    /// Settings of the IPC namespace, which its holder writes.
    ipc_sysctls: Vec<(String, String)>,
}

/// The pod.
#[derive(Debug)]
pub struct Sandbox {
    /// Directories.
    pub places: Places,
    /// Parent of the containers' cgroups.
    pub cgroup: PodCgroup,
    /// Starts processes.
    pub launcher: Launcher,
    /// Mounted images.
    pub images: Images,
    /// Sources of mounts.
    pub volumes: Volumes,
    /// What carries the pod.
    pub platform: Box<dyn Platform>,
    settings: Mutex<Settings>,
    containers: Mutex<HashMap<String, Arc<Container>>>,
    pause: Mutex<Option<Arc<Pause>>>,
    users: OnceLock<UserNamespace>,
}

/// What a sandbox is made of.
#[derive(Debug)]
pub struct Parts {
    /// The agent's own directory, on a memory file system.
    pub state: PathBuf,
    /// See [`Volumes::new`].
    pub volumes: (PathBuf, Share),
    /// The program that helpers are started from.
    pub helper: PathBuf,
    /// The pod's cgroup.
    pub cgroup: PodCgroup,
    /// Where children are reaped.
    pub reaper: Arc<Reaper>,
    /// What carries the pod.
    pub platform: Box<dyn Platform>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn at(step: impl Into<String>) -> impl FnOnce(io::Error) -> SandboxError {
    move |source| SandboxError::Io { step: step.into(), source }
}

impl Sandbox {
    /// A pod without containers.
    ///
    /// # Errors
    /// When its directories cannot be made.
    pub fn new(parts: Parts) -> Result<Self, SandboxError> {
        let state = parts.state;
        let places = Places { attach_point: state.join("root"), files: state.join("files") };
        for directory in [&places.attach_point, &places.files] {
            fs::create_dir_all(directory).map_err(at(format!("make {}", directory.display())))?;
        }
        let (directory, share) = parts.volumes;
        Ok(Self {
            places,
            cgroup: parts.cgroup,
            launcher: Launcher::new(&parts.helper, parts.reaper),
            images: Images::new(state.join("images"), share.host()),
            volumes: Volumes::new(directory, share, state.join("memory")),
            platform: parts.platform,
            settings: Mutex::default(),
            containers: Mutex::default(),
            pause: Mutex::default(),
            users: OnceLock::new(),
        })
    }

    /// Names, files, network and settings. Blocking.
    ///
    /// # Errors
    /// What was refused; a failed pod is thrown away, so nothing is undone.
    pub fn configure(&self, request: &ConfigureSandboxRequest) -> Result<(), SandboxError> {
        let ipc_sysctls = {
            let mut settings = lock(&self.settings);
            if settings.configured {
                return Err(SandboxError::Configured);
            }
            settings.configured = true;
            settings.hostname.clone_from(&request.hostname);
            settings.shm_size = request.shm_size_bytes;
            settings.has_scratch_drive = request.has_scratch_drive;
            let shares = |asked, namespace| if asked { namespace } else { 0 };
            settings.shared =
                shares(request.host_ipc, libc::CLONE_NEWIPC) | shares(request.host_uts, libc::CLONE_NEWUTS);
            settings.ipc_sysctls = request
                .sysctls
                .iter()
                .map(|(name, value)| (name.replace('.', "/"), value.clone()))
                .filter(|(path, _)| is_ipc(path))
                .collect();
            settings.ipc_sysctls.clone()
        };
        if let Some(ranges) = request.user_namespace.as_ref() {
            let users = UserNamespace::of_network(ranges).map_err(at("use the pod's user namespace"))?;
            self.users.get_or_init(|| users);
        }
        let hostname_line = format!("{}\n", request.hostname);
        let files =
            [("resolv.conf", &request.resolv_conf), ("hosts", &request.etc_hosts), ("hostname", &hostname_line)];
        for (name, content) in files.into_iter().filter(|(_, content)| !content.trim().is_empty()) {
            let path = self.places.files.join(name);
            let file = fs::File::create(&path).and_then(|mut file| file.write_all(content.as_bytes()).map(|()| file));
            let file = file.map_err(at(format!("write {}", path.display())))?;
            if let Some(users) = self.users() {
                users.give(&file).map_err(at(format!("give {} to the pod's root", path.display())))?;
            }
        }
        self.platform.configure(request)?;
        for (name, value) in &request.sysctls {
            let path = sysctl_path(name)?;
            if !is_ipc(&path) {
                let path = format!("/proc/sys/{path}");
                fs::write(&path, value).map_err(at(format!("write {value:?} to {path}")))?;
            }
        }
        if ipc_sysctls.is_empty() { Ok(()) } else { self.pause().map(drop) }
    }

    /// The holder of the pod's namespaces, started at the first call. Blocking: the lock lets one caller start it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn pause(&self) -> Result<Arc<Pause>, SandboxError> {
        let mut pause = lock(&self.pause);
        if let Some(pause) = &*pause {
            return Ok(Arc::clone(pause));
        }
        let (hostname, sysctls, shared) = {
            let settings = lock(&self.settings);
            (settings.hostname.clone(), settings.ipc_sysctls.clone(), settings.shared)
        };
        let namespaces = (libc::CLONE_NEWPID | POD_NAMESPACES) & !shared;
        let hostname = if shared & libc::CLONE_NEWUTS == 0 { hostname } else { String::new() };
        let cgroup = self.cgroup.child(PAUSE_CGROUP)?;
        let spec = PauseSpec { user_namespace: None, cgroup: 0, namespaces, hostname, sysctls };
        let started = Pause::start(&self.launcher, &cgroup, self.users(), spec).map_err(SandboxError::Pause)?;
        Ok(Arc::clone(pause.insert(Arc::new(started))))
    }

    /// Makes the pod's namespaces before the first container asks for them, which is told should that fail. Blocking.
    pub fn prepare_namespaces(&self) {
        if self.shared_namespaces() & POD_NAMESPACES != POD_NAMESPACES
            && let Err(error) = self.pause()
        {
            crate::log::warning!("{error}");
        }
    }

    /// The user namespace that the pod's other namespaces belong to, where it is not the agent's own.
    #[must_use]
    pub fn users(&self) -> Option<&UserNamespace> {
        self.users.get()
    }

    /// `CLONE_NEW*` flags of what the containers share with the agent.
    #[must_use]
    pub fn shared_namespaces(&self) -> i32 {
        lock(&self.settings).shared
    }

    /// What every container gets from its pod unless it brings its own: destination and tree. Blocking.
    ///
    /// # Errors
    /// See [`VolumeError`].
    pub fn standard_trees(&self) -> Result<Vec<(&'static str, Tree)>, VolumeError> {
        let (shm_size, shared) = {
            let settings = lock(&self.settings);
            (if settings.shm_size == 0 { DEFAULT_SHM } else { settings.shm_size }, settings.shared)
        };
        let shm = if shared & libc::CLONE_NEWIPC == 0 {
            self.volumes.memory("/dev/shm", shm_size, 0o1777, self.users().map_or((0, 0), UserNamespace::root))?
        } else {
            tree_of(Path::new("/"), "/dev/shm", "the host")?
        };
        let mut trees = vec![("/dev/shm", shm)];
        for (name, destination) in
            [("resolv.conf", "/etc/resolv.conf"), ("hosts", "/etc/hosts"), ("hostname", "/etc/hostname")]
        {
            if self.places.files.join(name).exists() {
                trees.push((destination, tree_of(&self.places.files, name, "the pod's files")?));
            }
        }
        Ok(trees)
    }

    /// See [`Platform::image_drive`].
    ///
    /// # Errors
    /// See there.
    pub fn image_drive(&self) -> Result<Option<String>, SandboxError> {
        Ok(self.platform.image_drive()?)
    }

    /// Takes CPUs online or offline; gives how many there are then.
    ///
    /// # Errors
    /// When the machine has fewer, or the host's CPUs are not the agent's to change.
    pub fn set_cpus(&self, online: u32) -> Result<u32, SandboxError> {
        Ok(self.platform.set_cpus(online)?)
    }

    /// See [`Platform::layers`].
    ///
    /// # Errors
    /// See there.
    pub fn layers(&self) -> Result<PathBuf, SandboxError> {
        let has_scratch_drive = lock(&self.settings).has_scratch_drive;
        Ok(self.platform.layers(has_scratch_drive)?)
    }

    /// Adds a container.
    ///
    /// # Errors
    /// When its id is taken.
    pub fn insert(&self, container: Arc<Container>) -> Result<(), ContainerError> {
        let mut containers = lock(&self.containers);
        if containers.contains_key(&container.id) {
            return Err(ContainerError::Exists(container.id.clone()));
        }
        containers.insert(container.id.clone(), container);
        Ok(())
    }

    /// Drops a container from the table.
    pub fn forget(&self, id: &str) {
        lock(&self.containers).remove(id);
    }

    /// The container `id`.
    ///
    /// # Errors
    /// When there is none.
    pub fn container(&self, id: &str) -> Result<Arc<Container>, ContainerError> {
        lock(&self.containers).get(id).cloned().ok_or_else(|| ContainerError::NotFound(id.into()))
    }

    /// All containers.
    #[must_use]
    pub fn containers(&self) -> Vec<Arc<Container>> {
        lock(&self.containers).values().cloned().collect()
    }

    /// A process of a container.
    ///
    /// # Errors
    /// When there is none.
    pub fn process(&self, id: &str, exec_id: &str) -> Result<Arc<Process>, ContainerError> {
        self.container(id)?.process(exec_id)
    }

    /// Removes every container and the pod's cgroup; failures are logged. Blocking.
    pub fn tear_down(&self) {
        let report = |error: &dyn std::fmt::Display| crate::log::warning!("shutting down: {error}");
        for container in self.containers() {
            if let Err(error) = self.remove_container(&container.id) {
                report(&error);
            }
        }
        lock(&self.pause).take();
        if let Err(error) = self.cgroup.whole().remove() {
            report(&error);
        }
    }
}

/// `kernel.shmmax` as the path below /proc/sys.
fn sysctl_path(name: &str) -> Result<String, SandboxError> {
    let path = name.replace('.', "/");
    let bad = path.split('/').any(|part| part.is_empty() || part == "..");
    if bad { Err(SandboxError::Invalid(format!("{name:?} is no sysctl"))) } else { Ok(path) }
}

/// Settings that belong to an IPC namespace.
fn is_ipc(path: &str) -> bool {
    ["kernel/shm", "kernel/msg", "kernel/sem", "fs/mqueue/"].iter().any(|prefix| path.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_stay_below_proc_sys() {
        assert_eq!(sysctl_path("net.ipv4.ip_forward").unwrap(), "net/ipv4/ip_forward");
        for bad in ["", "net..x", "a/../../b", "/etc/passwd"] {
            assert!(sysctl_path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ipc_settings_are_told_apart() {
        assert!(is_ipc("kernel/shmmax") && is_ipc("kernel/sem") && is_ipc("fs/mqueue/msg_max"));
        assert!(!is_ipc("net/core/somaxconn") && !is_ipc("kernel/hostname"));
    }
}
