//! A device's registers.

use std::io;
use std::sync::Arc;

use super::interrupt::Line;
use super::queue::{QueueError, QueueRegisters, Ring};
use crate::devices::GuestRam;
use crate::devices::limit::LogLimit;
use crate::devices::virtio::{ActivateError, Activation, Interrupt};
use crate::state::Snapshot;

/// Bits of the register Status (2.1).
pub mod status {
    /// The driver has seen the device.
    pub const ACKNOWLEDGE: u32 = 1;
    /// It knows how to drive it.
    pub const DRIVER: u32 = 2;
    /// It has set the device up.
    pub const DRIVER_OK: u32 = 4;
    /// Features are agreed on.
    pub const FEATURES_OK: u32 = 8;
    /// The device gave up.
    pub const NEEDS_RESET: u32 = 64;
    /// The driver gave up.
    pub const FAILED: u32 = 128;
}

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "BULK", little-endian.
const VENDOR: u32 = 0x4b4c_5542;
const F_VERSION_1: u64 = 1 << 32;
const F_EVENT_IDX: u64 = 1 << 29;
/// Configuration space starts here.
const CONFIG: u64 = 0x100;
/// Where the driver's notifications go.
pub const QUEUE_NOTIFY: u64 = 0x50;

/// A device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// Descriptors for its notifications.
    #[error("cannot make the registers of a virtio device: {0}")]
    Io(#[from] io::Error),
}

/// A virtio device behind its registers.
#[derive(Debug)]
pub struct Transport {
    pub(super) device: Box<dyn Snapshot>,
    pub(super) ram: GuestRam,
    pub(super) line: Arc<Line>,
    pub(super) queues: Vec<QueueRegisters>,
    pub(super) selected_queue: u32,
    pub(super) offered_half: u32,
    pub(super) accepted_half: u32,
    pub(super) accepted: u64,
    pub(super) is_active: bool,
    log: LogLimit,
}

impl Transport {
    /// Registers as they are before a driver comes.
    ///
    /// # Errors
    /// When there are not enough descriptors.
    pub fn new(device: Box<dyn Snapshot>, ram: GuestRam) -> Result<Self, TransportError> {
        let sizes = device.queue_sizes();
        let queues = sizes.iter().enumerate().map(|(index, size)| QueueRegisters::new(index, *size));
        Ok(Self {
            queues: queues.collect::<io::Result<_>>()?,
            device,
            ram,
            line: Line::new()?,
            selected_queue: 0,
            offered_half: 0,
            accepted_half: 0,
            accepted: 0,
            is_active: false,
            log: LogLimit::default(),
        })
    }

    /// For the interrupt controller.
    #[must_use]
    pub fn line(&self) -> &Arc<Line> {
        &self.line
    }

    /// In the order of their numbers, for their notifications.
    #[must_use]
    pub fn queues(&self) -> &[QueueRegisters] {
        &self.queues
    }

    /// Ends the device's threads, for good.
    pub fn stop(&mut self) {
        self.device.reset();
        self.is_active = false;
    }

