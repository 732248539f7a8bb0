//! A client's end of a connection, watched beside what it sends.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::Ready;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::spdy::Gone;
use crate::sys::readiness::watch_readable;

/// Most input is taken sooner, and needs no watch.
const DELAY: Duration = Duration::from_millis(100);
/// Between two signs of life to a client whose input is held up. One whose last bytes do not fit into this side's buffers
/// cannot say that it has ended; only an answer of its kernel tells.
const PROBE: Duration = Duration::from_secs(5);
/// Bytes of a stream that are handed on at a time.
pub(super) const CHUNK: usize = 16 * 1024;
/// Chunks of a stream that may wait for its reader.
pub(super) const STREAM_BACKLOG: usize = 8;

/// What a client's bytes travel on, and its other end.
pub(super) struct Link<S> {
    pub(super) io: S,
    pub(super) peer: Arc<Peer>,
}

#[cfg(test)]
impl<S> Link<S> {
    /// Of something that is no socket.
    pub(super) fn unwatched(io: S) -> Self {
        Self { io, peer: Arc::new(Peer(None)) }
    }
}

/// A second descriptor of a client's socket, whatever is spoken on it.
#[derive(Debug)]
pub(super) struct Peer(Option<OwnedFd>);

impl Peer {
    /// Without a descriptor for it, the end is found by reading on.
    pub(super) fn of(stream: &TcpStream) -> Self {
        Self(stream.as_fd().try_clone_to_owned().ok())
    }

    /// Hands bytes to a stream's reader as fast as it takes them; those for a reader that is no more are thrown away. While
    /// it takes none, `probe` sends something that needs no answer now and then.
    pub(super) async fn hand_on(
        &self,
        reader: &mpsc::Sender<Bytes>,
        bytes: Bytes,
        probe: impl Fn(),
    ) -> Result<(), Gone> {
        let held_up = async {
            tokio::time::sleep(DELAY).await;
            let probing = async {
                loop {
                    tokio::time::sleep(PROBE).await;
                    probe();
                }
            };
            tokio::select! {
                () = self.gone() => {}
                () = probing => {}
            }
        };
        tokio::select! {
            biased;
            _ = reader.send(bytes) => Ok(()),
            () = held_up => Err(Gone),
        }
    }

    /// Returns when the client has closed its end, although bytes that it sent before may wait to be read.
    async fn gone(&self) {
        let copy = self.0.as_ref().and_then(|fd| fd.try_clone().ok());
        let Some(Ok(watched)) = copy.map(watch_readable) else { return std::future::pending().await };
        loop {
            let Ok(mut ready) = watched.readable().await else { return std::future::pending().await };
            if ready.ready().is_read_closed() {
                return;
            }
            ready.clear_ready_matching(Ready::READABLE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    const PATIENCE: Duration = Duration::from_secs(60);

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn a_client_that_ends_is_seen_past_bytes_that_nobody_reads() {
        let (mut client, server) = pair().await;
        let peer = Peer::of(&server);
        client.write_all(b"unread").await.unwrap();
        let (reader, _stays) = mpsc::channel(1);
        peer.hand_on(&reader, Bytes::from_static(b"fills it"), || {}).await.unwrap();
        let waiting = peer.hand_on(&reader, Bytes::from_static(b"waits"), || {});
        let (handed, ()) = tokio::join!(tokio::time::timeout(PATIENCE, waiting), async {
            tokio::time::sleep(2 * DELAY).await;
            drop(client);
        });
        assert_eq!(handed, Ok(Err(Gone)));
    }

    #[tokio::test]
    async fn a_client_that_cannot_say_its_end_is_asked() {
        let (mut client, server) = pair().await;
        // Until both sides' buffers are full.
        while tokio::time::timeout(Duration::from_millis(500), client.write_all(&[0; 1 << 16])).await.is_ok() {}
        let peer = Peer::of(&server);
        drop(client);
        let (reader, _stays) = mpsc::channel(1);
        reader.send(Bytes::new()).await.unwrap();
        let probe = || drop(server.try_write(b"?"));
        let handed = tokio::time::timeout(PATIENCE, peer.hand_on(&reader, Bytes::new(), probe)).await;
        assert_eq!(handed, Ok(Err(Gone)));
    }
}
