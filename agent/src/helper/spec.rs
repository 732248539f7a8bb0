//! What a set-up helper is told, and what it answers.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::users::Identity;
use crate::seccomp::Program;

/// Index into the descriptors that come with the specification.
pub type Fd = usize;

/// First message to every helper.
#[derive(Debug, Serialize, Deserialize)]
pub enum Spec {
    /// Build a container and run its command.
    Container(Box<ContainerSpec>),
    /// Run a further command in a container.
    Exec(Box<ExecSpec>),
    /// Hold the pod's namespaces.
    Pause(PauseSpec),
}

/// A namespace to enter before the fork.
#[derive(Debug, Serialize, Deserialize)]
pub struct Join {
    /// pidfd of a process in it.
    pub pidfd: Fd,
    /// `CLONE_NEW*` flags.
    pub namespaces: i32,
}

/// The pod's user namespace.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct UserNamespaceSpec {
    /// The namespace itself.
    pub fd: Fd,
    /// Its root's user id on the host.
    pub uid: u32,
    /// Its root's group id on the host.
    pub gid: u32,
}

/// The holder of the pod's PID, IPC and UTS namespaces.
#[derive(Debug, Serialize, Deserialize)]
pub struct PauseSpec {
    /// Of the pod; the namespaces are its.
    pub user_namespace: Option<UserNamespaceSpec>,
    /// Directory of the pod's own leaf.
    pub cgroup: Fd,
    /// `CLONE_NEW*` flags of those to be made.
    pub namespaces: i32,
    /// Name of the UTS namespace; empty keeps the inherited one.
    pub hostname: String,
    /// Settings of the IPC and UTS namespaces, as paths below /proc/sys and their content.
    pub sysctls: Vec<(String, String)>,
}

/// A container, from its namespaces to its command.
#[derive(Debug, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Directory of the container's cgroup.
    pub cgroup: Fd,
    /// Namespaces of others.
    pub join: Vec<Join>,
    /// Of the pod; the container's own namespaces are its.
    pub user_namespace: Option<UserNamespaceSpec>,
    /// Make a PID namespace of its own.
    pub new_pid_namespace: bool,
    /// The root, a detached writable mount.
    pub root: Fd,
    /// An empty directory of the agent on which the root is attached for a moment.
    pub attach_point: PathBuf,
    /// Root becomes read-only after everything is in place.
    pub root_readonly: bool,
    /// In the order to be mounted.
    pub mounts: Vec<MountSpec>,
    /// Hidden from the container.
    pub masked_paths: Vec<String>,
    /// Made read-only.
    pub readonly_paths: Vec<String>,
    /// Nodes beside the standard ones.
    pub devices: Vec<DeviceSpec>,
    /// /sys and /sys/fs/cgroup are writable.
    pub privileged: bool,
    /// The first process.
    pub process: ProcessSpec,
}

/// A command to run in a container.
#[derive(Debug, Serialize, Deserialize)]
pub struct ExecSpec {
    /// Directory of the container's cgroup.
    pub cgroup: Fd,
    /// The container's namespaces; the user namespace is one of them where the pod has its own.
    pub join: Vec<Join>,
    /// What to run.
    pub process: ProcessSpec,
}

/// A detached mount and where it goes.
#[derive(Debug, Serialize, Deserialize)]
pub struct MountSpec {
    /// Absolute path in the container.
    pub destination: String,
    /// From `open_tree` or `fsmount`.
    pub tree: Fd,
    /// The mount point is a directory, else a file.
    pub directory: bool,
    /// This mount only.
    pub readonly: bool,
    /// This mount and all below.
    pub recursive_readonly: bool,
    /// This mount only.
    pub no_suid: bool,
    /// This mount only.
    pub no_dev: bool,
    /// This mount only.
    pub no_exec: bool,
    /// How mounts made later travel.
    pub propagation: Propagation,
}

/// Mount propagation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// Neither way.
    Private,
    /// Into the container.
    Slave,
    /// Both ways.
    Shared,
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSpec {
    /// Absolute path in the container.
    pub path: String,
    /// `c`, `b` or `p`.
    pub kind: char,
    /// Device number.
    pub major: u32,
    /// Device number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner; `None`: the user of the first process.
    pub uid: Option<u32>,
    /// Group; `None`: that of the first process.
    pub gid: Option<u32>,
}

/// A process to become.
#[derive(Debug, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Command and arguments.
    pub args: Vec<Vec<u8>>,
    /// "NAME=value".
    pub env: Vec<Vec<u8>>,
    /// Absolute path.
    pub working_directory: String,
    /// Whose rights it has.
    pub user: UserSpec,
    /// `None` keeps none.
    pub capabilities: CapabilitySpec,
    /// Name (`RLIMIT_...`), soft, hard.
    pub rlimits: Vec<(String, u64, u64)>,
    /// How many user and group ids the pod's user namespace has; without one all.
    pub ids: Option<(u32, u32)>,
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privileges: bool,
    /// -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// Installed last, before the command; `None` allows everything.
    pub seccomp: Option<Program>,
    /// Streams.
    pub stdio: Stdio,
}

/// The standard streams of a process.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Stdio {
    /// Three descriptors.
    Pipes(Fd, Fd, Fd),
    /// A terminal of the container's own devpts, with its first size in rows and columns.
    Terminal(u16, u16),
}

/// A user to be looked up in the container's own files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserSpec {
    /// Wins over names.
    pub uid: Option<u32>,
    /// Wins over what /etc/passwd says.
    pub gid: Option<u32>,
    /// Name for /etc/passwd.
    pub username: String,
    /// "user[:group]" of the image.
    pub image_user: String,
    /// Further groups.
    pub supplemental_groups: Vec<u32>,
    /// Groups of /etc/group are not added.
    pub strict_groups: bool,
}

/// Capability sets as bit masks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilitySpec {
    /// Upper bound of what may ever be gained.
    pub bounding: u64,
    /// In force.
    pub effective: u64,
    /// May be put in force.
    pub permitted: u64,
    /// Kept through exec of files that ask for it.
    pub inheritable: u64,
    /// Kept through exec.
    pub ambient: u64,
}

/// What a helper says.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// The process that does the rest, in the helper's PID namespace; the helper waits for a byte and ends.
    Child(i32),
    /// Everything is built; the terminal's other side comes with it when one was asked for.
    Ready {
        /// What could not be applied.
        warnings: Vec<String>,
        /// Whose rights the process has; `None` for one that runs no command.
        identity: Option<Identity>,
    },
    /// It cannot be done.
    Failed {
        /// For people.
        message: String,
    },
}
