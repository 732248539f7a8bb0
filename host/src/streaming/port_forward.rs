//! Port forwarding: a client's streams joined to TCP connections that the agent makes inside the pod.

mod spdy;
mod websocket;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::spdy::Gone;
use crate::error_text;
use crate::guest::GuestError;
use crate::guest::stdio::{Output, StreamReader, StreamWriter, Streams};
use crate::node::Node;

pub(super) use self::spdy::serve_spdy;
pub(super) use self::websocket::{WEBSOCKET_PROTOCOLS, serve_websocket};

/// What SPDY clients name in `X-Stream-Protocol-Version`.
pub(super) const VERSION: &str = "portforward.k8s.io";
/// The same, inside WebSocket messages.
pub(super) const TUNNELLED: &str = "SPDY/3.1+portforward.k8s.io";

/// How to reach the pod's agent.
fn agent(node: &Arc<Node>, sandbox: &str) -> Result<PathBuf, String> {
    let sandbox = node.sandboxes.find("sandbox", sandbox).map_err(|error| error_text(&error))?;
    let live = sandbox.live("forwarding a port").map_err(|error| error_text(&error))?;
    Ok(live.agent.vsock().to_owned())
}

/// Where one connection's bytes go at the client.
trait Data: Send {
    /// Whether the client can end its side alone; where it cannot, the end of the port ends both.
    const HALF_CLOSES: bool;

    async fn send(&self, bytes: Bytes) -> Result<(), Gone>;
    /// The port sends no more.
    async fn finish(&self) -> Result<(), Gone>;
}

/// Carries one connection; an error is for the client to read.
async fn forward<D: Data>(
    agent: PathBuf,
    port: u16,
    incoming: mpsc::Receiver<Bytes>,
    ended: CancellationToken,
    data: &D,
) -> Result<(), String> {
    let failed = |error: GuestError| format!("cannot forward port {port}: {}", error_text(&error));
    let Streams { mut reader, writer } = Streams::port(&agent, port).await.map_err(failed)?;
    let sending = tokio::spawn(to_port(incoming, writer, ended.clone()));
    let result = tokio::select! {
        result = from_port(&mut reader, data) => result,
        () = ended.cancelled() => Ok(()),
    };
    if result.is_err() || !D::HALF_CLOSES {
        sending.abort();
    }
    // Half a connection: the client may still send. It ends as it began when it was cancelled.
    let _ = sending.await;
    result.map_err(failed)
}

async fn from_port<D: Data>(reader: &mut StreamReader, data: &D) -> Result<(), GuestError> {
    loop {
        match reader.next().await? {
            Output::Stdout(bytes) => {
                // A client that has gone is noticed by its token.
                if data.send(bytes).await.is_err() {
                    return Ok(());
                }
            }
            Output::Stderr(_) => {}
            Output::Closed | Output::Exit(_) => {
                let _ = data.finish().await;
                return Ok(());
            }
        }
    }
}

/// Gives the writer back: its end would be the end of the connection, not of one direction.
async fn to_port(
    mut incoming: mpsc::Receiver<Bytes>,
    mut writer: StreamWriter,
    ended: CancellationToken,
) -> StreamWriter {
    let all = async {
        while let Some(bytes) = incoming.recv().await {
            if writer.input(&bytes).await.is_err() {
                return;
            }
        }
        // What is gone cannot be told.
        let _ = writer.close_input().await;
    };
    tokio::select! {
        () = all => {}
        () = ended.cancelled() => {}
    }
    writer
}
