//! The per-pod process: a pod's machine, its devices, logs and volumes.
//!
//! * [`process`]: the life of `bulkhead-vmm`, from [`launch`] over [`start`] to [`supervise`].
//! * [`monitor`]: QEMU. [`native`]: no machine at all, the agent on the host. [`agent_link`]: how either agent is reached.
//!   [`console`]: what guest and QEMU say; [`viewer`]: who looks at it. [`exit`]: how it ended.
//! * [`pod`]: what [`control`] (vmm.proto) works on: [`descriptors`], [`logs`], [`volumes`], [`statistics`].
//! * [`devices`]: the virtio devices; [`vhost_user`]: how QEMU reaches them; [`mmio`]: how our own machine does.
//! * [`kvm`]: that machine; [`boot`]: what is in its memory at first.
//! * [`jail`]: what a taken-over process cannot do.
//! * [`file_server`]: the second program of this crate, `bulkhead-fs`.
//! * [`state`]: devices at rest, as bytes.
//! * [`rights`], [`sys`]: descriptors in messages; what needs `unsafe`.

pub mod agent_link;
pub mod boot;
pub mod console;
pub mod control;
pub mod descriptors;
pub mod devices;
pub mod exit;
pub mod file_server;
pub mod jail;
pub mod kvm;
pub mod launch;
pub mod logs;
pub mod mmio;
pub mod monitor;
pub mod native;
pub mod pod;
pub mod process;
pub mod rights;
pub mod start;
pub mod state;
pub mod statistics;
pub mod supervise;
pub mod sys;
pub mod vhost_user;
pub mod viewer;
pub mod volumes;
