//! A remote command over SPDY: the client opens one stream for each kind, then everything begins.

use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use super::transport::{Gone, Limits, ResetReason, Session, Stream};
use super::{Client, ClientOutput, Outcome, Request, Streams, Timeouts};
use crate::node::Node;
use crate::streaming::peer::Link;

/// Streams of one command: five kinds, and room to refuse others in order.
const STREAMS: usize = 8;

/// What is agreed on beside SPDY itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::streaming) struct Version {
    /// As `X-Stream-Protocol-Version` has it.
    pub(in crate::streaming) name: &'static str,
    /// The client opens a stream for sizes.
    resize: bool,
    /// The error stream carries a `Status`.
    status: bool,
}

/// The best first.
pub(in crate::streaming) const VERSIONS: [Version; 4] = [
    Version { name: "v4.channel.k8s.io", resize: true, status: true },
    Version { name: "v3.channel.k8s.io", resize: true, status: false },
    Version { name: "v2.channel.k8s.io", resize: false, status: false },
    Version { name: "channel.k8s.io", resize: false, status: false },
];

/// The streams that go to the client.
pub(super) struct ClientStreams {
    session: Session,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    error: Stream,
    /// Held so that they are closed with the others.
    inputs: Vec<super::transport::Output>,
    status: bool,
}

impl ClientStreams {
    pub(super) async fn stdout(&self, bytes: Bytes) -> Result<(), Gone> {
        match &self.stdout {
            Some(stream) => stream.output.send(bytes).await,
            None => Ok(()),
        }
    }

    pub(super) async fn stderr(&self, bytes: Bytes) -> Result<(), Gone> {
        match &self.stderr {
            Some(stream) => stream.output.send(bytes).await,
            None => Ok(()),
        }
    }

    pub(super) async fn finish(self, outcome: &Outcome) {
        let last = if self.status { outcome.status() } else { outcome.text().into_bytes() };
        // A client that has gone needs no farewell.
        let _: Result<(), Gone> = async {
            for stream in self.stdout.iter().chain(&self.stderr) {
                stream.output.finish().await?;
            }
            for input in &self.inputs {
                input.finish().await?;
            }
            if !last.is_empty() {
                self.error.output.send(last.into()).await?;
            }
            self.error.output.finish().await
        }
        .await;
        self.session.close().await;
    }
}

/// Serves a client that has been upgraded.
pub(in crate::streaming) async fn serve_spdy<S: AsyncRead + AsyncWrite + Send + 'static>(
    node: &Arc<Node>,
    link: Link<S>,
    version: Version,
    request: &Request,
    wanted: Streams,
    timeouts: Timeouts,
) {
    let session = Session::start(link, Limits { streams: STREAMS, idle: timeouts.idle });
    match tokio::time::timeout(timeouts.creation, collect(session, version, wanted)).await {
        Ok(Some(client)) => super::run(node, request, client).await,
        Ok(None) => {}
        Err(_) => tracing::info!(seconds = timeouts.creation.as_secs(), "a client did not open its streams in time"),
    }
}

/// Waits for every stream that the request calls for.
async fn collect(mut session: Session, version: Version, wanted: Streams) -> Option<Client> {
    let resize = wanted.terminal && version.resize;
    let expected = [
        ("error", true),
        ("stdin", wanted.stdin),
        ("stdout", wanted.stdout),
        ("stderr", wanted.stderr && !wanted.terminal),
        ("resize", resize),
    ];
    let mut found: [Option<Stream>; 5] = Default::default();
    while expected.iter().zip(&found).any(|((_, wanted), found)| *wanted && found.is_none()) {
        let stream = session.next().await?;
        let kind = stream.headers.get("streamtype").unwrap_or_default().to_owned();
        let place =
            expected.iter().zip(&mut found).find(|((name, wanted), found)| *name == kind && *wanted && found.is_none());
        match place {
            Some((_, place)) => {
                stream.accept().await.ok()?;
                *place = Some(stream);
            }
            None => {
                tracing::debug!(kind, "a stream that the request does not call for");
                stream.output.reset(ResetReason::ProtocolError).await.ok()?;
            }
        }
    }
    let [error, stdin, stdout, stderr, resize] = found;
    let gone = session.gone();
    let inputs = stdin.iter().chain(&resize).map(|stream| stream.output.clone()).collect();
    let output = ClientStreams { session, stdout, stderr, error: error?, inputs, status: version.status };
    let incoming = |stream: Option<Stream>| stream.map(|stream| stream.incoming);
    Some(Client { stdin: incoming(stdin), resize: incoming(resize), output: ClientOutput::Spdy(output), gone })
}
