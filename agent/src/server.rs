//! The agent's two listening sockets.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_proto::agent_ttrpc::create_agent;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

use crate::rpc::Service;
use crate::sandbox::Sandbox;

/// Pause after a failed accept, which lack of descriptors makes fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Starts the ttrpc service on `listener`.
///
/// # Errors
/// ttrpc's.
pub async fn serve_rpc(listener: Listener, service: Service) -> ttrpc::Result<Server> {
    let mut server = Server::new().add_listener(listener).register_service(create_agent(Arc::new(service)));
    server.start().await?;
    Ok(server)
}

/// Serves every stdio connection that `accept` yields.
pub async fn serve_stdio<S, F, A>(sandbox: Arc<Sandbox>, mut accept: A)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
    F: Future<Output = io::Result<S>>,
    A: FnMut() -> F,
{
    loop {
        match accept().await {
            Ok(stream) => drop(tokio::spawn(crate::io::serve(Arc::clone(&sandbox), stream))),
            Err(error) => {
                crate::log::warning!("cannot accept a stdio connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Returns when SIGTERM comes or a caller has asked for the end.
///
/// # Errors
/// When the signal cannot be watched.
pub async fn until_shutdown(asked: Arc<Notify>) -> io::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        () = asked.notified() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// Time since boot (guest) in microseconds.
#[must_use]
pub fn since_boot_us() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1000
}
