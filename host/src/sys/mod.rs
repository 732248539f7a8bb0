//! What the daemon asks of the kernel directly. With [`crate::check`]'s KVM self-test this is the crate's whole
//! index of unsafe code: only modules that say `allow(unsafe_code)` contain any.
//!
//! * [`netns`]: network namespaces that outlive the daemon, and running code inside one.
//! * [`userns`]: user namespaces that own network namespaces (unsafe: clone, and system calls in the child).
//! * [`tap`]: tap devices (unsafe: ioctls of /dev/net/tun).
//! * [`mounts`]: detached mounts for volumes (unsafe: `mount_setattr`).
//! * [`descriptors`]: descriptors over unix sockets.
//! * [`process`]: processes by pidfd (unsafe: registration with tokio).
//! * [`readiness`]: waiting for descriptors (unsafe: registration with tokio). * [`open_files`]: how many there may be.
//! * [`lock`]: one daemon per root directory.
//! * [`cgroup`]: a pod's cgroup in the v2 hierarchy. * [`memory`]: what a process holds.
//! * [`host`]: facts of this boot. * [`tsc`]: the processor's clock (unsafe: RDTSC).

pub mod cgroup;
pub mod descriptors;
pub mod host;
pub mod lock;
pub mod memory;
pub mod mounts;
pub mod netns;
pub mod open_files;
pub mod process;
pub mod readiness;
pub mod tap;
pub mod tsc;
pub mod userns;
