//! An entropy device behind a transport.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use super::{DEVICE_TYPE, Progress, QUEUE_SIZE, RngDevice};
use crate::devices::GuestRam;
use crate::devices::virtio::{ActivateError, Activation, ActiveQueue, Interrupt, VirtioDevice};
use crate::devices::worker::{Handler, NotStarted, Stop, Worker, clear};
use crate::state::{DeviceState, Own, QueueState, Snapshot, SnapshotError};

const NAME: &str = "entropy device";

/// An entropy device and its thread.
#[derive(Debug, Default)]
pub struct Rng {
    device: RngDevice,
    worker: Option<Worker<RngWorker>>,
}

#[derive(Debug)]
struct RngWorker {
    device: RngDevice,
    ram: GuestRam,
    features: u64,
    requests: ActiveQueue,
    interrupt: Arc<dyn Interrupt>,
    broken: bool,
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        self.device.features()
    }

    fn read_config(&self, _offset: usize, len: usize) -> Vec<u8> {
        vec![0; len]
    }

    fn write_config(&mut self, _offset: usize, _bytes: &[u8]) {}

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let requests = activation.take_queue(0)?;
        let Activation { ram, features, interrupt, .. } = activation;
        let worker = RngWorker { device: self.device.clone(), ram, features, requests, interrupt, broken: false };
        let started = Worker::start("rng", worker);
        let step = "start the thread of the entropy device";
        let failed = |failed: NotStarted<_>| ActivateError::Io { step, source: failed.source };
        self.worker = Some(started.map_err(failed)?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}

impl Snapshot for Rng {
    fn suspend(&mut self) -> Result<DeviceState, SnapshotError> {
        let mut state = DeviceState { device_type: DEVICE_TYPE, features: 0, queues: Vec::new(), own: Own::Nothing };
        if let Some(worker) = self.worker.take() {
            let worker = worker.stop().ok_or(SnapshotError::Lost(NAME))?;
            state.features = worker.features;
            state.queues.push(QueueState::of(0, &worker.requests.queue));
        }
        Ok(state)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), SnapshotError> {
        state.check(self, NAME)
    }
}

impl RngWorker {
    fn run(&mut self, stop: &Stop) {
        while !stop.is_set() && !self.broken {
            match self.device.process_next(&self.ram, &mut self.requests.queue) {
                Ok(Progress::Idle) => return,
                Ok(Progress::Done { notify: true }) => self.interrupt.queue(0),
                Ok(Progress::Done { notify: false }) => {}
                Err(error) => {
                    self.interrupt.needs_reset(&format_args!("entropy device: {error}"));
                    self.broken = true;
                }
            }
        }
    }
}

impl Handler for RngWorker {
    fn watched(&self) -> Vec<(RawFd, u64)> {
        vec![(self.requests.kick.as_raw_fd(), 0)]
    }

    fn begin(&mut self, stop: &Stop) {
        self.run(stop);
    }

    fn handle(&mut self, _token: u64, stop: &Stop) {
        clear(&self.requests.kick);
        self.run(stop);
    }
}
