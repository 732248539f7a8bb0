//! A socket device for a transport of our own: one thread for its queues and sockets.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use virtio_queue::Queue;

use super::{DEVICE_TYPE, EVENT_QUEUE, RX_QUEUE, TX_QUEUE, VsockDevice};
use crate::devices::virtio::{ActivateError, Activation, ActiveQueue, Interrupt, VirtioDevice};
use crate::devices::worker::{Handler, NotStarted, Stop, Worker, clear};
use crate::devices::{BrokenQueue, GuestRam};
use crate::state::{DeviceState, Own, QueueState, Snapshot, SnapshotError};

const NAME: &str = "socket device";
/// Greatest size of each queue.
const QUEUE_SIZE: u16 = 256;
/// Something happened on the host; queues have their numbers as tokens.
const HOST: u64 = 16;
/// How long slow readers may take for a dead guest's last bytes.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// A socket device and its thread. Dropped, it is gone for good: the guest's last bytes are delivered, handles fail.
#[derive(Debug)]
pub struct VirtioVsock {
    features: u64,
    config: Vec<u8>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// No driver.
    Idle(Box<VsockDevice>),
    /// The thread has the device.
    Running(Worker<Pump>),
    /// The thread panicked, or the device is closed.
    Gone,
}

/// The device with its queues, on the thread.
#[derive(Debug)]
struct Pump {
    device: Box<VsockDevice>,
    ram: GuestRam,
    rx: ActiveQueue,
    tx: ActiveQueue,
    event: Option<ActiveQueue>,
    interrupt: Arc<dyn Interrupt>,
    broken: bool,
}

impl VirtioVsock {
    /// Its handles work already.
    #[must_use]
    pub fn new(device: VsockDevice) -> Self {
        let (features, config) = (device.features(), device.read_config(0, 8));
        Self { features, config, state: State::Idle(Box::new(device)) }
    }
}

impl VirtioDevice for VirtioVsock {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 3]
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: usize, len: usize) -> Vec<u8> {
        (0..len).map(|at| offset.checked_add(at).and_then(|at| self.config.get(at)).copied().unwrap_or(0)).collect()
    }

    fn write_config(&mut self, _offset: usize, _bytes: &[u8]) {}

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let (rx, tx) = (activation.take_queue(RX_QUEUE)?, activation.take_queue(TX_QUEUE)?);
        let event = activation.take_queue(EVENT_QUEUE).ok();
        let State::Idle(mut device) = std::mem::replace(&mut self.state, State::Gone) else {
            return Err(ActivateError::Other("the socket device is gone".into()));
        };
        device.set_acked_features(activation.features);
        let Activation { ram, interrupt, .. } = activation;
        match Worker::start("vsock", Pump { device, ram, rx, tx, event, interrupt, broken: false }) {
            Ok(worker) => {
                self.state = State::Running(worker);
                Ok(())
            }
            Err(NotStarted { source, handler }) => {
                self.state = State::Idle(handler.device);
                Err(ActivateError::Io { step: "start the socket device's thread", source })
            }
        }
    }

    fn reset(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Gone) {
            State::Running(worker) => match worker.stop() {
                Some(mut pump) => {
                    // What the guest sent before it reset the device.
                    pump.run_tx();
                    pump.device.reset();
                    State::Idle(pump.device)
                }
                None => State::Gone,
            },
            other => other,
        };
    }
}

impl Snapshot for VirtioVsock {
    /// Connections do not survive: their other ends are other processes. What the guest sent is delivered.
    fn suspend(&mut self) -> Result<DeviceState, SnapshotError> {
        let mut state = DeviceState { device_type: DEVICE_TYPE, features: 0, queues: Vec::new(), own: Own::Nothing };
        self.state = match std::mem::replace(&mut self.state, State::Gone) {
            State::Running(worker) => {
                let mut pump = worker.stop().ok_or(SnapshotError::Lost(NAME))?;
                pump.run_tx();
                let active = [Some(&pump.rx), Some(&pump.tx), pump.event.as_ref()];
                state
                    .queues
                    .extend(active.into_iter().flatten().map(|active| QueueState::of(active.index, &active.queue)));
                state.features = pump.device.acked_features();
                pump.device.reset();
                State::Idle(pump.device)
            }
            State::Idle(device) => State::Idle(device),
            State::Gone => return Err(SnapshotError::Lost(NAME)),
        };
        Ok(state)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), SnapshotError> {
        state.check(self, NAME)?;
        // The driver runs on and must learn that its connections are gone.
        if let (State::Idle(device), false) = (&mut self.state, state.queues.is_empty()) {
            device.transport_reset();
        }
        Ok(())
    }
}

