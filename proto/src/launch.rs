//! How the daemon starts `bulkhead-vmm` and hands it descriptors.
//!
//! The process is started with a unix stream socket as its standard input. The first message on it is a
//! [`Launch`] in JSON, sent with one `sendmsg` whose SCM_RIGHTS descriptors are those that [`LaunchDescriptor`]
//! numbers. The process answers one line: `ok\n`, or `error: TEXT\n` before it exits. Nothing else passes there, but for one
//! line before, `pid NUMBER\n`, when the process goes on as another child of its parent: in the pod's cgroup, or to be jailed.
//!
//! Later descriptors (logs, image parts, volumes) go to the listening unix stream socket [`Launch::descriptor_socket`]:
//! one `sendmsg` per connection with the token (1 to [`MAX_TOKEN`] bytes of UTF-8) and exactly one descriptor; the answer
//! is `ok\n` or `error: TEXT\n`. A request of vmm.proto then names the token, which takes the descriptor; one that is
//! never named is closed when its connection closes, so the sender keeps the connection until the request returned.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Longest descriptor token in bytes.
pub const MAX_TOKEN: usize = 128;
/// Longest launch message in bytes.
pub const MAX_LAUNCH: usize = 64 * 1024;
/// The version of vmm.proto and of this module.
pub const PROTOCOL_VERSION: u32 = 2;

/// Index into the descriptors that come with the launch message.
pub type LaunchDescriptor = usize;

/// What one pod's machine is made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launch {
    /// [`PROTOCOL_VERSION`] of the sender.
    pub protocol_version: u32,
    /// The pod sandbox's id, for messages.
    pub sandbox_id: String,
    /// Listening socket for vmm.proto, made by the process.
    pub control_socket: PathBuf,
    /// Listening socket for descriptors, made by the process.
    pub descriptor_socket: PathBuf,
    /// Listening socket for vsock connections from the host (`CONNECT port\n` answered by `OK port\n`).
    pub vsock_socket: PathBuf,
    /// Written (atomically, by rename) when the VM has ended: [`ExitRecord`] in JSON.
    pub exit_file: PathBuf,
    /// The guest's console and the monitor's own words; the process keeps it under 1 MiB.
    pub console_file: PathBuf,
    /// What runs the guest.
    pub monitor: Monitor,
    /// Guest kernel, an ELF `vmlinux` with PVH entry.
    pub kernel: PathBuf,
    /// Guest initramfs.
    pub initramfs: PathBuf,
    /// Appended to the kernel command line that the machine needs.
    pub kernel_arguments: String,
    /// Virtual CPUs, from 1.
    pub vcpus: u32,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// What the balloon of our own machine holds of it from boot on, in MiB.
    #[serde(default)]
    pub balloon_mib: u64,
    /// A guest that runs out of memory may take back what the balloon holds.
    #[serde(default)]
    pub deflate_on_oom: bool,
    /// The queues of a tap for each of the guest's virtio-net devices, in their order; opened with IFF_VNET_HDR.
    pub taps: Vec<Vec<LaunchDescriptor>>,
    /// The pod's scratch drive, a raw file opened read-write.
    pub scratch_drive: Option<LaunchDescriptor>,
    /// Binary of the pod's file server; without it the guest gets no virtio-fs device.
    pub file_server: Option<PathBuf>,
    /// Directory of the cgroup v2 that the process goes on in; without it, where it was started.
    #[serde(default)]
    pub cgroup: Option<LaunchDescriptor>,
    /// What is written to the socket of `OpenConsole` is typed on the guest's console.
    #[serde(default)]
    pub debug_console: bool,
    /// The user to be jailed as, for a machine that runs in the process itself.
    #[serde(default)]
    pub jail: Option<JailUser>,
    /// How much its devices may move.
    #[serde(default)]
    pub limits: DeviceLimits,
}

/// How much the devices of a machine may move.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeviceLimits {
    /// Each drive: what is read and written together.
    pub disk: RateLimit,
    /// Each network device: frames to the guest.
    pub ingress: RateLimit,
    /// Each network device: frames from the guest.
    pub egress: RateLimit,
}

/// A limit of one direction of a device. An operation is a drive's request or a frame; zero is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RateLimit {
    /// In the long run.
    pub bytes_per_second: u64,
    /// Bytes that may pass at once after a quiet time; zero: what a second brings.
    pub bytes_burst: u64,
    /// In the long run.
    pub operations_per_second: u64,
    /// Operations that may pass at once after a quiet time; zero: what a second brings.
    pub operations_burst: u64,
}

/// Ids that no other process of the host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailUser {
    /// Not root's.
    pub uid: u32,
    /// Not root's.
    pub gid: u32,
}

/// What runs the guest's instructions.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Monitor {
    /// Our own machine on KVM: this process runs it.
    Microvm {},
    /// QEMU's microvm machine; this process serves its virtio devices by vhost-user.
    Qemu {
        /// The QEMU system emulator.
        binary: PathBuf,
        /// `-accel`: "kvm" or "tcg".
        accelerator: String,
    },
    /// No machine: the agent as a process of the host, in its own mount namespace. It listens on
    /// [`Launch::vsock_socket`]; of the guest's parts of the launch message none is used.
    Native(NativePod),
}

/// A pod on the host's own kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NativePod {
    /// The agent's binary.
    pub agent: PathBuf,
    /// The agent's own files; made by it.
    pub state: PathBuf,
    /// Writable layers of the containers; made by the agent.
    pub layers: PathBuf,
    /// Cgroup v2 directory for the containers; made by the agent.
    pub cgroup: PathBuf,
    /// The pod's network namespace; `None` is the host's.
    pub netns: Option<PathBuf>,
}

/// The last word of a pod's machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// `ExitReason` of vmm.proto, as its number.
    pub reason: i32,
    /// For people: what ended it.
    pub message: String,
    /// Nanoseconds since 1970.
    pub at_ns: i64,
    /// Exits of containers that the agent had reported before.
    pub containers: Vec<ContainerExitRecord>,
}

/// A container's end, as its agent reported it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerExitRecord {
    /// The container's id.
    pub id: String,
    /// 0 to 255.
    pub code: i32,
    /// Killed for memory.
    pub oom_killed: bool,
    /// Nanoseconds since 1970, by the host's clock.
    pub finished_at_ns: i64,
}
