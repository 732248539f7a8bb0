//! Port forwarding over SPDY: for each connection the client opens an error stream and a data stream with one
//! `requestid`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Data, Gone, forward};
use crate::node::Node;
use crate::streaming::peer::Link;
use crate::streaming::remote_command::Timeouts;
use crate::streaming::spdy::{Limits, Output, ResetReason, Session, Stream};

/// Two for each connection through the ports.
const STREAMS: usize = 512;
/// Longest request id in bytes; clients count.
const MAX_REQUEST_ID: usize = 64;

struct Pair {
    error: Option<Stream>,
    data: Option<Stream>,
    /// When its first stream came.
    since: Instant,
}

impl Default for Pair {
    fn default() -> Self {
        Self { error: None, data: None, since: Instant::now() }
    }
}

impl Data for Output {
    const HALF_CLOSES: bool = true;

    async fn send(&self, bytes: Bytes) -> Result<(), Gone> {
        Output::send(self, bytes).await
    }

    async fn finish(&self) -> Result<(), Gone> {
        Output::finish(self).await
    }
}

/// Serves a client that has been upgraded, until it goes.
pub(in crate::streaming) async fn serve_spdy<S: AsyncRead + AsyncWrite + Send + 'static>(
    node: &Arc<Node>,
    link: Link<S>,
    sandbox: &str,
    timeouts: Timeouts,
) {
    let session = Session::start(link, Limits { streams: STREAMS, idle: timeouts.idle });
    serve_session(session, timeouts.creation, || super::agent(node, sandbox)).await;
}