impl Drop for VirtioVsock {
    fn drop(&mut self) {
        self.reset();
        if let State::Idle(device) = &mut self.state {
            device.disconnect();
            drain(device);
        }
    }
}

fn drain(device: &mut VsockDevice) {
    let end = Instant::now() + DRAIN_TIMEOUT;
    while !device.is_drained() {
        let Some(left) = end.checked_duration_since(Instant::now()) else {
            tracing::warn!(connections = device.connections(), "gave up on readers of a dead guest's last bytes");
            return;
        };
        let seconds = left.as_secs().try_into().unwrap_or(i64::MAX);
        let timeout = Timespec { tv_sec: seconds, tv_nsec: left.subsec_nanos().into() };
        // Whatever comes of it, the device looks itself.
        let _ = rustix::event::poll(&mut [PollFd::new(&device.host_events(), PollFlags::IN)], Some(&timeout));
        device.process_host();
    }
}

impl Pump {
    /// Moves packets both ways until nothing is left to move.
    fn run(&mut self, stop: &Stop) {
        loop {
            self.run_tx();
            let Self { device, ram, interrupt, .. } = self;
            let given = device.process_rx(ram, &mut self.rx.queue);
            self.broken |= tell(interrupt, RX_QUEUE, given);
            if self.broken || stop.is_set() || !self.device.has_more_work() {
                return;
            }
            // A guest that never stops sending must not keep the host's side waiting.
            self.device.process_host();
        }
    }

    fn run_tx(&mut self) {
        if !self.broken {
            let taken = self.device.process_tx(&self.ram, &mut self.tx.queue);
            self.broken |= tell(&self.interrupt, TX_QUEUE, taken);
        }
    }

    fn run_event(&mut self) {
        if let (Some(event), false) = (&mut self.event, self.broken) {
            let queue: &mut Queue = &mut event.queue;
            let sent = self.device.process_event(&self.ram, queue);
            self.broken |= tell(&self.interrupt, EVENT_QUEUE, sent);
        }
    }
}

/// Interrupts the driver if it wants that; true when the queue is broken.
fn tell(interrupt: &Arc<dyn Interrupt>, queue: usize, result: Result<bool, BrokenQueue>) -> bool {
    match result {
        Ok(true) => interrupt.queue(queue),
        Ok(false) => {}
        Err(error) => {
            interrupt.needs_reset(&format_args!("vsock device: {error}"));
            return true;
        }
    }
    false
}

impl Handler for Pump {
    fn watched(&self) -> Vec<(RawFd, u64)> {
        let queues = [&self.rx, &self.tx].into_iter().chain(self.event.as_ref());
        let kicks = queues.map(|queue| (queue.kick.as_raw_fd(), queue.index as u64));
        kicks.chain([(self.device.host_events().as_raw_fd(), HOST)]).collect()
    }

    fn begin(&mut self, stop: &Stop) {
        self.run_event();
        self.run(stop);
    }

    fn handle(&mut self, token: u64, stop: &Stop) {
        match token {
            HOST => self.device.process_host(),
            _ if token == EVENT_QUEUE as u64 => {
                self.event.iter().for_each(|queue| clear(&queue.kick));
                return self.run_event();
            }
            _ if token == RX_QUEUE as u64 => clear(&self.rx.kick),
            _ => clear(&self.tx.kick),
        }
        if !self.broken {
            self.run(stop);
        }
    }
}
