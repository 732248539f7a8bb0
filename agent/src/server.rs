//! The agent's two ports, on sockets of their own (guest) or behind one unix socket (host process).

use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_proto::agent_ttrpc::create_agent;
use bulkhead_proto::{AGENT_RPC_PORT, AGENT_STDIO_PORT};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc};
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

use crate::rpc::Service;
use crate::sandbox::Sandbox;

/// Longest first line of a connection: `CONNECT 4294967295`, with room.
const MAX_GREETING: usize = 32;
/// A caller has its first line ready.
const GREETING_LIMIT: Duration = Duration::from_secs(10);
/// ttrpc connections that wait to be taken.
const BACKLOG: usize = 16;

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
    S: AsyncRead + AsyncWrite + AsFd + Send + 'static,
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

/// Serves both ports behind one socket, whose connections begin with `CONNECT PORT\n` and are answered `OK PORT\n`, as
/// through `bulkhead-vmm`'s socket to a guest.
///
/// # Errors
/// ttrpc's.
pub async fn serve_socket(listener: UnixListener, service: Service) -> ttrpc::Result<Server> {
    let sandbox = Arc::clone(&service.sandbox);
    let (sender, receiver) = mpsc::channel::<io::Result<UnixStream>>(BACKLOG);
    let accepted = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|stream| (stream, receiver))
    });
    let server = serve_rpc(Listener::new(accepted), service).await?;
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(lead(stream, Arc::clone(&sandbox), sender.clone()))),
                Err(error) => {
                    crate::log::warning!("cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
    Ok(server)
}

/// Leads a connection to the port that it asks for.
async fn lead(mut stream: UnixStream, sandbox: Arc<Sandbox>, rpc: mpsc::Sender<io::Result<UnixStream>>) {
    let Ok(Ok(port)) = tokio::time::timeout(GREETING_LIMIT, read_port(&mut stream)).await else { return };
    let known = [AGENT_RPC_PORT, AGENT_STDIO_PORT].contains(&port);
    let answer = if known { format!("OK {port}\n") } else { format!("ERR nobody listens on port {port}\n") };
    // A caller that has gone needs no service either.
    if stream.write_all(answer.as_bytes()).await.is_err() {
        return;
    }
    match port {
        AGENT_RPC_PORT => drop(rpc.send(Ok(stream)).await),
        AGENT_STDIO_PORT => crate::io::serve(sandbox, stream).await,
        _ => {}
    }
}

/// Takes the first line and not a byte more.
async fn read_port(stream: &mut UnixStream) -> io::Result<u32> {
    let mut line = Vec::new();
    while line.len() < MAX_GREETING {
        match stream.read_u8().await? {
            b'\n' => break,
            byte => line.push(byte),
        }
    }
    let port = std::str::from_utf8(&line).ok().and_then(|line| line.strip_prefix("CONNECT ")?.parse().ok());
    port.ok_or_else(|| io::ErrorKind::InvalidData.into())
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
