//! The virtio-vsock device.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::handle::{Shared, VsockHandle};

/// How a guest's sockets reach the host.
#[derive(Debug, Clone)]
pub struct VsockConfig {
    /// The guest's context id, from 3. Each pod has a device of its own, so all may have the same.
    pub guest_cid: u64,
    /// Listening unix socket for connections into the guest, made by the device and removed with it. Connections of the
    /// guest to port P that nobody takes in process go to `<listen_path>_P`. Without it only handles connect.
    pub listen_path: Option<PathBuf>,
    /// How long a guest may take to answer a connection request.
    pub connect_timeout: Duration,
}

/// A virtio socket device.
#[derive(Debug)]
pub struct VsockDevice {
    config: VsockConfig,
    shared: Arc<Shared>,
}

impl VsockDevice {
    /// Binds the listening socket. Handles work from now on; what they ask for waits for the guest's driver.
    pub fn new(config: VsockConfig) -> io::Result<(Self, VsockHandle)> {
        let shared = Arc::new(Shared::new()?);
        let handle = VsockHandle { shared: shared.clone() };
        Ok((Self { config, shared }, handle))
    }
}
