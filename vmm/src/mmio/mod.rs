//! The virtio-mmio transport (virtio 1.2, section 4.2): what a guest's driver sees of a device.
//!
//! * [`transport`]: registers and the device's life. * [`queue`]: one queue's registers. * [`interrupt`]: the way back.
//! * [`TransportState`]: all of it at rest.
//!
//! Registers are read and written by vCPUs that left the guest for it; notifications do not: they are event descriptors
//! (ioeventfd), as interrupts are (irqfd).

pub mod interrupt;
pub mod queue;
mod state;
pub mod transport;

#[cfg(test)]
mod tests;

pub use state::{TransportState, TransportStateError};
pub use transport::{Transport, TransportError};
