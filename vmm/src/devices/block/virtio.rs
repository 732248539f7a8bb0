//! A block device for a transport of our own: each request queue has a thread.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;

use super::{BlockDevice, DEVICE_TYPE, Progress, QUEUE_SIZE};
use crate::devices::GuestRam;
use crate::devices::rate_limiter::RetryTimer;
use crate::devices::virtio::{ActivateError, Activation, ActiveQueue, Interrupt, VirtioDevice};
use crate::devices::worker::{Handler, Stop, Worker, clear};
use crate::state::{DeviceState, Own, QueueState, Snapshot, SnapshotError};

/// Notifications of the queue.
const KICK: u64 = 0;
/// The limiter's time is over.
const TIMER: u64 = 1;
const NAME: &str = "block device";

/// A block device and the threads of its queues.
#[derive(Debug)]
pub struct VirtioBlock {
    name: String,
    device: Arc<BlockDevice>,
    workers: Vec<Worker<RequestQueue>>,
}

/// One queue, on its thread.
#[derive(Debug)]
struct RequestQueue {
    device: Arc<BlockDevice>,
    ram: GuestRam,
    queue: ActiveQueue,
    interrupt: Arc<dyn Interrupt>,
    timer: RetryTimer,
    broken: bool,
}

impl VirtioBlock {
    /// `name` is for threads: short.
    #[must_use]
    pub fn new(name: &str, device: Arc<BlockDevice>) -> Self {
        Self { name: name.to_owned(), device, workers: Vec::new() }
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
        self.device.set_acked_features(activation.features);
        let failed = |source| ActivateError::Io { step: "start a drive's thread", source };
        for queue in activation.queues {
            let handler = RequestQueue {
                device: self.device.clone(),
                ram: activation.ram.clone(),
                interrupt: activation.interrupt.clone(),
                timer: RetryTimer::new().map_err(failed)?,
                broken: false,
                queue,
            };
            let worker = Worker::start(&self.name, handler);
            self.workers.push(worker.map_err(|not_started| failed(not_started.source))?);
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.workers.clear();
    }
}

impl Snapshot for VirtioBlock {
    fn suspend(&mut self) -> Result<DeviceState, SnapshotError> {
        let features = self.device.acked_features();
        let mut queues = Vec::new();
        for worker in std::mem::take(&mut self.workers) {
            let queue = worker.stop().ok_or(SnapshotError::Lost(NAME))?.queue;
            queues.push(QueueState::of(queue.index, &queue.queue));
        }
        Ok(DeviceState { device_type: DEVICE_TYPE, features, queues, own: Own::Nothing })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), SnapshotError> {
        state.check(self, NAME)
    }
}

impl Handler for RequestQueue {
    fn watched(&self) -> Vec<(RawFd, u64)> {
        vec![(self.queue.kick.as_raw_fd(), KICK), (self.timer.as_fd().as_raw_fd(), TIMER)]
    }

    fn begin(&mut self, stop: &Stop) {
        self.run(stop);
    }

    fn handle(&mut self, token: u64, stop: &Stop) {
        match token {
            TIMER => self.timer.clear(),
            _ => clear(&self.queue.kick),
        }
        self.run(stop);
    }
}

impl RequestQueue {
    fn run(&mut self, stop: &Stop) {
        while !self.broken && !stop.is_set() {
            let ActiveQueue { index, queue, .. } = &mut self.queue;
            match self.device.process_next(&self.ram, queue, *index) {
                Ok(Progress::Idle) => return,
                Ok(Progress::Throttled(wait)) => return self.timer.arm(wait),
                Ok(Progress::Done { notify: true }) => self.interrupt.queue(*index),
                Ok(Progress::Done { notify: false }) => {}
                Err(error) => {
                    self.broken = true;
                    self.interrupt.needs_reset(&format_args!("block device: {error}"));
                }
            }
        }
    }
}
