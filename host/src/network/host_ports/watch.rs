//! Noticing that somebody else changed our table: `nft flush ruleset` must not cut pods off for good.

use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::BytesMut;
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use super::Inner;

/// NFNLGRP_NFTABLES, as a bit of the groups (linux/netfilter/nfnetlink.h).
const GROUP: u32 = 1 << (7 - 1);
/// Changes come in bursts; one look is enough for each.
const PAUSE: Duration = Duration::from_secs(1);
/// Also without news: ports that could not be bound are tried again.
const PERIOD: Duration = Duration::from_secs(30);
/// Larger than any message that the kernel sends at once.
const BUFFER: usize = 64 << 10;

/// Looks after the table until `inner` is gone.
pub(super) fn spawn(inner: &Arc<Inner>) {
    let (inner, table) = (Arc::downgrade(inner), inner.table.name.clone());
    tokio::spawn(async move {
        let news = News::subscribe(&table);
        if let Err(error) = &news {
            tracing::warn!(%error, "cannot watch nftables for changes; looking every {} s", PERIOD.as_secs());
        }
        watch(&inner, news.ok()).await;
    });
}

async fn watch(inner: &Weak<Inner>, mut news: Option<News>) {
    loop {
        let told = async {
            match &mut news {
                Some(news) => news.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = told => tokio::time::sleep(PAUSE).await,
            () = tokio::time::sleep(PERIOD) => {}
        }
        let Some(inner) = inner.upgrade() else { return };
        inner.heal().await;
    }
}

struct News {
    socket: TokioSocket,
    name: Vec<u8>,
    message: BytesMut,
}

impl News {
    fn subscribe(table: &str) -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind(&SocketAddr::new(0, GROUP))?;
        // Every message about a table holds its name, ended by a zero.
        let name = [table.as_bytes(), &[0]].concat();
        Ok(Self { socket, name, message: BytesMut::with_capacity(BUFFER) })
    }

    /// Returns when there may be news of the table; an error means that messages were lost, nobody knows whose.
    async fn next(&mut self) {
        loop {
            self.message.clear();
            self.message.reserve(BUFFER);
            let received = self.socket.recv(&mut self.message).await;
            if received.is_err() || self.message.windows(self.name.len()).any(|part| part == self.name) {
                return;
            }
        }
    }
}
