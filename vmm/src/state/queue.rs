//! A virtqueue at rest.

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory};

use crate::devices::GuestRam;

/// Where a queue lies and how far it was served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Its number in the device.
    pub index: u16,
    /// Entries.
    pub size: u16,
    /// EVENT_IDX was negotiated.
    pub event_idx: bool,
    /// The next chain to take.
    pub next_avail: u16,
    /// The next place in the used ring.
    pub next_used: u16,
    /// Guest physical address.
    pub desc_table: u64,
    /// Guest physical address.
    pub avail_ring: u64,
    /// Guest physical address.
    pub used_ring: u64,
}

/// A state that no queue can have been in.
#[derive(Debug, thiserror::Error)]
#[error("saved virtqueue {index}: {what}")]
pub struct QueueStateError {
    /// Its number.
    pub index: u16,
    /// What is wrong.
    pub what: String,
}

impl QueueState {
    /// Of a queue that nobody serves.
    #[must_use]
    pub fn of(index: usize, queue: &Queue) -> Self {
        Self {
            index: u16::try_from(index).unwrap_or(u16::MAX),
            size: queue.size(),
            event_idx: queue.event_idx_enabled(),
            next_avail: queue.next_avail(),
            next_used: queue.next_used(),
            desc_table: queue.desc_table(),
            avail_ring: queue.avail_ring(),
            used_ring: queue.used_ring(),
        }
    }

    /// The queue again, of at most `max_size` entries.
    ///
    /// # Errors
    /// When its size or rings are none that a transport would have accepted.
    pub fn restore(&self, ram: &GuestRam, max_size: u16) -> Result<Queue, QueueStateError> {
        let wrong = |what: &str| QueueStateError { index: self.index, what: what.to_owned() };
        let failed = |error: virtio_queue::Error| wrong(&error.to_string());
        let mut queue = Queue::new(max_size).map_err(failed)?;
        queue.try_set_size(self.size).map_err(failed)?;
        queue.try_set_desc_table_address(GuestAddress(self.desc_table)).map_err(failed)?;
        queue.try_set_avail_ring_address(GuestAddress(self.avail_ring)).map_err(failed)?;
        queue.try_set_used_ring_address(GuestAddress(self.used_ring)).map_err(failed)?;
        let size = usize::from(self.size);
        let rings = [(self.desc_table, 16 * size), (self.avail_ring, 6 + 2 * size), (self.used_ring, 6 + 8 * size)];
        if rings.iter().any(|(start, len)| !ram.check_range(GuestAddress(*start), *len)) {
            return Err(wrong("its rings are outside guest memory"));
        }
        queue.set_event_idx(self.event_idx);
        queue.set_next_avail(self.next_avail);
        queue.set_next_used(self.next_used);
        queue.set_ready(true);
        Ok(queue)
    }
}
