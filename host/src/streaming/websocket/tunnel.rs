//! A stream of bytes inside WebSocket messages: how SPDY passes proxies that only know WebSocket.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

/// Bytes under way in each direction, and of one message.
const BUFFER: usize = 32 * 1024;
/// Longest wait for a client to take the last message, and to leave.
const FAREWELL: Duration = Duration::from_secs(5);

/// The tunnelled stream; its end closes the connection and the other way round.
pub(in crate::streaming) fn tunnel<S>(socket: WebSocketStream<S>) -> DuplexStream
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (ours, theirs) = tokio::io::duplex(BUFFER);
    let (mut from_session, mut to_session) = tokio::io::split(theirs);
    let (mut sink, mut stream) = socket.split();
    let mut reading = tokio::spawn(async move {
        while let Some(Ok(message)) = stream.next().await {
            let bytes: Bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Close(_) | Message::Text(_) => break,
                _ => continue,
            };
            if to_session.write_all(&bytes).await.is_err() {
                break;
            }
        }
        // The session may have ended first.
        let _ = to_session.shutdown().await;
    });
    tokio::spawn(async move {
        loop {
            let mut bytes = BytesMut::with_capacity(BUFFER);
            match from_session.read_buf(&mut bytes).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => break,
            }
            if sink.send(Message::Binary(bytes.freeze())).await.is_err() {
                return;
            }
        }
        // The client may have gone first, or neither read nor leave.
        let _ = tokio::time::timeout(FAREWELL, sink.send(Message::Close(Some(super::normal())))).await;
        if tokio::time::timeout(FAREWELL, &mut reading).await.is_err() {
            reading.abort();
        }
    });
    ours
}
