//! The per-pod process `bulkhead-vmm`: it owns a pod's virtio devices, its logs and what runs its guest, and outlives the
//! daemon that started it.
//!
//! * [`launch`]: the daemon's orders. * [`pod`]: the order of things from start to end. * [`control`]: vmm.proto.
//! * [`descriptors`]: files handed over later. * [`logs`]: container output to CRI log files.
//! * [`monitor`]: what runs the guest. * [`console`]: what it prints. * [`exit`]: how it ended.
//! * [`devices`]: virtio devices. * [`vhost_user`]: serving them to QEMU. * [`volumes`], [`file_server`]: virtio-fs.
//! * [`sys`]: the crate's unsafe code outside of `devices`.

pub mod console;
pub mod control;
pub mod descriptors;
pub mod devices;
pub mod exit;
pub mod file_server;
pub mod launch;
pub mod logs;
pub mod monitor;
pub mod passing;
pub mod pod;
pub mod sys;
pub mod vhost_user;
pub mod volumes;

/// An error and its causes in one line.
#[must_use]
pub fn error_text(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}
