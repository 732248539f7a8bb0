//! What a transport asks of a virtio device, and what it gives it when the driver is ready.
//!
//! ```text
//! new --driver sets DRIVER_OK--> activate (queues frozen, threads run) --driver writes 0 or the VM ends--> reset
//! ```
//!
//! The device's queues are the transport's until `activate`, the device's own threads' from then on, until `reset` has
//! joined them. Nothing here is called on a vCPU's fast path: kicks arrive on event descriptors, interrupts leave by them.

use std::fmt::{Debug, Display};
use std::io;
use std::sync::Arc;

use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use super::GuestRam;

/// A virtio device (virtio 1.2) behind any transport.
pub trait VirtioDevice: Debug + Send {
    /// Its number in section 5.
    fn device_type(&self) -> u32;

    /// The greatest size of each queue: powers of two, at most 32768.
    fn queue_sizes(&self) -> Vec<u16>;

    /// Feature bits that are offered; the transport lets the driver accept no others.
    fn features(&self) -> u64;

    /// `len` bytes of configuration space from `offset`; zeros past its end.
    fn read_config(&self, offset: usize, len: usize) -> Vec<u8>;

    /// What the driver wrote to configuration space. What cannot be written is dropped.
    fn write_config(&mut self, offset: usize, bytes: &[u8]);

    /// The driver is ready: starts what serves the queues. Called once, until `reset`.
    ///
    /// # Errors
    /// The transport then tells the driver that the device needs a reset.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Ends what `activate` started and waits for it; guest memory is not touched any more after that. Also called when
    /// nothing was activated.
    fn reset(&mut self);
}

/// What a device works with while its driver runs.
#[derive(Debug)]
pub struct Activation {
    /// The guest's memory.
    pub ram: GuestRam,
    /// What the driver accepted, a part of what was offered.
    pub features: u64,
    /// The queues that the driver has set up, in the order of their numbers; those that it left alone are missing.
    pub queues: Vec<ActiveQueue>,
    /// How the driver is told of news.
    pub interrupt: Arc<dyn Interrupt>,
}

/// A queue with valid rings inside guest memory.
#[derive(Debug)]
pub struct ActiveQueue {
    /// Its number in the device.
    pub index: usize,
    /// Its rings; EVENT_IDX is set as the driver wants it.
    pub queue: Queue,
    /// Readable after the driver's notification. Does not block.
    pub kick: EventFd,
}

impl Activation {
    /// Takes queue `index` out.
    ///
    /// # Errors
    /// When the driver has not set it up.
    pub fn take_queue(&mut self, index: usize) -> Result<ActiveQueue, ActivateError> {
        let at = self.queues.iter().position(|queue| queue.index == index).ok_or(ActivateError::NoQueue { index })?;
        Ok(self.queues.remove(at))
    }
}

/// Interrupts the driver. Callable from any thread, never waits.
pub trait Interrupt: Debug + Send + Sync {
    /// Buffers of this queue were used. Whether the driver wants to know is the caller's question to ask.
    fn queue(&self, index: usize);

    /// Configuration space has changed.
    fn config(&self);

    /// The device met an error that only a reset helps (DEVICE_NEEDS_RESET, 2.1.2). A driver can bring this about at will by
    /// resets and broken rings: `why`, for the log, is told at a bounded rate.
    fn needs_reset(&self, why: &dyn Display);
}

/// A device does not start.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver set DRIVER_OK without it.
    #[error("the driver has not set up queue {index}")]
    NoQueue {
        /// Its number.
        index: usize,
    },
    /// A thread or descriptor.
    #[error("cannot {step}: {source}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// What lies behind the device.
    #[error("{0}")]
    Other(String),
}
