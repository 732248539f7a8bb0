//! Taking chains from a virtqueue and giving them back, without trusting its rings.

use std::fmt::Display;
use std::sync::atomic::Ordering;

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::{BrokenQueue, GuestRam};

/// What taking a batch of chains from a queue came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// The driver wants an interrupt.
    pub notify: bool,
    /// The batch was full: more may be there, of which the driver will not notify.
    pub more: bool,
}

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

/// Gives chains back, each with its number of bytes written, so that the driver sees all or none of them: the buffers of one
/// merged frame. Ask [`needs_notification_since`] afterwards.
pub fn give_back_together(
    ram: &GuestRam,
    queue: &mut Queue,
    index: usize,
    chains: &[(u16, u32)],
) -> Result<(), BrokenQueue> {
    let Some(((head, written), before)) = chains.split_last() else {
        return Ok(());
    };
    let first = queue.next_used();
    let mut at = first;
    for (head, written) in before {
        if *head >= queue.size() {
            return Err(broken(index, "a chain begins outside the descriptor table"));
        }
        let slot = u64::from(at % queue.size()) * 8 + 4;
        let address = queue.used_ring().checked_add(slot).ok_or_else(|| broken(index, "its used ring overflows"))?;
        let element = u64::from(*head) | u64::from(*written) << 32;
        ram.write_slice(&element.to_le_bytes(), GuestAddress(address)).map_err(|error| broken(index, error))?;
        at = at.wrapping_add(1);
    }
    // Publishes the index that covers them all.
    queue.set_next_used(first.wrapping_add(before.len() as u16));
    give_back(ram, queue, index, *head, *written)
}

/// Whether the driver wants an interrupt for what was given back since the queue's `next_used` was `old`.
pub fn needs_notification_since(ram: &GuestRam, queue: &Queue, index: usize, old: u16) -> Result<bool, BrokenQueue> {
    let new = queue.next_used();
    if new == old {
        return Ok(false);
    }
    // What was given back must be visible before the driver's wish is read.
    std::sync::atomic::fence(Ordering::SeqCst);
    let load = |offset: u64| {
        let address =
            queue.avail_ring().checked_add(offset).ok_or_else(|| broken(index, "its available ring overflows"))?;
        ram.load::<u16>(GuestAddress(address), Ordering::Relaxed)
            .map(u16::from_le)
            .map_err(|error| broken(index, error))
    };
    if queue.event_idx_enabled() {
        let used_event = load(4 + 2 * u64::from(queue.size()))?;
        return Ok(new.wrapping_sub(used_event).wrapping_sub(1) < new.wrapping_sub(old));
    }
    // VIRTQ_AVAIL_F_NO_INTERRUPT.
    Ok(load(0)? & 1 == 0)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_given_back_together_where_the_index_wraps() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
        let mut queue = Queue::new(8).unwrap();
        queue.set_used_ring_address(Some(0x2000), Some(0));
        queue.set_next_used(u16::MAX);
        give_back_together(&ram, &mut queue, 0, &[(1, 10), (2, 20), (3, 30)]).unwrap();
        assert_eq!(queue.next_used(), 2);
        for (slot, element) in [(7, [1_u32, 10]), (0, [2, 20]), (1, [3, 30])] {
            assert_eq!(ram.read_obj::<[u32; 2]>(GuestAddress(0x2004 + slot * 8)).unwrap(), element);
        }
        assert_eq!(ram.read_obj::<u16>(GuestAddress(0x2002)).unwrap(), 2);
    }
}
