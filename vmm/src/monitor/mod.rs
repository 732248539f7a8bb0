//! What runs the guest's instructions.

mod qemu;

pub use qemu::{Machine, command};
