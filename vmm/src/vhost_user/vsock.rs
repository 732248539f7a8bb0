//! A socket device as a vhost-user backend.

use std::os::unix::net::UnixListener;

use super::server::{ServeError, ServerHandle};
use crate::devices::vsock::VsockDevice;

/// Serves a socket device to the first front end that connects, with one thread for its queues and sockets. Handles of
/// the device fail once the front end is gone.
pub fn serve_vsock(device: VsockDevice, listener: UnixListener, name: &str) -> Result<ServerHandle, ServeError> {
    drop((device, listener));
    Err(ServeError::Start { name: name.to_owned(), what: "vsock devices cannot be served yet".into() })
}
