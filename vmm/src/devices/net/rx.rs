//! Frames for the guest.

use std::collections::VecDeque;
use std::io;

use virtio_queue::{Queue, QueueT};
use vm_memory::VolatileSlice;

use super::device::NetCounters;
use super::features::{GUEST_LARGE, MRG_RXBUF};
use super::{HEADER_LEN, MAX_FRAME, NetDevice, NetPair, Turn, Wait};
use crate::devices::chain::Buffers;
use crate::devices::slices::GuestSlices;
use crate::devices::{BrokenQueue, GuestRam, queue};

/// Frames in one turn.
const BUDGET: usize = 256;
/// Room that is collected while frames are small: an Ethernet frame of the usual length.
const USUAL_ROOM: usize = HEADER_LEN + 1514;
/// Small frames in a row after which no large one is expected any more.
const LARGE_EXPECTED: u8 = 32;
/// Room that is collected when frames are not merged from segments: a jumbo frame.
const SMALL_ROOM: usize = HEADER_LEN + 9018;
/// Where `num_buffers` stands in the header.
const NUM_BUFFERS_OFFSET: usize = 10;

/// Chains that were taken from the queue and not used yet.
struct Room<'a, 'q> {
    ram: &'a GuestRam,
    queue: &'q mut Queue,
    index: usize,
    held: VecDeque<(u16, GuestSlices<'a>)>,
    bytes: usize,
}

impl<'a> Room<'a, '_> {
    /// Takes chains until there is room for `bytes`, or one chain when frames are not merged.
    fn fill(&mut self, device: &NetDevice, bytes: usize, merged: bool) -> Result<(), BrokenQueue> {
        while self.bytes < bytes && (merged || self.held.is_empty()) && self.held.len() < usize::from(self.queue.size())
        {
            let Some(chain) = queue::pop(self.ram, self.queue, self.index)? else {
                if queue::enable_notification(self.ram, self.queue, self.index)? {
                    continue;
                }
                return Ok(());
            };
            let head = chain.head_index();
            let refused = match Buffers::parse(self.ram, chain) {
                Ok(buffers) if buffers.readable.is_empty() && buffers.writable.len() >= HEADER_LEN => {
                    self.bytes += buffers.writable.len();
                    self.held.push_back((head, buffers.writable));
                    continue;
                }
                Ok(_) => "it is shorter than a header, or not for the device to fill".to_owned(),
                Err(error) => error.to_string(),
            };
            device.complain("a receive buffer of the guest", refused);
            if !self.held.is_empty() {
                // Given back when its turn comes: what is held must be the end of what was taken.
                self.held.push_back((head, GuestSlices::default()));
                continue;
            }
            queue::give_back(self.ram, self.queue, self.index, head, 0)?;
        }
        Ok(())
    }

    fn slices(&self) -> GuestSlices<'a> {
        let mut all = GuestSlices::default();
        for (_, slices) in &self.held {
            all.extend(slices);
        }
        all
    }

    fn is_whole_queue(&self) -> bool {
        self.held.len() >= usize::from(self.queue.size())
    }

    /// Gives the first chains back with the frame of `len` bytes that lies in them, at most `self.bytes`.
    fn commit(&mut self, len: usize) -> Result<(), BrokenQueue> {
        let mut used = Vec::with_capacity(2);
        let mut left = len;
        let mut header = GuestSlices::default();
        while left > 0 {
            let Some((head, slices)) = self.held.pop_front() else {
                break;
            };
            if header.is_empty() {
                header = slices.range(NUM_BUFFERS_OFFSET, 2);
            }
            self.bytes -= slices.len();
            let take = slices.len().min(left);
            left -= take;
            used.push((head, take as u32));
        }
        // A queue has at most 32768 chains. Each is at least as long as a header, so this lies in the first.
        let _ = header.write_all(&(used.len() as u16).to_le_bytes());
        queue::give_back_together(self.ram, self.queue, self.index, &used)
    }

    /// Puts the chains that no frame came for back.
    fn undo(mut self) {
        while self.held.pop_back().is_some() {
            queue::undo_pop(self.queue);
        }
    }
}

impl NetPair {
    /// Moves frames from the backend to the guest. A frame of several buffers becomes visible as a whole.
    ///
    /// # Errors
    /// When the queue cannot be used any more.
    pub fn process_rx(&mut self, ram: &GuestRam, rx: &mut Queue) -> Result<Turn, BrokenQueue> {
        let (index, before) = (self.rx_queue(), rx.next_used());
        let mut room = Room { ram, queue: rx, index, held: VecDeque::new(), bytes: 0 };
        let wait = self.receive_frames(&mut room)?;
        room.undo();
        Ok(Turn { notify: queue::needs_notification_since(ram, rx, index, before)?, wait })
    }

    fn receive_frames(&mut self, room: &mut Room<'_, '_>) -> Result<Wait, BrokenQueue> {
        let device = self.device.clone();
        let merged = device.accepted(MRG_RXBUF);
        let most = if device.accepted(GUEST_LARGE) { HEADER_LEN + MAX_FRAME } else { SMALL_ROOM };
        for _ in 0..BUDGET {
            if let Some(wait) = device.rx_limit.wait_now() {
                return Ok(Wait::Time(wait));
            }
            // Chains for the largest frame are many: taken for each small one and put back, they would cost more than it.
            let usual = if self.large_expected > 0 { most } else { USUAL_ROOM };
            room.fill(&device, usual.max(self.pending.len()), merged)?;
            if room.held.is_empty() {
                return Ok(Wait::Driver);
            }
            let len = if self.pending.is_empty() {
                match self.receive_one(&room.slices()) {
                    Ok(len) => len,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Wait::Backend),
                    Err(error) => {
                        device.complain("a frame for the guest", error);
                        return Ok(Wait::Backend);
                    }
                }
            } else if self.pending.len() <= room.bytes {
                let len = if room.slices().write_all(&self.pending) { self.pending.len() } else { 0 };
                self.pending.clear();
                len
            } else if merged && !room.is_whole_queue() {
                return Ok(Wait::Driver);
            } else {
                self.pending.clear();
                0
            };
            if !self.pending.is_empty() {
                continue;
            }
            if len < HEADER_LEN {
                NetCounters::add(&device.counters.rx_dropped, 1);
                device.complain("a frame for the guest", "the guest has no buffer that it fits in");
                continue;
            }
            room.commit(len)?;
            self.large_expected = if len > USUAL_ROOM { LARGE_EXPECTED } else { self.large_expected.saturating_sub(1) };
            device.rx_limit.charge((len - HEADER_LEN) as u64);
            NetCounters::add(&device.counters.rx_frames, 1);
            NetCounters::add(&device.counters.rx_bytes, len - HEADER_LEN);
        }
        Ok(Wait::Nothing)
    }

    /// Receives a frame into the guest's buffers. One that is longer goes to `pending`; 0 for one that nothing can hold.
    fn receive_one(&mut self, buffers: &GuestSlices<'_>) -> io::Result<usize> {
        let len = {
            let mut all = buffers.clone();
            all.push(VolatileSlice::from(self.overflow.as_mut_slice()));
            self.device.backends[usize::from(self.index)].receive(&all)?
        };
        if len > HEADER_LEN + MAX_FRAME {
            return Ok(0);
        }
        if let Some(behind) = len.checked_sub(buffers.len()).filter(|behind| *behind > 0) {
            self.pending.resize(buffers.len(), 0);
            if !buffers.read_exact(&mut self.pending) {
                self.pending.clear();
                return Ok(0);
            }
            self.pending.extend_from_slice(&self.overflow[..behind]);
        }
        Ok(len)
    }
}
