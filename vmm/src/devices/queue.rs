//! Taking chains from a virtqueue and giving them back, without trusting its rings.

use std::fmt::Display;
use std::sync::atomic::Ordering;

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};

use super::{BrokenQueue, GuestRam};

/// The next chain the driver offered; `None` when there is none. Leaves notifications as they are.
pub fn pop<'a>(
    ram: &'a GuestRam,
    queue: &mut Queue,
    index: usize,
) -> Result<Option<DescriptorChain<&'a GuestRam>>, BrokenQueue> {
    let offered = queue.avail_idx(ram, Ordering::Acquire).map_err(|error| broken(index, error))?;
    if offered.0 == queue.next_avail() {
        return Ok(None);
    }
    let mut chains = queue.iter(ram).map_err(|error| broken(index, error))?;
    match chains.next() {
        Some(chain) => Ok(Some(chain)),
        None => Err(broken(index, "its available ring cannot be read")),
    }
}

/// Puts the chain that `pop` just returned back, so that the next `pop` returns it again.
pub fn undo_pop(queue: &mut Queue) {
    queue.set_next_avail(queue.next_avail().wrapping_sub(1));
}

/// Gives a chain back with the number of bytes written to it.
pub fn give_back(ram: &GuestRam, queue: &mut Queue, index: usize, head: u16, written: u32) -> Result<(), BrokenQueue> {
    queue.add_used(ram, head, written).map_err(|error| broken(index, error))
}

/// Asks the driver to notify of further chains; true when some came in meanwhile.
pub fn enable_notification(ram: &GuestRam, queue: &mut Queue, index: usize) -> Result<bool, BrokenQueue> {
    queue.enable_notification(ram).map_err(|error| broken(index, error))
}

/// Whether the driver wants an interrupt for the chains given back since the last call.
pub fn needs_notification(ram: &GuestRam, queue: &mut Queue, index: usize) -> Result<bool, BrokenQueue> {
    queue.needs_notification(ram).map_err(|error| broken(index, error))
}

fn broken(queue: usize, what: impl Display) -> BrokenQueue {
    BrokenQueue { queue, what: what.to_string() }
}
