//! A transport as small as can be: activates a device with rings of a driver, and hears its interrupts.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use bulkhead_vmm::devices::GuestRam;
use bulkhead_vmm::devices::virtio::{ActivateError, Activation, ActiveQueue, Interrupt, VirtioDevice};
use bulkhead_vmm::devices::worker::new_eventfd;
use bulkhead_vmm::state::DeviceState;
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use super::Ring;

/// Longest a test waits for something that must happen.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Interrupts that were raised.
#[derive(Debug, Default)]
pub struct Raised {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queues: HashMap<usize, usize>,
    config: usize,
    needs_reset: bool,
}

impl Raised {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
        self.changed.notify_all();
    }

    fn wait(&self, what: &str, mut done: impl FnMut(&State) -> bool) {
        let end = Instant::now() + PATIENCE;
        let mut state = self.state.lock().unwrap();
        while !done(&state) {
            let left = end.checked_duration_since(Instant::now());
            let left = left.unwrap_or_else(|| panic!("no {what} in {PATIENCE:?}: {state:?}"));
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    pub fn of_queue(&self, index: usize) -> usize {
        self.state.lock().unwrap().queues.get(&index).copied().unwrap_or(0)
    }

    pub fn needs_reset(&self) -> bool {
        self.state.lock().unwrap().needs_reset
    }

    /// Until the queue has had more interrupts than `before`.
    pub fn wait_queue(&self, index: usize, before: usize) {
        self.wait("interrupt of a queue", |state| state.queues.get(&index).copied().unwrap_or(0) > before);
    }

    pub fn wait_config(&self, before: usize) {
        self.wait("configuration interrupt", |state| state.config > before);
    }

    pub fn wait_needs_reset(&self) {
        self.wait("request for a reset", |state| state.needs_reset);
    }
}

impl Interrupt for Raised {
    fn queue(&self, index: usize) {
        self.change(|state| *state.queues.entry(index).or_default() += 1);
    }

    fn config(&self) {
        self.change(|state| state.config += 1);
    }

    fn needs_reset(&self, _why: &dyn std::fmt::Display) {
        self.change(|state| state.needs_reset = true);
    }
}

/// A device that runs, with the driver's rings.
pub struct Machine<D: VirtioDevice> {
    pub ram: GuestRam,
    pub device: D,
    pub raised: Arc<Raised>,
    pub rings: Vec<Ring>,
    kicks: Vec<EventFd>,
}

impl<D: VirtioDevice> Machine<D> {
    /// With a ring of `size` entries for each of the first `queues` queues; not active yet.
    pub fn new(device: D, ram: GuestRam, queues: usize, size: u16) -> Self {
        let rings = (0..queues).map(|index| Ring::new(0x1_0000 + index as u64 * 0x8000, size)).collect();
        let kicks = (0..queues).map(|_| new_eventfd().unwrap()).collect();
        Self { ram, device, raised: Arc::default(), rings, kicks }
    }

    /// Activates with these features; the rings are new.
    pub fn activate(&mut self, features: u64) -> Result<(), ActivateError> {
        let queues = self.rings.iter().map(Ring::queue).enumerate().collect();
        self.activate_with(features, queues)
    }

    /// Activates over the queues of a state, which were those of `from`.
    pub fn go_on(&mut self, state: &DeviceState, from: Machine<D>) -> Result<(), ActivateError> {
        (self.ram, self.rings, self.kicks) = (from.ram, from.rings, from.kicks);
        let queues = state.queues.iter();
        let queues = queues.map(|queue| (usize::from(queue.index), queue.restore(&self.ram, 256).unwrap())).collect();
        self.activate_with(state.features, queues)
    }

    fn activate_with(&mut self, features: u64, queues: Vec<(usize, Queue)>) -> Result<(), ActivateError> {
        let queues = queues.into_iter().map(|(index, queue)| {
            let kick = self.kicks[index].try_clone().unwrap();
            ActiveQueue { index, queue, kick }
        });
        let queues = queues.collect();
        let (ram, interrupt) = (self.ram.clone(), self.raised.clone());
        self.device.activate(Activation { ram, features, queues, interrupt })
    }

    pub fn kick(&self, index: usize) {
        self.kicks[index].write(1).unwrap();
    }

    /// Kicks the queue and waits for the next chain it gives back.
    pub fn wait_used(&mut self, index: usize) -> (u32, u32) {
        let end = Instant::now() + PATIENCE;
        loop {
            let before = self.raised.of_queue(index);
            if let Some(used) = self.rings[index].used(&self.ram) {
                return used;
            }
            assert!(Instant::now() < end && !self.raised.needs_reset(), "queue {index} gives nothing back");
            self.raised.wait_queue(index, before);
        }
    }
}
