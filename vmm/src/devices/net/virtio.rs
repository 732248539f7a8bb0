//! A network device behind a transport: one thread for each queue pair.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;

use super::features::MQ;
use super::{CONTROL_QUEUE_SIZE, DEVICE_TYPE, NetDevice, NetPair, QUEUE_SIZE, Turn, Wait};
use crate::devices::rate_limiter::RetryTimer;
use crate::devices::virtio::{ActivateError, Activation, ActiveQueue, Interrupt, VirtioDevice};
use crate::devices::worker::{Handler, Stop, Worker, clear};
use crate::devices::{BrokenQueue, GuestRam};
use crate::state::{DeviceState, NetState, Own, QueueState, Snapshot, SnapshotError};

const NAME: &str = "network device";

const RX: u64 = 0;
const TX: u64 = 1;
const CONTROL: u64 = 2;
const BACKEND: u64 = 3;
const RX_TIMER: u64 = 4;
const TX_TIMER: u64 = 5;

/// A network device and its threads.
#[derive(Debug)]
pub struct Net {
    device: Arc<NetDevice>,
    workers: Vec<Worker<PairWorker>>,
    /// For the next `activate`.
    restored: Option<NetState>,
}

impl Net {
    /// Not active yet.
    #[must_use]
    pub fn new(device: NetDevice) -> Self {
        Self { device: Arc::new(device), workers: Vec::new(), restored: None }
    }

    /// The device, for its counters and limits.
    #[must_use]
    pub fn device(&self) -> Arc<NetDevice> {
        self.device.clone()
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let mut sizes = vec![QUEUE_SIZE; usize::from(self.device.pairs()) * 2];
        sizes.push(CONTROL_QUEUE_SIZE);
        sizes
    }

    fn features(&self) -> u64 {
        self.device.features()
    }

    fn read_config(&self, offset: usize, len: usize) -> Vec<u8> {
        self.device.read_config(offset, len)
    }

    fn write_config(&mut self, _offset: usize, _bytes: &[u8]) {}

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let features = activation.features;
        let failed = |step| move |source| ActivateError::Io { step, source };
        self.device.set_acked_features(features).map_err(failed("switch the tap device to the guest's offloads"))?;
        if let Some(state) = self.restored.take() {
            self.device.set_state(&state).map_err(failed("switch the tap device to the saved state"))?;
        }
        let mut control = activation.take_queue(self.device.control_queue(features)).ok();
        let pairs = if features & MQ == 0 { 1 } else { self.device.pairs() };
        for index in 0..pairs {
            let pair = NetPair::new(self.device.clone(), index);
            let rx = activation.take_queue(pair.rx_queue());
            let tx = activation.take_queue(pair.tx_queue());
            let (rx, tx) = match (rx, tx) {
                (Ok(rx), Ok(tx)) => (rx, tx),
                // A driver need not set up more pairs than it uses.
                _ if index > 0 => continue,
                (rx, tx) => (rx?, tx?),
            };
            let ram = activation.ram.clone();
            let worker = PairWorker::new(pair, ram, [rx, tx], control.take(), activation.interrupt.clone())
                .and_then(|worker| Ok(Worker::start(&format!("{}-{index}", self.device.config.name), worker)?))
                .map_err(failed("start the thread of a network queue"))?;
            self.workers.push(worker);
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.workers.clear();
        self.device.reset();
    }
}

impl Snapshot for Net {
    fn suspend(&mut self) -> Result<DeviceState, SnapshotError> {
        let (features, own) = (self.device.acked_features(), Own::Net(self.device.state()));
        let mut queues = Vec::new();
        for worker in std::mem::take(&mut self.workers) {
            let pair = worker.stop().ok_or(SnapshotError::Lost(NAME))?;
            let active = [Some(&pair.rx.active), Some(&pair.tx.active), pair.control.as_ref()];
            queues.extend(active.into_iter().flatten().map(|active| QueueState::of(active.index, &active.queue)));
        }
        self.device.reset();
        Ok(DeviceState { device_type: DEVICE_TYPE, features, queues, own })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), SnapshotError> {
        state.check(self, NAME)?;
        let Own::Net(own) = &state.own else {
            return Err(SnapshotError::Value { device: NAME, what: "it is none of a network device" });
        };
        self.restored = Some(*own);
        Ok(())
    }
}

/// One direction of a pair.
#[derive(Debug)]
struct Direction {
    active: ActiveQueue,
    wait: Wait,
    timer: RetryTimer,
    /// Its rings are beyond use.
    broken: bool,
}

