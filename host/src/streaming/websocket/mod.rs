//! Kubernetes' channels over WebSocket: the first byte of each message says which channel the rest belongs to.

mod tunnel;

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, mpsc};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_util::sync::CancellationToken;

use super::idle;
use super::peer::{CHUNK, Link, Peer, STREAM_BACKLOG};
use super::spdy::Gone;

pub(super) use self::tunnel::tunnel;

/// Longest message that is taken, in bytes.
const MAX_MESSAGE: usize = 1 << 20;
/// Messages that may wait for the client.
const BACKLOG: usize = 16;
/// Longest wait for the client's end once everything has been said.
const FAREWELL: Duration = Duration::from_secs(10);
/// Says that no more comes on the channel that follows (v5).
const CLOSE: u8 = 255;

/// What is agreed on beside WebSocket itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ChannelProtocol {
    /// As `Sec-WebSocket-Protocol` has it; empty: none was named.
    pub(super) name: &'static str,
    base64: bool,
    /// The error channel carries a `Status`.
    pub(super) status: bool,
    /// Channels can be closed one by one.
    close: bool,
}

const fn protocol(name: &'static str, base64: bool, status: bool, close: bool) -> ChannelProtocol {
    ChannelProtocol { name, base64, status, close }
}

/// Of remote commands, the best first.
pub(super) const PROTOCOLS: [ChannelProtocol; 6] = [
    protocol("v5.channel.k8s.io", false, true, true),
    protocol("v4.channel.k8s.io", false, true, false),
    protocol("v4.base64.channel.k8s.io", true, true, false),
    protocol("channel.k8s.io", false, false, false),
    protocol("base64.channel.k8s.io", true, false, false),
    protocol("", false, false, false),
];

/// A WebSocket connection of which the handshake is done.
pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(io: S) -> WebSocketStream<S> {
    let config = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// A connection's channels, served by tasks of their own until this is dropped.
pub(super) struct Channels {
    incoming: Vec<Option<mpsc::Receiver<Bytes>>>,
    sender: mpsc::Sender<Message>,
    protocol: ChannelProtocol,
    gone: CancellationToken,
}

impl Channels {
    /// Serves a connection of which the handshake is done; `readable` are the channels on which the client may send.
    pub(super) async fn start<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        link: Link<S>,
        protocol: ChannelProtocol,
        readable: &[u8],
        limit: Duration,
    ) -> Self {
        let (sink, stream) = accept(link.io).await.split();
        let (sender, messages) = mpsc::channel(BACKLOG);
        let (gone, activity) = (CancellationToken::new(), Arc::new(Notify::new()));
        let (mut open, mut incoming): (Vec<Option<mpsc::Sender<Bytes>>>, Vec<_>) = Default::default();
        for channel in 0..=readable.iter().copied().max().unwrap_or(0) {
            let (sender, receiver) = mpsc::channel(STREAM_BACKLOG);
            let wanted = readable.contains(&channel);
            open.push(wanted.then_some(sender));
            incoming.push(wanted.then_some(receiver));
        }
        let reading = Reading { open, protocol, activity: activity.clone(), peer: link.peer, client: sender.clone() };
        tokio::spawn(reading.run(stream, gone.clone()));
        tokio::spawn(write(sink, messages, activity.clone(), gone.clone()));
        tokio::spawn(idle::watch(activity, limit, gone.clone()));
        Self { incoming, sender, protocol, gone }
    }

    /// What comes on a readable channel, once. The end is the client's half-close unless [`Self::gone`] is cancelled.
    pub(super) fn take(&mut self, channel: u8) -> Option<mpsc::Receiver<Bytes>> {
        self.incoming.get_mut(usize::from(channel))?.take()
    }

    /// Cancelled when the client has gone.
    pub(super) fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }

    /// Sends on a channel, when the connection has room for it.
    pub(super) async fn send(&self, channel: u8, bytes: &[u8]) -> Result<(), Gone> {
        let message = if self.protocol.base64 {
            Message::Text(format!("{}{}", char::from(b'0' + channel), STANDARD.encode(bytes)).into())
        } else {
            Message::Binary([&[channel], bytes].concat().into())
        };
        self.sender.send(message).await.map_err(|_| Gone)
    }

    /// Ends the connection once all that was sent has left.
    pub(super) async fn close(self) {
        if self.sender.send(Message::Close(Some(normal()))).await.is_ok() {
            let _ = tokio::time::timeout(FAREWELL, self.gone.cancelled()).await;
        }
    }
}

fn normal() -> tokio_tungstenite::tungstenite::protocol::CloseFrame {
    let code = tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode::Normal;
    tokio_tungstenite::tungstenite::protocol::CloseFrame { code, reason: Default::default() }
}

impl Drop for Channels {
    fn drop(&mut self) {
        self.gone.cancel();
    }
}

async fn write<S: AsyncRead + AsyncWrite + Unpin>(
    mut sink: SplitSink<WebSocketStream<S>, Message>,
    mut messages: mpsc::Receiver<Message>,
    activity: Arc<Notify>,
    gone: CancellationToken,
) {
    let all = async {
        while let Some(message) = messages.recv().await {
            let is_probe = matches!(message, Message::Ping(_));
            sink.send(message).await?;
            if !is_probe {
                activity.notify_one();
            }
        }
        Ok::<_, tokio_tungstenite::tungstenite::Error>(())
    };
    let result = tokio::select! {
        result = all => result,
        () = gone.cancelled() => Ok(()),
    };
    if result.is_err() {
        gone.cancel();
    }
}