async fn serve_session(mut session: Session, creation: Duration, agent: impl Fn() -> Result<PathBuf, String>) {
    let mut waiting: HashMap<String, Pair> = HashMap::new();
    let mut forwarding = JoinSet::new();
    loop {
        let overdue = waiting.values().map(|pair| pair.since + creation).min();
        let stream = tokio::select! {
            stream = session.next() => stream,
            Some(_) = forwarding.join_next() => continue,
            () = until(overdue) => {
                let late = waiting.extract_if(|_, pair| pair.since.elapsed() >= creation);
                late.for_each(|(id, pair)| drop(forwarding.spawn(give_up(id, pair, creation))));
                continue;
            }
        };
        let Some(stream) = stream else { break };
        // Pairs that will never be complete: the client has reset what it had opened.
        waiting.retain(|_, pair| !pair.error.iter().chain(&pair.data).any(|stream| stream.reset.is_cancelled()));
        if let Some((port, pair)) = pair_up(&mut waiting, stream).await {
            forwarding.spawn(carry(agent(), port, pair));
        }
    }
    forwarding.shutdown().await;
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Ends a stream whose partner did not come: each of them holds one of the connection's places.
async fn give_up(id: String, pair: Pair, creation: Duration) {
    // A client that has gone needs no farewell.
    let _: Result<(), Gone> = async {
        if let Some(error) = pair.error {
            let why = format!("no data stream of request {id:?} came within {} s", creation.as_secs());
            error.output.send(why.into()).await?;
            error.output.finish().await?;
        }
        if let Some(data) = pair.data {
            data.output.reset(ResetReason::InternalError).await?;
        }
        Ok(())
    }
    .await;
}

/// Accepts a stream; gives the port when its pair is complete.
async fn pair_up(waiting: &mut HashMap<String, Pair>, stream: Stream) -> Option<(u16, Pair)> {
    let Some((port, id)) = purpose(&stream) else {
        let _ = stream.output.reset(ResetReason::ProtocolError).await;
        return None;
    };
    let pair = waiting.entry(id.clone()).or_default();
    let place = if stream.headers.get("streamtype") == Some("error") { &mut pair.error } else { &mut pair.data };
    if place.is_some() {
        let _ = stream.output.reset(ResetReason::ProtocolError).await;
        return None;
    }
    stream.accept().await.ok()?;
    *place = Some(stream);
    if pair.error.is_none() || pair.data.is_none() {
        return None;
    }
    waiting.remove(&id).map(|pair| (port, pair))
}

/// Port and request of a stream whose headers make sense. Clients before request ids opened the error stream just before
/// its data stream.
fn purpose(stream: &Stream) -> Option<(u16, String)> {
    let kind = stream.headers.get("streamtype")?;
    let port = stream.headers.get("port")?.parse().ok().filter(|port| *port != 0)?;
    let number = stream.output.number();
    let id = match (kind, stream.headers.get("requestid")) {
        ("error" | "data", Some(id)) if (1..=MAX_REQUEST_ID).contains(&id.len()) => id.to_owned(),
        ("error", _) => number.to_string(),
        ("data", _) => number.checked_sub(2)?.to_string(),
        _ => return None,
    };
    Some((port, id))
}

async fn carry(agent: Result<PathBuf, String>, port: u16, pair: Pair) {
    let Pair { error: Some(error), data: Some(data), .. } = pair else { return };
    let Stream { incoming, output, reset, .. } = data;
    let result = match agent {
        Ok(agent) => forward_and_tell(agent, port, (incoming, reset), &output, &error).await,
        Err(why) => Err(why),
    };
    // A client that has gone needs no farewell.
    let _: Result<(), Gone> = async {
        if let Err(why) = result {
            tracing::debug!(port, why, "port forwarding failed");
            error.output.send(why.into()).await?;
            error.output.finish().await?;
            output.reset(ResetReason::InternalError).await?;
        }
        Ok(())
    }
    .await;
}

type Incoming = (tokio::sync::mpsc::Receiver<Bytes>, tokio_util::sync::CancellationToken);

/// As [`forward`]; the error stream is closed as soon as the port has said its last: clients wait for both.
async fn forward_and_tell(
    agent: PathBuf,
    port: u16,
    (incoming, reset): Incoming,
    output: &Output,
    error: &Stream,
) -> Result<(), String> {
    struct Both<'a>(&'a Output, &'a Output);
    impl Data for Both<'_> {
        const HALF_CLOSES: bool = true;

        async fn send(&self, bytes: Bytes) -> Result<(), Gone> {
            self.0.send(bytes).await
        }

        async fn finish(&self) -> Result<(), Gone> {
            self.0.finish().await?;
            self.1.finish().await
        }
    }
    forward(agent, port, incoming, reset, &Both(output, &error.output)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streaming::spdy::frame::{self, HEAD_LEN};
    use crate::streaming::spdy::headers::Compressor;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_stream_without_its_partner_is_ended() {
        let (mut client, theirs) = tokio::io::duplex(1 << 16);
        let limits = Limits { streams: STREAMS, idle: Duration::from_secs(600) };
        let session = Session::start(Link::unwatched(theirs), limits);
        let serving = tokio::spawn(serve_session(session, Duration::from_millis(100), || Err("no pod".into())));
        let mut compressor = Compressor::new().unwrap();
        for (id, kind) in [(1, "error"), (3, "data")] {
            let headers = [("streamType", kind), ("port", "80"), ("requestID", if id == 1 { "a" } else { "b" })];
            let block = compressor.next(&headers).unwrap();
            client.write_all(&frame::syn_stream(id, 0, &block)).await.unwrap();
        }
        let (mut told, mut reset) = (false, false);
        while !(told && reset) {
            let mut head = [0; HEAD_LEN];
            let read = tokio::time::timeout(Duration::from_secs(60), client.read_exact(&mut head)).await;
            read.expect("the streams wait on").unwrap();
            let mut payload = vec![0; u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize];
            client.read_exact(&mut payload).await.unwrap();
            told |= head[..4] == [0, 0, 0, 1] && String::from_utf8_lossy(&payload).contains("no data stream");
            reset |= head[..4] == [0x80, 3, 0, 3] && payload[..4] == [0, 0, 0, 3];
        }
        drop(client);
        serving.await.unwrap();
    }
}
