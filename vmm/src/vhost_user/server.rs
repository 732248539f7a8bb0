//! The life of one vhost-user connection.

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use tokio::sync::watch;
use vhost::vhost_user::{Error as VhostError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserBackend, VhostUserDaemon, VringEpollHandler, VringMutex};
use vm_memory::GuestMemoryAtomic;

use crate::devices::GuestRam;

/// Guest memory as the front end shares it; replaced when it sends another table.
pub(super) type SharedRam = GuestMemoryAtomic<GuestRam>;

/// Why a device cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// No thread, no descriptor, or no memory.
    #[error("serve device {name} by vhost-user: {what}")]
    Start {
        /// The device's name.
        name: String,
        /// What failed.
        what: String,
    },
}

/// What the server needs of an adapter beside `VhostUserBackend`.
pub(super) trait Adapter: VhostUserBackend<Bitmap = (), Vring = VringMutex<SharedRam>> {
    /// Registers the device's own descriptors with the worker threads.
    fn attach(&self, workers: &[Arc<VringEpollHandler<Arc<Self>>>]) -> io::Result<()>
    where
        Self: Sized;

    /// The front end is gone, and no worker runs any more.
    fn close(&self);

    /// After `close`: delivers what the guest had sent, for as long as that may take.
    fn drain(&self) {}
}

/// A device that is being served.
#[derive(Debug)]
pub struct ServerHandle {
    name: String,
    thread: Option<JoinHandle<()>>,
    listener: UnixListener,
    stopping: Arc<AtomicBool>,
    disconnected: watch::Receiver<bool>,
}

impl ServerHandle {
    /// The device's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Becomes true when the front end has disconnected and the device is closed.
    #[must_use]
    pub fn disconnected(&self) -> watch::Receiver<bool> {
        self.disconnected.clone()
    }

    /// Waits for the front end's end and the device's threads.
    pub fn join(mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    /// Refuses a front end that has not connected yet, and ends requests in progress early. A front end that is
    /// connected ends the server by disconnecting: stop it first, then `join`.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        refuse(&self.listener);
    }
}

/// Serves `adapter` to the first front end that connects.
pub(super) fn serve<A>(
    name: &str,
    adapter: Arc<A>,
    ram: SharedRam,
    listener: UnixListener,
    stopping: Arc<AtomicBool>,
) -> Result<ServerHandle, ServeError>
where
    A: Adapter + 'static,
{
    let failed = |what: String| ServeError::Start { name: name.to_owned(), what };
    listener.set_nonblocking(false).map_err(|error| failed(error.to_string()))?;
    let own_listener = listener.try_clone().map_err(|error| failed(error.to_string()))?;
    let daemon =
        VhostUserDaemon::new(name.to_owned(), adapter.clone(), ram).map_err(|error| failed(error.to_string()))?;
    adapter.attach(&daemon.get_epoll_handlers()).map_err(|error| failed(error.to_string()))?;
    let (closed, disconnected) = watch::channel(false);
    let thread_name = name.to_owned();
    let thread = std::thread::Builder::new()
        .name(format!("{name}-serve"))
        .spawn(move || {
            run(&thread_name, daemon, listener);
            adapter.close();
            let _ = closed.send(true);
            adapter.drain();
        })
        .map_err(|error| failed(error.to_string()))?;
    Ok(ServerHandle { name: name.to_owned(), thread: Some(thread), listener: own_listener, stopping, disconnected })
}

/// Nobody gets in any more; a thread that waits in `accept` returns with EINVAL.
fn refuse(listener: &UnixListener) {
    let _ = rustix::net::shutdown(listener, rustix::net::Shutdown::Both);
}

/// One connection, from `accept` to its end; the workers end with the daemon.
fn run<A: Adapter + 'static>(name: &str, mut daemon: VhostUserDaemon<Arc<A>>, listener: UnixListener) {
    let started = match listener.try_clone() {
        Ok(clone) => daemon.start(&mut Listener::from(clone)),
        Err(error) => Err(DaemonError::CreateVhostUserListener(VhostError::SocketError(error))),
    };
    refuse(&listener);
    match started.and_then(|()| daemon.wait()) {
        Ok(()) | Err(DaemonError::HandleRequest(VhostError::Disconnected | VhostError::PartialMessage)) => {
            tracing::debug!(device = name, "the vhost-user front end disconnected");
        }
        Err(error) => tracing::info!(device = name, "vhost-user ended: {error}"),
    }
}
