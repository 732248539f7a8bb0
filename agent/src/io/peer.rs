//! A connection's other end, watched beside what it sends.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use tokio::io::Ready;

use crate::sys;

/// Most input is taken sooner, and needs no watch.
const DELAY: Duration = Duration::from_millis(100);

/// A second descriptor of a connection's socket.
#[derive(Debug)]
pub(super) struct Peer(OwnedFd);

impl Peer {
    pub(super) fn of(stream: &impl AsFd) -> io::Result<Self> {
        stream.as_fd().try_clone_to_owned().map(Self)
    }

    /// Returns when the other end has closed, although bytes that it sent before may still wait to be read: whoever has
    /// stopped reading learns of the end here. Without a descriptor for the watch it is found by reading on.
    pub(super) async fn gone(&self) {
        tokio::time::sleep(DELAY).await;
        let Ok(watched) = self.0.try_clone().and_then(sys::watch) else { return std::future::pending().await };
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
    use tokio::net::UnixStream;

    #[tokio::test]
    async fn an_end_is_seen_past_unread_bytes() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of(&ours).unwrap();
        theirs.write_all(b"unread").await.unwrap();
        let early = tokio::time::timeout(2 * DELAY, peer.gone()).await;
        assert!(early.is_err(), "bytes are no end");
        let (gone, ()) = tokio::join!(tokio::time::timeout(Duration::from_secs(20), peer.gone()), async {
            tokio::time::sleep(2 * DELAY).await;
            drop(theirs);
        });
        gone.expect("the end is not seen");
    }
}
