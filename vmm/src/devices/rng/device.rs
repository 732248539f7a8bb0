//! The virtio-rng device.

use std::sync::{Arc, Mutex, PoisonError};

use virtio_queue::Queue;

use crate::devices::chain::Buffers;
use crate::devices::limit::LogLimit;
use crate::devices::slices::GuestSlices;
use crate::devices::{BrokenQueue, GuestRam, RING_FEATURES, queue};

/// Most bytes one request gets; the driver asks again for more.
pub const MAX_REQUEST: usize = 4096;

/// What one call of [`RngDevice::process_next`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The queue is empty, and the driver will notify of the next request.
    Idle,
    /// One request is answered.
    Done {
        /// The driver wants an interrupt.
        notify: bool,
    },
}

/// A virtio entropy device. It has no state of its own; clones complain together.
#[derive(Debug, Clone, Default)]
pub struct RngDevice {
    log: Arc<Mutex<LogLimit>>,
}

impl RngDevice {
    /// Feature bits offered to the driver.
    #[must_use]
    pub fn features(&self) -> u64 {
        RING_FEATURES
    }

    /// Answers the next request.
    ///
    /// # Errors
    /// When the queue cannot be used any more.
    pub fn process_next(&mut self, ram: &GuestRam, requests: &mut Queue) -> Result<Progress, BrokenQueue> {
        let chain = loop {
            if let Some(chain) = queue::pop(ram, requests, 0)? {
                break chain;
            }
            if !queue::enable_notification(ram, requests, 0)? {
                return Ok(Progress::Idle);
            }
        };
        let head = chain.head_index();
        let written = match Buffers::parse(ram, chain) {
            Ok(buffers) if buffers.readable.is_empty() => self.fill(&buffers.writable),
            Ok(_) => self.complain("it has buffers for the device to read"),
            Err(error) => self.complain(error),
        };
        queue::give_back(ram, requests, 0, head, written as u32)?;
        Ok(Progress::Done { notify: queue::needs_notification(ram, requests, 0)? })
    }

    /// The bytes written.
    fn fill(&mut self, buffers: &GuestSlices<'_>) -> usize {
        let wanted = buffers.len().min(MAX_REQUEST);
        let mut done = 0;
        while done < wanted {
            match buffers.range(done, wanted - done).fill_random() {
                Ok(count) => done += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                // The host's pool is initialised long before a guest starts.
                Err(error) => {
                    self.complain(error);
                    break;
                }
            }
        }
        done
    }

    fn complain(&mut self, why: impl std::fmt::Display) -> usize {
        let allowed = self.log.lock().unwrap_or_else(PoisonError::into_inner).allow();
        if let Some(suppressed) = allowed {
            tracing::warn!(suppressed, "dropped a request of the guest for random bytes: {why}");
        }
        0
    }
}
