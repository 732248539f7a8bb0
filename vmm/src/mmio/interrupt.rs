//! How a device reaches its driver: the interrupt line and the registers that say why.

use std::fmt::Display;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::transport::status;
use crate::devices::limit::LogLimit;
use crate::devices::virtio::Interrupt;
use crate::devices::worker::new_eventfd;

/// InterruptStatus: buffers were used.
const USED_BUFFER: u32 = 1;
/// InterruptStatus: the configuration changed.
const CONFIG_CHANGE: u32 = 2;

/// Shared between a device's threads and its registers.
#[derive(Debug)]
pub struct Line {
    line: EventFd,
    pending: AtomicU32,
    status: AtomicU32,
    generation: AtomicU32,
    /// Outlives the driver's resets.
    log: Mutex<LogLimit>,
}

impl Line {
    /// A line that nothing has raised yet.
    ///
    /// # Errors
    /// When there is no descriptor.
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            line: new_eventfd()?,
            pending: AtomicU32::new(0),
            status: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            log: Mutex::default(),
        }))
    }

    /// What KVM turns into the guest's interrupt.
    #[must_use]
    pub fn event(&self) -> &EventFd {
        &self.line
    }

    /// The register InterruptStatus.
    #[must_use]
    pub fn pending(&self) -> u32 {
        self.pending.load(Ordering::Acquire)
    }

    /// What the driver wrote to InterruptACK.
    pub fn acknowledge(&self, bits: u32) {
        self.pending.fetch_and(!bits, Ordering::AcqRel);
    }

    /// The register Status.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::Acquire)
    }

    /// Adds bits to Status.
    pub fn add_status(&self, bits: u32) {
        self.status.fetch_or(bits, Ordering::AcqRel);
    }

    /// The register ConfigGeneration.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// After a reset by the driver. The generation goes on: the driver may remember it.
    pub fn reset(&self) {
        self.status.store(0, Ordering::Release);
        self.pending.store(0, Ordering::Release);
    }

    /// As it was saved. What the driver has not acknowledged is raised again: nobody knows whether the interrupt had arrived.
    pub fn restore(&self, status: u32, pending: u32, generation: u32) {
        self.status.store(status, Ordering::Release);
        self.generation.store(generation, Ordering::Release);
        self.pending.store(0, Ordering::Release);
        if pending != 0 {
            self.raise(pending);
        }
    }

    fn raise(&self, bit: u32) {
        self.pending.fetch_or(bit, Ordering::AcqRel);
        // Fails only when its counter is full, and then the interrupt is on its way already.
        let _ = self.line.write(1);
    }
}

impl Interrupt for Line {
    fn queue(&self, _index: usize) {
        self.raise(USED_BUFFER);
    }

    fn config(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.raise(CONFIG_CHANGE);
    }

    fn needs_reset(&self, why: &dyn Display) {
        let allowed = self.log.lock().unwrap_or_else(PoisonError::into_inner).allow();
        if let Some(suppressed) = allowed {
            tracing::warn!(suppressed, "a virtio device needs a reset: {why}");
        }
        self.add_status(status::NEEDS_RESET);
        if self.status() & status::DRIVER_OK != 0 {
            self.raise(CONFIG_CHANGE);
        }
    }
}
