//! A block device for a transport of our own: each request queue has a thread.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;

use super::{BlockDevice, BlockIo, DEVICE_TYPE, QUEUE_SIZE};
use crate::devices::rate_limiter::RetryTimer;
use crate::devices::virtio::{ActivateError, Activation, ActiveQueue, Interrupt, VirtioDevice};
use crate::devices::worker::{Handler, NotStarted, Stop, Worker, clear};
use crate::devices::{BrokenQueue, GuestRam};
use crate::state::{DeviceState, Own, QueueState, Snapshot, SnapshotError};

/// Notifications of the queue.
const KICK: u64 = 0;
/// The limiter's time is over.
const TIMER: u64 = 1;
/// Requests are done.
const DONE: u64 = 2;
const NAME: &str = "block device";

/// A block device and the threads of its queues.
#[derive(Debug)]
pub struct VirtioBlock {
    name: String,
    device: Arc<BlockDevice>,
    /// By queue, of those that no thread has. Made once: a device that is activated in a jail can make none.
    idle: Vec<Option<BlockIo>>,
    workers: Vec<Worker<RequestQueue>>,
}

/// One queue, on its thread.
#[derive(Debug)]
struct RequestQueue {
    device: Arc<BlockDevice>,
    io: BlockIo,
    ram: GuestRam,
    queue: ActiveQueue,
    interrupt: Arc<dyn Interrupt>,
    timer: RetryTimer,
    broken: bool,
}

impl VirtioBlock {
    /// `name` is for threads: short. The device does its requests by io_uring where it can be made here and now.
    #[must_use]
    pub fn new(name: &str, device: Arc<BlockDevice>) -> Self {
        Self::with_io(name, device, BlockIo::new)
    }

    /// What does the requests of each queue is `io`'s.
    #[must_use]
    pub fn with_io(name: &str, device: Arc<BlockDevice>, io: impl Fn() -> BlockIo) -> Self {
        let idle = (0..device.queues()).map(|_| Some(io())).collect();
        Self { name: name.to_owned(), device, idle, workers: Vec::new() }
    }

    fn start(&mut self, queue: ActiveQueue, ram: GuestRam, interrupt: Arc<dyn Interrupt>) -> std::io::Result<()> {
        let (index, timer) = (queue.index, RetryTimer::new()?);
        // One whose thread panicked is lost.
        let io = self.idle.get_mut(index).and_then(Option::take).unwrap_or_else(BlockIo::synchronous);
        let device = self.device.clone();
        match Worker::start(&self.name, RequestQueue { device, io, ram, queue, interrupt, timer, broken: false }) {
            Ok(worker) => {
                self.workers.push(worker);
                Ok(())
            }
            Err(NotStarted { source, handler }) => {
                self.keep(index, handler.io);
                Err(source)
            }
        }
    }

    fn keep(&mut self, index: usize, io: BlockIo) {
        if let Some(place) = self.idle.get_mut(index) {
            *place = Some(io);
        }
    }
}

impl VirtioDevice for VirtioBlock {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; usize::from(self.device.queues())]
    }

    fn features(&self) -> u64 {
        self.device.features()
    }

    fn read_config(&self, offset: usize, len: usize) -> Vec<u8> {
        self.device.read_config(offset, len)
    }

    fn write_config(&mut self, _offset: usize, _bytes: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { ram, features, queues, interrupt } = activation;
        self.device.set_acked_features(features);
        for queue in queues {
            self.start(queue, ram.clone(), interrupt.clone())
                .map_err(|source| ActivateError::Io { step: "start a drive's thread", source })?;
        }
        Ok(())
    }

    fn reset(&mut self) {
        for worker in std::mem::take(&mut self.workers) {
            if let Some(queue) = worker.stop() {
                self.keep(queue.queue.index, queue.io);
            }
        }
    }
}

impl Snapshot for VirtioBlock {
    fn suspend(&mut self) -> Result<DeviceState, SnapshotError> {
        let features = self.device.acked_features();
        let mut queues = Vec::new();
        for worker in std::mem::take(&mut self.workers) {
            let RequestQueue { queue, io, .. } = worker.stop().ok_or(SnapshotError::Lost(NAME))?;
            queues.push(QueueState::of(queue.index, &queue.queue));
            self.keep(queue.index, io);
        }
        Ok(DeviceState { device_type: DEVICE_TYPE, features, queues, own: Own::Nothing })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), SnapshotError> {
        state.check(self, NAME)
    }
}

impl Handler for RequestQueue {
    fn watched(&self) -> Vec<(RawFd, u64)> {
        let mut watched = vec![(self.queue.kick.as_raw_fd(), KICK), (self.timer.as_fd().as_raw_fd(), TIMER)];
        watched.extend(self.io.event().map(|event| (event, DONE)));
        watched
    }

    fn begin(&mut self, stop: &Stop) {
        self.run(stop);
    }

    fn handle(&mut self, token: u64, stop: &Stop) {
        match token {
            TIMER => self.timer.clear(),
            KICK => clear(&self.queue.kick),
            _ => {}
        }
        self.run(stop);
    }

    /// The kernel must be done with guest memory, and the driver may look at the queue again.
    fn end(&mut self) {
        if !self.broken {
            let ActiveQueue { index, queue, .. } = &mut self.queue;
            match self.device.finish(&self.ram, queue, *index, &mut self.io) {
                Ok(true) => self.interrupt.queue(*index),
                Ok(false) => {}
                Err(error) => self.give_up(&error),
            }
        }
        self.io.drain();
    }
}

impl RequestQueue {
    fn run(&mut self, stop: &Stop) {
        while !self.broken && !stop.is_set() {
            let ActiveQueue { index, queue, .. } = &mut self.queue;
            match self.device.process(&self.ram, queue, *index, &mut self.io) {
                Ok(turn) => {
                    if turn.notify {
                        self.interrupt.queue(*index);
                    }
                    if let Some(wait) = turn.wait {
                        return self.timer.arm(wait);
                    }
                    if !turn.more {
                        return;
                    }
                }
                Err(error) => self.give_up(&error),
            }
        }
        if self.broken {
            self.io.discard();
        }
    }

    fn give_up(&mut self, error: &BrokenQueue) {
        self.broken = true;
        self.interrupt.needs_reset(&format_args!("block device: {error}"));
    }
}
