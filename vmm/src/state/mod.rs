//! The state of devices at rest, as bytes that a later release can still read.
//!
//! ```text
//! device --suspend (threads end)--> DeviceState --encode--> [magic | version | length | CRC-32C | body]
//! new device --restore(DeviceState)--> activate over the queues of the state: goes on where the other stopped
//! ```
//!
//! What is read may come from anywhere: [`envelope`] checks it whole before a byte of it is believed, and
//! [`QueueState::restore`] checks a queue as the transport checks what a driver writes.

pub mod envelope;
mod queue;
mod snapshot;

pub use envelope::{EnvelopeError, decode, encode};
pub use queue::{QueueState, QueueStateError};
pub use snapshot::{BalloonState, DeviceState, NetState, Own, Snapshot, SnapshotError};
