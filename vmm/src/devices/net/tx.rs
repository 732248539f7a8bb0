//! Frames from the guest.

use std::io;

use virtio_queue::{DescriptorChain, Queue, QueueT};

use super::device::NetCounters;
use super::{HEADER_LEN, MAX_FRAME, MIN_FRAME, NetPair, Turn, Wait};
use crate::devices::chain::{Buffers, ChainError};
use crate::devices::{BrokenQueue, GuestRam, queue};

/// Frames in one turn.
const BUDGET: usize = 256;

/// Why a frame was not sent.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("no room in the tap device")]
    Full,
    #[error("{0}")]
    Chain(#[from] ChainError),
    #[error("it has {0} bytes, not {MIN_FRAME} to {MAX_FRAME}")]
    Length(usize),
    #[error("it has buffers for the device to fill")]
    Writable,
    #[error("it lies in more than 1024 pieces")]
    Scattered,
    #[error("the kernel refuses it: {0}")]
    Kernel(io::Error),
}

impl NetPair {
    /// Moves frames from the guest to the backend.
    ///
    /// # Errors
    /// When the queue cannot be used any more.
    pub fn process_tx(&mut self, ram: &GuestRam, tx: &mut Queue) -> Result<Turn, BrokenQueue> {
        let (index, before) = (self.tx_queue(), tx.next_used());
        let wait = self.send_frames(ram, tx, index)?;
        Ok(Turn { notify: queue::needs_notification_since(ram, tx, index, before)?, wait })
    }

    fn send_frames(&self, ram: &GuestRam, tx: &mut Queue, index: usize) -> Result<Wait, BrokenQueue> {
        let device = &self.device;
        for _ in 0..BUDGET {
            if let Some(wait) = device.tx_limit.wait_now() {
                return Ok(Wait::Time(wait));
            }
            let Some(chain) = queue::pop(ram, tx, index)? else {
                if queue::enable_notification(ram, tx, index)? {
                    continue;
                }
                return Ok(Wait::Driver);
            };
            let head = chain.head_index();
            match self.send_one(ram, chain) {
                Ok(len) => {
                    device.tx_limit.charge(len as u64);
                    NetCounters::add(&device.counters.tx_frames, 1);
                    NetCounters::add(&device.counters.tx_bytes, len);
                }
                Err(Refused::Full) => {
                    queue::undo_pop(tx);
                    return Ok(Wait::Backend);
                }
                Err(why) => {
                    NetCounters::add(&device.counters.tx_dropped, 1);
                    device.complain("a frame of the guest", why);
                }
            }
            queue::give_back(ram, tx, index, head, 0)?;
        }
        Ok(Wait::Nothing)
    }

    /// Sends the frame in a chain; its bytes without the header.
    fn send_one(&self, ram: &GuestRam, chain: DescriptorChain<&GuestRam>) -> Result<usize, Refused> {
        let buffers = Buffers::parse(ram, chain)?;
        if !buffers.writable.is_empty() {
            return Err(Refused::Writable);
        }
        let frame = buffers.readable;
        let len = frame.len().checked_sub(HEADER_LEN).ok_or(Refused::Length(0))?;
        if !(MIN_FRAME..=MAX_FRAME).contains(&len) {
            return Err(Refused::Length(len));
        }
        if !frame.fits_one_call() {
            return Err(Refused::Scattered);
        }
        match self.backend().send(&frame) {
            Ok(()) => Ok(len),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Refused::Full),
            Err(error) => Err(Refused::Kernel(error)),
        }
    }
}
