//! The per-pod process: a pod's machine, its devices, logs and volumes.
//!
//! * [`process`]: the life of `bulkhead-vmm`, from [`launch`] over [`start`] to [`supervise`].
//! * [`monitor`]: QEMU. [`console`]: what guest and QEMU say. [`exit`]: how it ended.
//! * [`pod`]: what [`control`] (vmm.proto) works on: [`descriptors`], [`logs`], [`volumes`], [`statistics`].
//! * [`devices`], [`vhost_user`]: the virtio devices and how QEMU reaches them.
//! * [`file_server`]: the second program of this crate, `bulkhead-fs`.
//! * [`rights`], [`sys`]: descriptors in messages; what needs `unsafe`.

pub mod console;
pub mod control;
pub mod descriptors;
pub mod devices;
pub mod exit;
pub mod file_server;
pub mod launch;
pub mod logs;
pub mod monitor;
pub mod pod;
pub mod process;
pub mod rights;
pub mod start;
pub mod statistics;
pub mod supervise;
pub mod sys;
pub mod vhost_user;
pub mod volumes;