/// What runs on the thread of a pair; that of the first serves the control queue too.
#[derive(Debug)]
struct PairWorker {
    pair: NetPair,
    ram: GuestRam,
    rx: Direction,
    tx: Direction,
    control: Option<ActiveQueue>,
    control_broken: bool,
    interrupt: Arc<dyn Interrupt>,
}

impl PairWorker {
    fn new(
        pair: NetPair,
        ram: GuestRam,
        [rx, tx]: [ActiveQueue; 2],
        control: Option<ActiveQueue>,
        interrupt: Arc<dyn Interrupt>,
    ) -> std::io::Result<Self> {
        let direction = |active| {
            Ok::<_, std::io::Error>(Direction { active, wait: Wait::Nothing, timer: RetryTimer::new()?, broken: false })
        };
        let (rx, tx) = (direction(rx)?, direction(tx)?);
        Ok(Self { pair, ram, rx, tx, control, control_broken: false, interrupt })
    }

    /// Takes turns until both directions wait for something.
    fn run(&mut self, stop: &Stop) {
        while !stop.is_set() && (self.rx.wait == Wait::Nothing || self.tx.wait == Wait::Nothing) {
            if self.tx.wait == Wait::Nothing {
                let turn = self.pair.process_tx(&self.ram, &mut self.tx.active.queue);
                self.tx.after(turn, self.interrupt.as_ref());
            }
            if self.rx.wait == Wait::Nothing {
                let turn = self.pair.process_rx(&self.ram, &mut self.rx.active.queue);
                self.rx.after(turn, self.interrupt.as_ref());
            }
        }
    }

    fn obey(&mut self, stop: &Stop) {
        let Some(control) = &mut self.control else {
            return;
        };
        clear(&control.kick);
        while !self.control_broken && !stop.is_set() {
            match self.pair.device.process_control(&self.ram, &mut control.queue, control.index) {
                Ok(batch) => {
                    if batch.notify {
                        self.interrupt.queue(control.index);
                    }
                    if !batch.more {
                        return;
                    }
                }
                Err(error) => {
                    give_up(&error, self.interrupt.as_ref());
                    self.control_broken = true;
                }
            }
        }
    }
}

impl Direction {
    /// What was waited for has come about.
    fn wake(&mut self, is_awaited: impl FnOnce(Wait) -> bool) {
        if !self.broken && is_awaited(self.wait) {
            self.wait = Wait::Nothing;
        }
    }

    fn after(&mut self, turn: Result<Turn, BrokenQueue>, interrupt: &dyn Interrupt) {
        match turn {
            Ok(turn) => {
                if turn.notify {
                    interrupt.queue(self.active.index);
                }
                if let Wait::Time(wait) = turn.wait {
                    self.timer.arm(wait);
                }
                self.wait = turn.wait;
            }
            Err(error) => {
                give_up(&error, interrupt);
                self.broken = true;
                self.wait = Wait::Driver;
            }
        }
    }
}

fn give_up(error: &BrokenQueue, interrupt: &dyn Interrupt) {
    interrupt.needs_reset(&format_args!("network device: {error}"));
}

impl Handler for PairWorker {
    fn watched(&self) -> Vec<(RawFd, u64)> {
        let mut watched = vec![
            (self.rx.active.kick.as_raw_fd(), RX),
            (self.tx.active.kick.as_raw_fd(), TX),
            (self.rx.timer.as_fd().as_raw_fd(), RX_TIMER),
            (self.tx.timer.as_fd().as_raw_fd(), TX_TIMER),
        ];
        watched.extend(self.control.as_ref().map(|control| (control.kick.as_raw_fd(), CONTROL)));
        watched
    }

    fn watched_for_edges(&self) -> Vec<(RawFd, u64)> {
        vec![(self.pair.backend().as_fd().as_raw_fd(), BACKEND)]
    }

    fn begin(&mut self, stop: &Stop) {
        self.obey(stop);
        self.run(stop);
    }

    fn handle(&mut self, token: u64, stop: &Stop) {
        let is_driver = |wait| wait == Wait::Driver;
        let is_time = |wait| matches!(wait, Wait::Time(_));
        match token {
            RX => {
                clear(&self.rx.active.kick);
                self.rx.wake(is_driver);
            }
            TX => {
                clear(&self.tx.active.kick);
                self.tx.wake(is_driver);
            }
            BACKEND => {
                self.rx.wake(|wait| wait == Wait::Backend);
                self.tx.wake(|wait| wait == Wait::Backend);
            }
            RX_TIMER => {
                self.rx.timer.clear();
                self.rx.wake(is_time);
            }
            TX_TIMER => {
                self.tx.timer.clear();
                self.tx.wake(is_time);
            }
            _ => self.obey(stop),
        }
        self.run(stop);
    }
}
