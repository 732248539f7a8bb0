//! A remote command over WebSocket channels: 0 stdin, 1 stdout, 2 stderr, 3 error, 4 sizes.

use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use super::transport::Gone;
use super::{ChannelProtocol, Channels, Client, ClientOutput, Outcome, Request, Streams, Timeouts};
use crate::node::Node;
use crate::streaming::peer::Link;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// The channels that go to the client.
pub(super) struct ClientChannels {
    channels: Channels,
    wanted: Streams,
    status: bool,
}

impl ClientChannels {
    pub(super) async fn stdout(&self, bytes: Bytes) -> Result<(), Gone> {
        if self.wanted.stdout { self.channels.send(STDOUT, &bytes).await } else { Ok(()) }
    }

    pub(super) async fn stderr(&self, bytes: Bytes) -> Result<(), Gone> {
        if self.wanted.stderr { self.channels.send(STDERR, &bytes).await } else { Ok(()) }
    }

    pub(super) async fn finish(self, outcome: &Outcome) {
        let last = if self.status { outcome.status() } else { outcome.text().into_bytes() };
        if last.is_empty() || self.channels.send(ERROR, &last).await.is_ok() {
            self.channels.close().await;
        }
    }
}

/// Serves a client that has been upgraded.
pub(in crate::streaming) async fn serve_websocket<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    node: &Arc<Node>,
    link: Link<S>,
    protocol: ChannelProtocol,
    request: &Request,
    wanted: Streams,
    timeouts: Timeouts,
) {
    let mut channels = Channels::start(link, protocol, &[STDIN, RESIZE], timeouts.idle).await;
    let stdin = channels.take(STDIN).filter(|_| wanted.stdin);
    let resize = channels.take(RESIZE).filter(|_| wanted.terminal);
    let gone = channels.gone();
    // An empty message tells clients that wait for one that they are served.
    let first = if wanted.stdout { STDOUT } else { ERROR };
    if channels.send(first, &[]).await.is_err() {
        return;
    }
    let output = ClientOutput::WebSocket(ClientChannels { channels, wanted, status: protocol.status });
    super::run(node, request, Client { stdin, resize, output, gone }).await;
}
