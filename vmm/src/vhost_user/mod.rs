//! Serves devices to QEMU as vhost-user backends: one thread for a device's control socket, one per group of queues.
//!
//! QEMU connects once; when it disconnects the device is closed for good, and [`ServerHandle::disconnected`] tells.

mod block;
mod server;
mod vsock;

pub use block::serve_block;
pub use server::{ServeError, ServerHandle};
pub use vsock::serve_vsock;
