//! A device and its registers at rest.

use serde::{Deserialize, Serialize};

use super::Transport;
use super::queue::QueueRegistersState;
use super::transport::status;
use crate::devices::virtio::{ActivateError, Activation};
use crate::state::{DeviceState, QueueStateError, SnapshotError};

/// What a driver sees of a device, and the device. Travels in the envelope of [`crate::state`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// Status.
    pub status: u32,
    /// InterruptStatus.
    pub pending: u32,
    /// ConfigGeneration.
    pub generation: u32,
    /// QueueSel.
    pub selected_queue: u32,
    /// DeviceFeaturesSel.
    pub offered_half: u32,
    /// DriverFeaturesSel.
    pub accepted_half: u32,
    /// DriverFeatures, both halves.
    pub accepted: u64,
    /// In the order of their numbers.
    pub queues: Vec<QueueRegistersState>,
    /// The device serves its queues.
    pub is_active: bool,
    /// The device itself.
    pub device: DeviceState,
}

/// Why a saved device does not go on.
#[derive(Debug, thiserror::Error)]
pub enum TransportStateError {
    /// The device's own part.
    #[error(transparent)]
    Device(#[from] SnapshotError),
    /// A queue that the device was serving.
    #[error(transparent)]
    Queue(#[from] QueueStateError),
    /// Registers that no driver can have left so.
    #[error("the saved registers of device type {device} are impossible: {what}")]
    Registers {
        /// Its number in section 5 of the specification.
        device: u32,
        /// What is wrong.
        what: &'static str,
    },
    /// The device could not be started.
    #[error("device type {device} does not go on: {source}")]
    Start {
        /// Its number in section 5 of the specification.
        device: u32,
        /// Why.
        source: ActivateError,
    },
}

impl Transport {
    /// Ends the device's threads, and tells how it and its registers stand. Processors must stand still. The device runs no
    /// more afterwards, also after an error.
    ///
    /// # Errors
    /// When there is something in the device that cannot be saved.
    pub fn suspend(&mut self) -> Result<TransportState, SnapshotError> {
        let device = self.device.suspend()?;
        let is_active = std::mem::take(&mut self.is_active);
        Ok(TransportState {
            status: self.line.status(),
            pending: self.line.pending(),
            generation: self.line.generation(),
            selected_queue: self.selected_queue,
            offered_half: self.offered_half,
            accepted_half: self.accepted_half,
            accepted: self.accepted,
            queues: self.queues.iter().map(super::queue::QueueRegisters::save).collect(),
            is_active,
            device,
        })
    }

    /// Takes over a saved device of the same kind: it goes on where that one stopped. After an error it is as after a reset.
    ///
    /// # Errors
    /// When the state is that of another device, or one that no driver can have brought about.
    pub fn restore(&mut self, state: &TransportState) -> Result<(), TransportStateError> {
        self.reset();
        let restored = self.take_over(state);
        if restored.is_err() {
            self.reset();
        }
        restored
    }

    fn take_over(&mut self, state: &TransportState) -> Result<(), TransportStateError> {
        let wrong = |what| TransportStateError::Registers { device: state.device.device_type, what };
        if state.queues.len() != self.queues.len() {
            return Err(wrong("it has another number of queues"));
        }
        if state.status & !0xff != 0 || state.pending & !0b11 != 0 {
            return Err(wrong("bits are set that there are not"));
        }
        let ready = status::FEATURES_OK | status::DRIVER_OK;
        if state.is_active && (state.status & ready != ready || state.device.features != state.accepted) {
            return Err(wrong("it is active without a driver that is ready"));
        }
        self.device.restore(&state.device)?;
        self.line.restore(state.status, state.pending, state.generation);
        (self.selected_queue, self.accepted) = (state.selected_queue, state.accepted);
        (self.offered_half, self.accepted_half) = (state.offered_half, state.accepted_half);
        self.queues.iter_mut().zip(&state.queues).for_each(|(registers, saved)| registers.restore(saved));
        if state.is_active { self.go_on(state) } else { Ok(()) }
    }

    fn go_on(&mut self, state: &TransportState) -> Result<(), TransportStateError> {
        let device = state.device.device_type;
        let failed = |source| TransportStateError::Start { device, source };
        let mut queues = Vec::new();
        for saved in &state.device.queues {
            let registers = self.queues.get(usize::from(saved.index));
            let what = "the device served a queue that is not set up";
            let registers = registers.filter(|registers| registers.is_ready());
            let registers = registers.ok_or(TransportStateError::Registers { device, what })?;
            let queue = saved.restore(&self.ram, registers.max_size())?;
            let step = "share a queue's notifications";
            queues.push(registers.activate(queue).map_err(|source| failed(ActivateError::Io { step, source }))?);
        }
        let (ram, interrupt) = (self.ram.clone(), self.line.clone());
        self.device.activate(Activation { ram, features: state.accepted, queues, interrupt }).map_err(failed)?;
        self.is_active = true;
        Ok(())
    }
}
