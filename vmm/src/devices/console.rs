//! virtio-console (virtio 1.2, section 5.3) with one port: what the guest prints. Nobody types.

use std::fmt;
use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use super::chain::Buffers;
use super::limit::LogLimit;
use super::virtio::{ActivateError, Activation, ActiveQueue, Interrupt, VirtioDevice};
use super::worker::{Handler, NotStarted, Stop, Worker, clear};
use super::{BrokenQueue, GuestRam, RING_FEATURES, queue};

/// Virtio device type of a console.
pub const DEVICE_TYPE: u32 = 3;
/// Index of the queue that carries what the guest prints.
pub const TX_QUEUE: usize = 1;
const QUEUE_SIZE: u16 = 64;
/// Bytes copied at once.
const PIECE: usize = 4096;
/// Most bytes taken from one buffer; Linux sends a line.
const MAX_BUFFER: usize = 1 << 20;

/// Where the guest's words go.
type Output = Arc<Mutex<Box<dyn Write + Send>>>;

/// A console and its thread.
pub struct VirtioConsole {
    output: Output,
    worker: Option<Worker<Printer>>,
    log: Arc<Mutex<LogLimit>>,
}

/// The transmit queue, on its thread.
struct Printer {
    output: Output,
    ram: GuestRam,
    queue: ActiveQueue,
    interrupt: Arc<dyn Interrupt>,
    broken: bool,
    /// Outlives the driver's resets.
    log: Arc<Mutex<LogLimit>>,
}

impl fmt::Debug for VirtioConsole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioConsole").field("active", &self.worker.is_some()).finish_non_exhaustive()
    }
}

impl VirtioConsole {
    /// Writes what the guest prints to `output`, which keeps its own errors.
    #[must_use]
    pub fn new(output: Box<dyn Write + Send>) -> Self {
        Self { output: Arc::new(Mutex::new(output)), worker: None, log: Arc::default() }
    }
}

impl VirtioDevice for VirtioConsole {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    fn features(&self) -> u64 {
        RING_FEATURES
    }

    /// No feature that fills it is offered.
    fn read_config(&self, _offset: usize, len: usize) -> Vec<u8> {
        vec![0; len]
    }

    fn write_config(&mut self, _offset: usize, _bytes: &[u8]) {}

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let queue = activation.take_queue(TX_QUEUE)?;
        let Activation { ram, interrupt, .. } = activation;
        let output = self.output.clone();
        let printer = Printer { output, ram, queue, interrupt, broken: false, log: self.log.clone() };
        let worker = Worker::start("console", printer);
        let failed =
            |failed: NotStarted<_>| ActivateError::Io { step: "start the console's thread", source: failed.source };
        self.worker = Some(worker.map_err(failed)?);
        Ok(())
    }

    /// The guest's last words may still be in the queue.
    fn reset(&mut self) {
        if let Some(mut printer) = self.worker.take().and_then(Worker::stop) {
            printer.print();
        }
    }
}

impl Printer {
    fn print(&mut self) {
        // A whole queue at a time: a guest that never stops must not keep the thread from ending.
        for _ in 0..QUEUE_SIZE {
            match self.print_next() {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    self.broken = true;
                    self.interrupt.needs_reset(&format_args!("console device: {error}"));
                    return;
                }
            }
        }
        // The rest: as if the driver had notified again.
        let _ = self.queue.kick.write(1);
    }

    /// One buffer; false when there is none.
    fn print_next(&mut self) -> Result<bool, BrokenQueue> {
        let requests = &mut self.queue.queue;
        let Some(chain) = queue::pop(&self.ram, requests, TX_QUEUE)? else {
            return queue::enable_notification(&self.ram, requests, TX_QUEUE);
        };
        let head = chain.head_index();
        match Buffers::parse(&self.ram, chain) {
            Ok(buffers) => {
                let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
                let len = buffers.readable.len().min(MAX_BUFFER);
                for start in (0..len).step_by(PIECE) {
                    let mut bytes = vec![0; PIECE.min(len - start)];
                    if buffers.readable.range(start, bytes.len()).read_exact(&mut bytes) {
                        // The output tells of its errors itself.
                        let _ = output.write_all(&bytes);
                    }
                }
            }
            Err(error) => {
                let allowed = self.log.lock().unwrap_or_else(PoisonError::into_inner).allow();
                if let Some(suppressed) = allowed {
                    tracing::warn!(suppressed, "dropped what the guest's console sent: {error}");
                }
            }
        }
        queue::give_back(&self.ram, requests, TX_QUEUE, head, 0)?;
        if queue::needs_notification(&self.ram, requests, TX_QUEUE)? {
            self.interrupt.queue(TX_QUEUE);
        }
        Ok(true)
    }
}

impl Handler for Printer {
    fn watched(&self) -> Vec<(RawFd, u64)> {
        vec![(self.queue.kick.as_raw_fd(), 0)]
    }

    fn handle(&mut self, _token: u64, _stop: &Stop) {
        clear(&self.queue.kick);
        if !self.broken {
            self.print();
        }
    }
}
