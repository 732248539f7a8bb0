//! A queue as the driver sets it up.

use std::io;

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, GuestAddress, GuestMemory};
use vmm_sys_util::eventfd::EventFd;

use crate::devices::GuestRam;
use crate::devices::virtio::ActiveQueue;
use crate::devices::worker::new_eventfd;

/// Registers of one queue. Nothing is checked before [`activate`](Self::activate).
#[derive(Debug)]
pub struct QueueRegisters {
    index: usize,
    max_size: u16,
    size: u32,
    ready: bool,
    descriptors: u64,
    driver: u64,
    device: u64,
    kick: EventFd,
}

/// Registers of one queue at rest, as the driver wrote them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueRegistersState {
    /// QueueNum.
    pub size: u32,
    /// QueueReady.
    pub ready: bool,
    /// Guest physical address.
    pub descriptors: u64,
    /// Guest physical address.
    pub driver: u64,
    /// Guest physical address.
    pub device: u64,
}

/// Which address a register is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ring {
    /// The descriptor table.
    Descriptors,
    /// The available ring.
    Driver,
    /// The used ring.
    Device,
}

/// What a driver may get wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// 2.7: a power of two, and not more than the device takes.
    #[error("queue {index} has size {size}, which is no power of two up to {max}")]
    Size {
        /// Its number.
        index: usize,
        /// As the driver set it.
        size: u32,
        /// The device's limit.
        max: u16,
    },
    /// A part that is not in memory, or not aligned (2.7).
    #[error("queue {index}: its {ring:?} at {address:#x} are not aligned and inside memory")]
    Address {
        /// Its number.
        index: usize,
        /// Which part.
        ring: Ring,
        /// As the driver set it.
        address: u64,
    },
}

impl QueueRegisters {
    /// Queue `index` after a reset.
    ///
    /// # Errors
    /// When there is no descriptor for its notifications.
    pub fn new(index: usize, max_size: u16) -> io::Result<Self> {
        Ok(Self {
            index,
            max_size,
            size: u32::from(max_size),
            ready: false,
            descriptors: 0,
            driver: 0,
            device: 0,
            kick: new_eventfd()?,
        })
    }

    /// What the driver's notifications make readable.
    #[must_use]
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// QueueNumMax.
    #[must_use]
    pub fn max_size(&self) -> u16 {
        self.max_size
    }

    /// QueueReady.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// QueueReady, written.
    pub fn set_ready(&mut self, ready: bool) {
        self.ready = ready;
    }

    /// QueueNum, written.
    pub fn set_size(&mut self, size: u32) {
        self.size = size;
    }

    /// Half of an address, written.
    pub fn set_address(&mut self, ring: Ring, high: bool, value: u32) {
        let address = match ring {
            Ring::Descriptors => &mut self.descriptors,
            Ring::Driver => &mut self.driver,
            Ring::Device => &mut self.device,
        };
        let (shift, keep) = if high { (32, 0xffff_ffff) } else { (0, 0xffff_ffff << 32) };
        *address = *address & keep | u64::from(value) << shift;
    }

    /// As after a reset by the driver.
    pub fn reset(&mut self) {
        (self.size, self.ready) = (u32::from(self.max_size), false);
        (self.descriptors, self.driver, self.device) = (0, 0, 0);
        // Nothing to read is as good.
        let _ = self.kick.read();
    }

    /// The queue that the driver has set up, after all that can be checked was.
    ///
    /// # Errors
    /// What the driver did wrong.
    pub fn check(&self, ram: &GuestRam, event_idx: bool) -> Result<Queue, QueueError> {
        let bad_size = QueueError::Size { index: self.index, size: self.size, max: self.max_size };
        let size = u16::try_from(self.size).map_err(|_| bad_size)?;
        if !size.is_power_of_two() || size > self.max_size {
            return Err(bad_size);
        }
        let entries = usize::from(size);
        self.check_ring(ram, Ring::Descriptors, self.descriptors, 16 * entries, 16)?;
        self.check_ring(ram, Ring::Driver, self.driver, 6 + 2 * entries, 2)?;
        self.check_ring(ram, Ring::Device, self.device, 6 + 8 * entries, 4)?;
        let mut queue = <Queue as virtio_queue::QueueT>::new(self.max_size).map_err(|_| bad_size)?;
        let halves = |address: u64| (Some(address as u32), Some((address >> 32) as u32));
        queue.set_size(size);
        let (low, high) = halves(self.descriptors);
        queue.set_desc_table_address(low, high);
        let (low, high) = halves(self.driver);
        queue.set_avail_ring_address(low, high);
        let (low, high) = halves(self.device);
        queue.set_used_ring_address(low, high);
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        Ok(queue)
    }

    /// What the driver wrote.
    #[must_use]
    pub fn save(&self) -> QueueRegistersState {
        let Self { size, ready, descriptors, driver, device, .. } = *self;
        QueueRegistersState { size, ready, descriptors, driver, device }
    }

    /// As they were saved; checked no more than what a driver writes.
    pub fn restore(&mut self, state: &QueueRegistersState) {
        (self.size, self.ready) = (state.size, state.ready);
        (self.descriptors, self.driver, self.device) = (state.descriptors, state.driver, state.device);
    }

    /// For the device: the queue and a descriptor of its notifications.
    ///
    /// # Errors
    /// When there is no descriptor.
    pub fn activate(&self, queue: Queue) -> io::Result<ActiveQueue> {
        Ok(ActiveQueue { index: self.index, queue, kick: self.kick.try_clone()? })
    }

    fn check_ring(
        &self,
        ram: &GuestRam,
        ring: Ring,
        address: u64,
        len: usize,
        alignment: u64,
    ) -> Result<(), QueueError> {
        let start = GuestAddress(address);
        let inside = start.checked_add(len as u64).is_some() && ram.check_range(start, len);
        if inside && address.is_multiple_of(alignment) {
            return Ok(());
        }
        Err(QueueError::Address { index: self.index, ring, address })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_queues_are_told() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        let good = || {
            let mut queue = QueueRegisters::new(1, 256).unwrap();
            queue.set_address(Ring::Descriptors, false, 0x1000);
            queue.set_address(Ring::Driver, false, 0x2000);
            queue.set_address(Ring::Device, false, 0x3000);
            queue
        };
        assert_eq!(good().check(&ram, true).unwrap().size(), 256);
        for size in [0, 3, 512, 0x1_0000, u32::MAX] {
            let mut queue = good();
            queue.set_size(size);
            assert!(matches!(queue.check(&ram, true), Err(QueueError::Size { .. })), "{size}");
        }
        for (ring, high, value) in [
            (Ring::Descriptors, false, 0x1008),
            (Ring::Descriptors, false, 0xf800),
            (Ring::Driver, false, 0x2001),
            (Ring::Driver, true, 1),
            (Ring::Device, true, u32::MAX),
            (Ring::Device, false, 0xffff_fffc),
        ] {
            let mut queue = good();
            queue.set_address(ring, high, value);
            assert!(matches!(queue.check(&ram, true), Err(QueueError::Address { .. })), "{ring:?} {value:#x}");
        }
    }
}
