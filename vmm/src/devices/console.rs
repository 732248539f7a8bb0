//! virtio-console (virtio 1.2, section 5.3) with one port: what the guest prints and, where somebody may type, what is typed.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use super::chain::Buffers;
use super::limit::LogLimit;
use super::virtio::{ActivateError, Activation, ActiveQueue, Interrupt, VirtioDevice};
use super::worker::{Handler, NotStarted, Stop, Worker, clear, new_eventfd};
use super::{BrokenQueue, GuestRam, RING_FEATURES, queue};
use crate::state::{DeviceState, Own, QueueState, Snapshot, SnapshotError};
use vmm_sys_util::eventfd::EventFd;

/// Virtio device type of a console.
pub const DEVICE_TYPE: u32 = 3;
/// Index of the queue that carries what is typed.
pub const RX_QUEUE: usize = 0;
/// Index of the queue that carries what the guest prints.
pub const TX_QUEUE: usize = 1;
const QUEUE_SIZE: u16 = 64;
const NAME: &str = "console";
/// Bytes copied at once.
const PIECE: usize = 4096;
/// Most bytes taken from one buffer; Linux sends a line.
const MAX_BUFFER: usize = 1 << 20;

/// Bytes that wait for a guest that does not read; as with any terminal, what is typed beyond is lost.
const MAX_TYPED: usize = 4096;
/// Tokens of what the thread watches.
const PRINTED: u64 = 0;
const ROOM: u64 = 1;
const TYPED: u64 = 2;

/// Where the guest's words go.
type Output = Arc<Mutex<Box<dyn Write + Send>>>;

/// Types on a console, from any thread. Clones type on the same one.
#[derive(Debug, Clone)]
pub struct Keyboard {
    typed: Arc<Mutex<VecDeque<u8>>>,
    wake: Arc<EventFd>,
}

impl Keyboard {
    /// Not connected to a console yet.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self { typed: Arc::default(), wake: Arc::new(new_eventfd()?) })
    }

    /// Types `bytes`; gives how many there was room for.
    pub fn press(&self, bytes: &[u8]) -> usize {
        let mut typed = self.typed.lock().unwrap_or_else(PoisonError::into_inner);
        let count = bytes.len().min(MAX_TYPED.saturating_sub(typed.len()));
        typed.extend(&bytes[..count]);
        // Fails only when its counter is full, and then it is readable anyway.
        let _ = self.wake.write(1);
        count
    }

    /// The next bytes, at most `count`, without taking them.
    fn peek(&self, count: usize) -> Vec<u8> {
        self.typed.lock().unwrap_or_else(PoisonError::into_inner).iter().take(count).copied().collect()
    }

    fn take(&self, count: usize) {
        self.typed.lock().unwrap_or_else(PoisonError::into_inner).drain(..count);
    }
}

/// A console and its thread.
pub struct VirtioConsole {
    output: Output,
    keyboard: Option<Keyboard>,
    worker: Option<Worker<Printer>>,
    log: Arc<Mutex<LogLimit>>,
}

/// The queues, on their thread.
struct Printer {
    /// Where somebody may type.
    keyboard: Option<Keyboard>,
    /// The queue of the guest's buffers for what is typed.
    room: Option<ActiveQueue>,
    output: Output,
    ram: GuestRam,
    features: u64,
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
        Self { output: Arc::new(Mutex::new(output)), keyboard: None, worker: None, log: Arc::default() }
    }

    /// With a keyboard.
    #[must_use]
    pub fn with_keyboard(self, keyboard: Option<Keyboard>) -> Self {
        Self { keyboard, ..self }
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
        let room = activation.take_queue(RX_QUEUE);
        let room = if self.keyboard.is_some() { Some(room?) } else { room.ok() };
        let Activation { ram, features, interrupt, .. } = activation;
        let (keyboard, output, log) = (self.keyboard.clone(), self.output.clone(), self.log.clone());
        let printer = Printer { keyboard, room, output, ram, features, queue, interrupt, broken: false, log };
        let worker = Worker::start(NAME, printer);
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

impl Snapshot for VirtioConsole {
    /// What was typed and not read is the keyboard's, and not saved.
    fn suspend(&mut self) -> Result<DeviceState, SnapshotError> {
        let mut state = DeviceState { device_type: DEVICE_TYPE, features: 0, queues: Vec::new(), own: Own::Nothing };
        if let Some(worker) = self.worker.take() {
            let printer = worker.stop().ok_or(SnapshotError::Lost(NAME))?;
            state.features = printer.features;
            let room = printer.room.iter().map(|active| QueueState::of(RX_QUEUE, &active.queue));
            state.queues.extend(room.chain([QueueState::of(TX_QUEUE, &printer.queue.queue)]));
        }
        Ok(state)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), SnapshotError> {
        state.check(self, NAME)
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

    /// Hands over what is typed, as far as the guest has room for it.
    fn hand_over(&mut self) {
        let (Some(keyboard), Some(active), false) = (&self.keyboard, &mut self.room, self.broken) else { return };
        for _ in 0..QUEUE_SIZE {
            match hand_over_next(&self.ram, keyboard, active, self.interrupt.as_ref()) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    self.broken = true;
                    self.interrupt.needs_reset(&format_args!("console device: {error}"));
                    return;
                }
            }
        }
        let _ = keyboard.wake.write(1);
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

/// Fills one buffer; false when nothing is typed or there is no room.
fn hand_over_next(
    ram: &GuestRam,
    keyboard: &Keyboard,
    active: &mut ActiveQueue,
    interrupt: &dyn Interrupt,
) -> Result<bool, BrokenQueue> {
    let typed = keyboard.peek(PIECE);
    if typed.is_empty() {
        return Ok(false);
    }
    let Some(chain) = queue::pop(ram, &mut active.queue, RX_QUEUE)? else {
        return queue::enable_notification(ram, &mut active.queue, RX_QUEUE);
    };
    let head = chain.head_index();
    // A chain that is none comes back empty, and the next one is tried.
    let written = match Buffers::parse(ram, chain) {
        Ok(buffers) => {
            let count = buffers.writable.len().min(typed.len());
            if buffers.writable.range(0, count).write_all(&typed[..count]) { count } else { 0 }
        }
        Err(_) => 0,
    };
    keyboard.take(written);
    queue::give_back(ram, &mut active.queue, RX_QUEUE, head, written as u32)?;
    if queue::needs_notification(ram, &mut active.queue, RX_QUEUE)? {
        interrupt.queue(RX_QUEUE);
    }
    Ok(true)
}

impl Handler for Printer {
    fn watched(&self) -> Vec<(RawFd, u64)> {
        let mut all = vec![(self.queue.kick.as_raw_fd(), PRINTED)];
        if let (Some(keyboard), Some(active)) = (&self.keyboard, &self.room) {
            all.extend([(active.kick.as_raw_fd(), ROOM), (keyboard.wake.as_raw_fd(), TYPED)]);
        }
        all
    }

    fn begin(&mut self, _stop: &Stop) {
        self.print();
        self.hand_over();
    }

    fn handle(&mut self, token: u64, _stop: &Stop) {
        match (token, &self.keyboard, &self.room) {
            (PRINTED, ..) => {
                clear(&self.queue.kick);
                if !self.broken {
                    self.print();
                }
            }
            (ROOM, _, Some(active)) => clear(&active.kick),
            (TYPED, Some(keyboard), _) => clear(&keyboard.wake),
            _ => {}
        }
        if token != PRINTED {
            self.hand_over();
        }
    }
}