    /// A load of `data.len()` bytes at `offset` into the device's page.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(at) = offset.checked_sub(CONFIG) {
            let bytes = self.device.read_config(usize::try_from(at).unwrap_or(usize::MAX), data.len());
            data.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        } else if let (4, true) = (data.len(), offset.is_multiple_of(4)) {
            data.copy_from_slice(&self.register(offset).to_le_bytes());
        } else {
            self.complain(format_args!("reads {} bytes at register {offset:#x}", data.len()));
        }
    }

    /// A store of `data` at `offset`.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(at) = offset.checked_sub(CONFIG) {
            if self.line.status() & status::DRIVER != 0 {
                self.device.write_config(usize::try_from(at).unwrap_or(usize::MAX), data);
            }
        } else if let (Ok(bytes), true) = (<[u8; 4]>::try_from(data), offset.is_multiple_of(4)) {
            self.set_register(offset, u32::from_le_bytes(bytes));
        } else {
            self.complain(format_args!("writes {} bytes at register {offset:#x}", data.len()));
        }
    }

    fn register(&self, offset: u64) -> u32 {
        let half = |word: u64, which: u32| match which {
            0 => word as u32,
            1 => (word >> 32) as u32,
            _ => 0,
        };
        match offset {
            0x00 => MAGIC,
            0x04 => VERSION,
            0x08 => self.device.device_type(),
            0x0c => VENDOR,
            0x10 => half(self.device.features(), self.offered_half),
            0x34 => self.queue().map_or(0, |queue| u32::from(queue.max_size())),
            0x44 => self.queue().map_or(0, |queue| u32::from(queue.is_ready())),
            0x60 => self.line.pending(),
            0x70 => self.line.status(),
            // No shared memory: a length of all ones (4.2.2.1).
            0xb0 | 0xb4 | 0xb8 | 0xbc => u32::MAX,
            0xfc => self.line.generation(),
            _ => 0,
        }
    }

    fn set_register(&mut self, offset: u64, value: u32) {
        match offset {
            0x14 => self.offered_half = value,
            0x20 => self.accept(value),
            0x24 => self.accepted_half = value,
            0x30 => self.selected_queue = value,
            0x38 => self.set_up(|queue| queue.set_size(value)),
            0x44 => self.set_up(|queue| queue.set_ready(value & 1 != 0)),
            QUEUE_NOTIFY => self.notify(value),
            0x64 => self.line.acknowledge(value),
            0x70 => self.set_status(value),
            0x80 | 0x84 => self.set_up(|queue| queue.set_address(Ring::Descriptors, offset == 0x84, value)),
            0x90 | 0x94 => self.set_up(|queue| queue.set_address(Ring::Driver, offset == 0x94, value)),
            0xa0 | 0xa4 => self.set_up(|queue| queue.set_address(Ring::Device, offset == 0xa4, value)),
            _ => {}
        }
    }

    fn queue(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::try_from(self.selected_queue).ok()?)
    }

    /// Between FEATURES_OK and DRIVER_OK a queue can be set up; its registers are frozen before and after.
    fn set_up(&mut self, change: impl FnOnce(&mut QueueRegisters)) {
        if !self.is_at(status::FEATURES_OK, status::DRIVER_OK) {
            return self.complain("sets up a queue at the wrong time");
        }
        let queue = usize::try_from(self.selected_queue).ok().and_then(|index| self.queues.get_mut(index));
        if let Some(queue) = queue {
            change(queue);
        }
    }

    fn accept(&mut self, value: u32) {
        if !self.is_at(status::DRIVER, status::FEATURES_OK) {
            return self.complain("accepts features at the wrong time");
        }
        match self.accepted_half {
            0 => self.accepted = self.accepted & !0xffff_ffff | u64::from(value),
            1 => self.accepted = self.accepted & 0xffff_ffff | u64::from(value) << 32,
            _ => {}
        }
    }

    /// Whether `set` is in the status and `unset` is not, nor anybody has given up.
    fn is_at(&self, set: u32, unset: u32) -> bool {
        let now = self.line.status();
        now & set == set && now & (unset | status::FAILED | status::NEEDS_RESET) == 0
    }

    /// A notification that KVM did not take itself.
    fn notify(&self, index: u32) {
        if let Some(queue) = usize::try_from(index).ok().and_then(|index| self.queues.get(index)) {
            // Fails only when its counter is full, and then the device will look anyway.
            let _ = queue.kick().write(1);
        }
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let now = self.line.status();
        let mut added = value & 0xff & !now & !status::NEEDS_RESET;
        if added & status::FEATURES_OK != 0 && !self.features_are_fine(now) {
            added &= !status::FEATURES_OK;
        }
        let driver_ok = added & status::DRIVER_OK != 0;
        if driver_ok && now & status::FEATURES_OK == 0 {
            self.complain("says that it is ready before it agreed on features");
            added &= !status::DRIVER_OK;
        }
        self.line.add_status(added);
        if added & status::DRIVER_OK != 0 && !self.is_active {
            self.activate();
        }
    }

    fn features_are_fine(&mut self, now: u32) -> bool {
        let (offered, accepted) = (self.device.features(), self.accepted);
        if now & status::DRIVER == 0 || accepted & !offered != 0 || accepted & F_VERSION_1 == 0 {
            self.complain(format_args!("accepts features {accepted:#x} of {offered:#x}"));
            return false;
        }
        true
    }

    fn activate(&mut self) {
        match self.start() {
            Ok(()) => self.is_active = true,
            Err(error) => {
                self.device.reset();
                let device = self.device.device_type();
                self.line.needs_reset(&format_args!("device type {device} does not start: {error}"));
            }
        }
    }

    fn start(&mut self) -> Result<(), ActivateError> {
        let event_idx = self.accepted & F_EVENT_IDX != 0;
        let mut queues = Vec::new();
        for registers in self.queues.iter().filter(|queue| queue.is_ready()) {
            let queue = registers
                .check(&self.ram, event_idx)
                .map_err(|error: QueueError| ActivateError::Other(error.to_string()))?;
            let active = registers.activate(queue);
            queues.push(active.map_err(|source| ActivateError::Io { step: "share a queue's notifications", source })?);
        }
        self.device.activate(Activation {
            ram: self.ram.clone(),
            features: self.accepted,
            queues,
            interrupt: self.line.clone(),
        })
    }

    pub(super) fn reset(&mut self) {
        self.device.reset();
        self.queues.iter_mut().for_each(QueueRegisters::reset);
        self.line.reset();
        (self.selected_queue, self.offered_half, self.accepted_half, self.accepted) = (0, 0, 0, 0);
        self.is_active = false;
    }

    fn complain(&mut self, what: impl std::fmt::Display) {
        if let Some(suppressed) = self.log.allow() {
            tracing::warn!(device = self.device.device_type(), suppressed, "the guest's driver {what}");
        }
    }
}
