//! What a device is between two lives.

use serde::{Deserialize, Serialize};

use super::QueueState;
use crate::devices::virtio::VirtioDevice;

/// A device that can be suspended and go on, in this process or another.
pub trait Snapshot: VirtioDevice {
    /// Ends the device's threads, as `reset` does, but forgets nothing: what the driver has not seen yet is still in its queues.
    /// Afterwards the device is as if it had been reset; `restore` and `activate` let it go on.
    ///
    /// # Errors
    /// When there is something that cannot be saved. The device runs no more then.
    fn suspend(&mut self) -> Result<DeviceState, SnapshotError>;

    /// Takes over the state of a device of the same kind and configuration. The next `activate`, with the state's features
    /// and queues, goes on where that one stopped.
    ///
    /// # Errors
    /// When the state is that of another device.
    fn restore(&mut self, state: &DeviceState) -> Result<(), SnapshotError>;
}

/// Why there is no state, or none that fits.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A thread of the device ended in a panic.
    #[error("a thread of the {0} is lost, and with it the device's state")]
    Lost(&'static str),
    /// A part of the device's state is somebody else's.
    #[error("the guest has mounted volumes: their file server cannot be saved")]
    Mounted,
    /// Of another device.
    #[error("the saved state is of device type {found} with features {features:#x}, not of the {device}")]
    Other {
        /// What it is restored to.
        device: &'static str,
        /// What it is of.
        found: u32,
        /// What its driver accepted.
        features: u64,
    },
    /// Of the same device, but impossible.
    #[error("the saved state of the {device} is impossible: {what}")]
    Value {
        /// Which.
        device: &'static str,
        /// What is wrong.
        what: &'static str,
    },
}

/// A device at rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    /// Its number in section 5 of the specification.
    pub device_type: u32,
    /// What the driver accepted.
    pub features: u64,
    /// Those that were active; empty when there was no driver.
    pub queues: Vec<QueueState>,
    /// What else it knows.
    pub own: Own,
}

/// What kinds of devices know beside their queues. New kinds are added at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Own {
    /// Nothing.
    Nothing,
    /// A network device.
    Net(NetState),
    /// A balloon.
    Balloon(BalloonState),
}

/// What the driver told a network device. A frame that waited for buffers is lost, as frames may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// As the driver last set it.
    pub mac: Option<[u8; 6]>,
    /// Queue pairs in use.
    pub active_pairs: u16,
    /// GUEST_* features that are switched on.
    pub offloads: u64,
}

/// A balloon's size, and what it holds of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    /// Pages that the guest was asked for.
    pub target: u32,
    /// Pages that it has given.
    pub actual: u32,
    /// What it fills free pages with.
    pub poison: u32,
    /// The chain in which the next statistics come.
    pub stats_head: Option<u16>,
}

impl DeviceState {
    /// Whether it can be restored to `device`, which is called `name`.
    ///
    /// # Errors
    /// When it is another kind of device, or its driver accepted what this one does not offer.
    pub fn check(&self, device: &dyn VirtioDevice, name: &'static str) -> Result<(), SnapshotError> {
        if self.device_type == device.device_type() && self.features & !device.features() == 0 {
            return Ok(());
        }
        Err(SnapshotError::Other { device: name, found: self.device_type, features: self.features })
    }
}