struct Reading {
    open: Vec<Option<mpsc::Sender<Bytes>>>,
    protocol: ChannelProtocol,
    activity: Arc<Notify>,
    peer: Arc<Peer>,
    client: mpsc::Sender<Message>,
}

impl Reading {
    async fn run<S>(mut self, stream: SplitStream<WebSocketStream<S>>, gone: CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        tokio::select! {
            () = self.read(stream) => {}
            () = gone.cancelled() => {}
        }
        // Before the channels' senders are dropped: an end that is not a half-close must be known as such.
        gone.cancel();
    }

    /// Reads until the client has gone or breaks the protocol.
    async fn read<S: AsyncRead + AsyncWrite + Unpin>(&mut self, mut stream: SplitStream<WebSocketStream<S>>) {
        while let Some(Ok(message)) = stream.next().await {
            match message {
                Message::Binary(_) | Message::Text(_) => self.activity.notify_one(),
                Message::Close(_) => return,
                _ => continue,
            }
            let Some((channel, bytes)) = decode(self.protocol, message) else { return };
            if self.protocol.close && channel == CLOSE {
                if let Some(closed) = bytes.first().and_then(|channel| self.open.get_mut(usize::from(*channel))) {
                    *closed = None;
                }
            } else if let Some(Some(sender)) = self.open.get(usize::from(channel))
                && self.hand_on(sender, &bytes).await.is_err()
            {
                return;
            }
        }
    }

    /// Piece by piece, each in memory of its own: a slice would hold the whole message for its last byte.
    async fn hand_on(&self, sender: &mpsc::Sender<Bytes>, bytes: &[u8]) -> Result<(), Gone> {
        // Not needed while other messages wait, which are as good.
        let probe = || drop(self.client.try_send(Message::Ping(Bytes::new())));
        for piece in bytes.chunks(CHUNK) {
            self.peer.hand_on(sender, Bytes::copy_from_slice(piece), probe).await?;
        }
        Ok(())
    }
}

/// Channel and content; `None` for what the protocol does not have.
fn decode(protocol: ChannelProtocol, message: Message) -> Option<(u8, Bytes)> {
    let bytes = message.into_data();
    let first = *bytes.first()?;
    if protocol.base64 {
        let channel = first.checked_sub(b'0')?;
        return Some((channel, STANDARD.decode(&bytes[1..]).ok()?.into()));
    }
    Some((first, bytes.slice(1..)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_their_channel() {
        let [v5, .., base64, _] = PROTOCOLS;
        let decoded = decode(v5, Message::Binary(Bytes::from_static(b"\x00ls\n")));
        assert_eq!(decoded, Some((0, Bytes::from_static(b"ls\n"))));
        let decoded = decode(base64, Message::Text("4bHMK".into()));
        assert_eq!(decoded, Some((4, Bytes::from_static(b"ls\n"))));
        assert_eq!(decode(base64, Message::Text("0???".into())), None);
        assert_eq!(decode(v5, Message::Binary(Bytes::new())), None);
    }

    #[tokio::test]
    async fn a_closed_channel_is_no_client_that_went() {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let mut client = WebSocketStream::from_raw_socket(ours, Role::Client, None).await;
        let link = Link::unwatched(theirs);
        let mut channels = Channels::start(link, PROTOCOLS[0], &[0, 4], Duration::from_secs(60)).await;
        let mut stdin = channels.take(0).unwrap();
        assert!(channels.take(1).is_none());
        client.send(Message::Binary(Bytes::from_static(b"\x00in"))).await.unwrap();
        client.send(Message::Binary(Bytes::from_static(&[CLOSE, 0]))).await.unwrap();
        assert_eq!(stdin.recv().await, Some(Bytes::from_static(b"in")));
        assert_eq!(stdin.recv().await, None);
        assert!(!channels.gone().is_cancelled());
        channels.send(1, b"out").await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap(), Message::Binary(Bytes::from_static(b"\x01out")));
        drop(client);
        channels.gone().cancelled().await;
    }

    #[tokio::test]
    async fn what_nobody_reads_is_bounded_in_bytes() {
        let (ours, theirs) = tokio::io::duplex(1 << 12);
        let mut client = WebSocketStream::from_raw_socket(ours, Role::Client, None).await;
        let mut channels = Channels::start(Link::unwatched(theirs), PROTOCOLS[0], &[0], Duration::from_secs(60)).await;
        let mut stdin = channels.take(0).unwrap();
        let message = Message::Binary(vec![0; MAX_MESSAGE].into());
        let sent = async {
            client.send(message.clone()).await.unwrap();
            client.send(message).await.unwrap();
            client
        };
        let waiting = async {
            while stdin.len() < STREAM_BACKLOG {
                tokio::task::yield_now().await;
            }
            let mut held = 0;
            let mut left = 2 * (MAX_MESSAGE - 1);
            while let Some(piece) = stdin.recv().await {
                held = held.max(piece.len() * (1 + stdin.len()));
                left -= piece.len();
                if left == 0 {
                    break;
                }
            }
            held
        };
        let (_client, held) = tokio::join!(sent, waiting);
        assert!(held <= CHUNK * STREAM_BACKLOG, "{held} bytes waited");
    }
}
