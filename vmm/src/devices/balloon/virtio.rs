//! A balloon behind a transport.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use super::features::Role;
use super::{BalloonDevice, BalloonHandle, DEVICE_TYPE, Held, QUEUE_SIZE};
use crate::devices::virtio::{ActivateError, Activation, ActiveQueue, Interrupt, VirtioDevice};
use crate::devices::worker::{Handler, NotStarted, Stop, Worker, clear};
use crate::devices::{BrokenQueue, GuestRam};
use crate::state::{DeviceState, Own, QueueState, Snapshot, SnapshotError};

const NAME: &str = "balloon";

/// Token of a request for statistics; the queues' are their places.
const STATS_ASKED: u64 = 100;

/// A balloon and its thread.
#[derive(Debug)]
pub struct Balloon {
    device: Arc<BalloonDevice>,
    worker: Option<Worker<BalloonWorker>>,
    /// For the next `activate`.
    restored: Held,
}

impl Balloon {
    /// Not active yet.
    #[must_use]
    pub fn new(device: BalloonDevice) -> Self {
        Self { device: Arc::new(device), worker: None, restored: Held::default() }
    }

    /// For the control side.
    #[must_use]
    pub fn handle(&self) -> BalloonHandle {
        BalloonHandle(self.device.clone())
    }
}

#[derive(Debug)]
struct BalloonWorker {
    device: Arc<BalloonDevice>,
    ram: GuestRam,
    queues: Vec<(Role, ActiveQueue)>,
    held: Held,
    interrupt: Arc<dyn Interrupt>,
    broken: bool,
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; Role::of_queues(u64::MAX).len()]
    }

    fn features(&self) -> u64 {
        self.device.features()
    }

    fn read_config(&self, offset: usize, len: usize) -> Vec<u8> {
        self.device.read_config(offset, len)
    }

    fn write_config(&mut self, offset: usize, bytes: &[u8]) {
        self.device.write_config(offset, bytes);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let roles = Role::of_queues(activation.features).into_iter().enumerate();
        let queues = roles.map(|(index, role)| Ok((role, activation.take_queue(index)?))).collect::<Result<_, _>>()?;
        let Activation { ram, features, interrupt, .. } = activation;
        self.device.set_acked_features(features);
        self.device.set_interrupt(Some(interrupt.clone()));
        let worker = BalloonWorker {
            device: self.device.clone(),
            ram,
            queues,
            held: std::mem::take(&mut self.restored),
            interrupt,
            broken: false,
        };
        match Worker::start("balloon", worker) {
            Ok(worker) => self.worker = Some(worker),
            Err(NotStarted { source, handler }) => {
                self.restored = handler.held;
                return Err(ActivateError::Io { step: "start the thread of the balloon", source });
            }
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
        self.device.reset();
    }
}

impl Snapshot for Balloon {
    fn suspend(&mut self) -> Result<DeviceState, SnapshotError> {
        let (mut queues, mut held) = (Vec::new(), Held::default());
        if let Some(worker) = self.worker.take() {
            let worker = worker.stop().ok_or(SnapshotError::Lost(NAME))?;
            held = worker.held;
            queues.extend(worker.queues.iter().map(|(_, active)| QueueState::of(active.index, &active.queue)));
        }
        let (features, own) = (self.device.acked_features(), Own::Balloon(self.device.state(held)));
        self.device.reset();
        Ok(DeviceState { device_type: DEVICE_TYPE, features, queues, own })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), SnapshotError> {
        state.check(self, NAME)?;
        let Own::Balloon(own) = &state.own else {
            return Err(SnapshotError::Value { device: NAME, what: "it is none of a balloon" });
        };
        if own.stats_head.is_some_and(|head| head >= QUEUE_SIZE) {
            return Err(SnapshotError::Value { device: NAME, what: "it holds a chain outside its queue" });
        }
        self.device.set_state(own);
        self.restored = Held::restored(own.stats_head);
        Ok(())
    }
}

impl BalloonWorker {
    fn run(&mut self, at: usize, stop: &Stop) {
        while let Some((role, active)) = self.queues.get_mut(at).filter(|_| !self.broken && !stop.is_set()) {
            let index = active.index;
            let done = self.device.process(&self.ram, &mut active.queue, index, *role, &mut self.held);
            let more = done.as_ref().is_ok_and(|batch| batch.more);
            self.after(done.map(|batch| batch.notify), index);
            if !more {
                return;
            }
        }
    }

    fn ask_for_stats(&mut self) {
        let stats = self.queues.iter_mut().find(|(role, _)| *role == Role::Stats);
        if let Some((_, active)) = stats.filter(|_| !self.broken) {
            let index = active.index;
            let done = self.device.ask_for_stats(&self.ram, &mut active.queue, index, &mut self.held);
            self.after(done, index);
        }
    }

    fn after(&mut self, done: Result<bool, BrokenQueue>, index: usize) {
        match done {
            Ok(true) => self.interrupt.queue(index),
            Ok(false) => {}
            Err(error) => {
                self.interrupt.needs_reset(&format_args!("balloon: {error}"));
                self.broken = true;
            }
        }
    }
}

impl Handler for BalloonWorker {
    fn watched(&self) -> Vec<(RawFd, u64)> {
        let kicks = self.queues.iter().zip(0..).map(|((_, active), token)| (active.kick.as_raw_fd(), token));
        kicks.chain([(self.device.stats_asked.as_raw_fd(), STATS_ASKED)]).collect()
    }

    fn begin(&mut self, stop: &Stop) {
        (0..self.queues.len()).for_each(|at| self.run(at, stop));
    }

    fn handle(&mut self, token: u64, stop: &Stop) {
        if token == STATS_ASKED {
            clear(&self.device.stats_asked);
            self.ask_for_stats();
        } else if let Ok(at) = usize::try_from(token) {
            if let Some((_, active)) = self.queues.get(at) {
                clear(&active.kick);
            }
            self.run(at, stop);
        }
    }
}
