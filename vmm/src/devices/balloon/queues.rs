//! What the balloon's queues carry.

use std::sync::atomic::Ordering;

use virtio_queue::{DescriptorChain, Queue, QueueT};

use super::features::Role;
use super::{BalloonDevice, PAGE, Stats, discard};
use crate::devices::chain::{Buffers, ChainError};
use crate::devices::queue::{self, Batch};
use crate::devices::slices::GuestSlices;
use crate::devices::{BrokenQueue, GuestRam};

/// Most page numbers in one request; Linux sends 256.
const MAX_PAGES: usize = 4096;

/// The chain of the statistics queue that is kept until statistics are wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held(Option<u16>);

impl Held {
    /// The head of the chain, for a snapshot.
    #[must_use]
    pub fn head(self) -> Option<u16> {
        self.0
    }

    /// As it was in a snapshot.
    #[must_use]
    pub fn restored(head: Option<u16>) -> Self {
        Self(head)
    }
}

impl BalloonDevice {
    /// Takes what a queue offers, at most a queue's worth.
    ///
    /// # Errors
    /// When the queue cannot be used any more.
    pub fn process(
        &self,
        ram: &GuestRam,
        queue: &mut Queue,
        index: usize,
        role: Role,
        held: &mut Held,
    ) -> Result<Batch, BrokenQueue> {
        let before = queue.next_used();
        let mut more = true;
        for _ in 0..queue.size() {
            let Some(chain) = queue::pop(ram, queue, index)? else {
                if queue::enable_notification(ram, queue, index)? {
                    continue;
                }
                more = false;
                break;
            };
            let head = chain.head_index();
            if let Err(error) = self.take(ram, chain, role) {
                self.complain("a request", error);
            }
            // The last statistics stay with the device; those before are of no use any more.
            let done = if role == Role::Stats { held.0.replace(head) } else { Some(head) };
            if let Some(head) = done {
                queue::give_back(ram, queue, index, head, 0)?;
            }
        }
        Ok(Batch { notify: queue::needs_notification_since(ram, queue, index, before)?, more })
    }

    /// Gives the statistics' buffer back, for the driver to fill anew. True when the driver wants an interrupt.
    ///
    /// # Errors
    /// When the queue cannot be used any more.
    pub fn ask_for_stats(
        &self,
        ram: &GuestRam,
        queue: &mut Queue,
        index: usize,
        held: &mut Held,
    ) -> Result<bool, BrokenQueue> {
        let before = queue.next_used();
        if self.take_stats_wanted()
            && let Some(head) = held.0.take()
        {
            queue::give_back(ram, queue, index, head, 0)?;
        }
        queue::needs_notification_since(ram, queue, index, before)
    }

    fn take(&self, ram: &GuestRam, chain: DescriptorChain<&GuestRam>, role: Role) -> Result<(), ChainError> {
        match role {
            Role::Inflate => self.inflate(ram, &Buffers::parse(ram, chain)?.readable),
            // The host gives memory when the guest touches it.
            Role::Deflate => drop(Buffers::parse(ram, chain)?),
            Role::Stats => self.set_stats(Stats::read(&Buffers::parse(ram, chain)?.readable)),
            Role::Reporting => {
                let ranges: Vec<(u64, u32)> = chain
                    .clone()
                    .filter(|descriptor| descriptor.is_write_only())
                    .map(|descriptor| (descriptor.addr().0, descriptor.len()))
                    .collect();
                // The chain is sound, and every range inside guest memory.
                Buffers::parse(ram, chain)?;
                self.free_reported(ram, &ranges);
            }
        }
        Ok(())
    }

    fn inflate(&self, ram: &GuestRam, numbers: &GuestSlices<'_>) {
        let mut bytes = vec![0; numbers.len().min(MAX_PAGES * 4) / 4 * 4];
        if !numbers.read_exact(&mut bytes) {
            return;
        }
        let mut pages: Vec<u64> = bytes
            .chunks_exact(4)
            .map(|page| u64::from(u32::from_le_bytes([page[0], page[1], page[2], page[3]])))
            .collect();
        pages.sort_unstable();
        pages.dedup();
        // One system call for each run of neighbours.
        for run in pages.chunk_by(|a, b| a + 1 == *b) {
            match discard(ram, run[0] * PAGE, run.len() as u64 * PAGE) {
                Ok(freed) => drop(self.counters.inflated.fetch_add(freed, Ordering::Relaxed)),
                Err(error) => self.complain("pages", error),
            }
        }
    }

    fn free_reported(&self, ram: &GuestRam, ranges: &[(u64, u32)]) {
        if !self.may_free_reported() {
            return;
        }
        for (address, len) in ranges {
            match discard(ram, *address, u64::from(*len)) {
                Ok(freed) => drop(self.counters.reported.fetch_add(freed, Ordering::Relaxed)),
                Err(error) => self.complain("a free range", error),
            }
        }
    }
}
