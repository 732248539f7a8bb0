//! Port forwarding over plain WebSocket channels, as kubelets offered it before tunnels: two channels for each port that
//! the URL was made for, data (even) and error (odd), each beginning with the port in two bytes, little endian.

use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

use super::{Data, Gone, forward};
use crate::node::Node;
use crate::streaming::peer::Link;
use crate::streaming::remote_command::Timeouts;
use crate::streaming::websocket::{ChannelProtocol, Channels, PROTOCOLS};

/// What such clients may name: `v4.channel.k8s.io`, its base64 form, or nothing.
pub(in crate::streaming) const WEBSOCKET_PROTOCOLS: [ChannelProtocol; 3] = [PROTOCOLS[1], PROTOCOLS[2], PROTOCOLS[5]];

/// One port's data channel. WebSocket cannot close it alone.
struct PortChannel {
    channels: Arc<Channels>,
    channel: u8,
}

impl Data for PortChannel {
    const HALF_CLOSES: bool = false;

    async fn send(&self, bytes: Bytes) -> Result<(), Gone> {
        self.channels.send(self.channel, &bytes).await
    }

    async fn finish(&self) -> Result<(), Gone> {
        Ok(())
    }
}

/// Serves a client that has been upgraded, until it goes or every port has closed.
pub(in crate::streaming) async fn serve_websocket<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    node: &Arc<Node>,
    link: Link<S>,
    protocol: ChannelProtocol,
    (sandbox, ports): (&str, &[u16]),
    timeouts: Timeouts,
) {
    let data: Vec<(u8, u16)> = (0..=126).step_by(2).zip(ports.iter().copied()).collect();
    let readable: Vec<u8> = data.iter().map(|(channel, _)| *channel).collect();
    let mut channels = Channels::start(link, protocol, &readable, timeouts.idle).await;
    let incoming: Vec<_> = readable.iter().map(|channel| channels.take(*channel)).collect();
    let channels = Arc::new(channels);
    let mut forwarding = JoinSet::new();
    for ((channel, port), incoming) in data.into_iter().zip(incoming) {
        let Some(incoming) = incoming else { continue };
        for announced in [channel, channel + 1] {
            if channels.send(announced, &port.to_le_bytes()).await.is_err() {
                return;
            }
        }
        let agent = super::agent(node, sandbox);
        let data = PortChannel { channels: channels.clone(), channel };
        forwarding.spawn(async move {
            let gone = data.channels.gone();
            let result = match agent {
                Ok(agent) => forward(agent, port, incoming, gone.child_token(), &data).await,
                Err(why) => Err(why),
            };
            if let Err(why) = result {
                // A client that has gone needs no farewell.
                let _ = data.channels.send(channel + 1, why.as_bytes()).await;
            }
        });
    }
    let gone = channels.gone();
    tokio::select! {
        () = async { while forwarding.join_next().await.is_some() {} } => {}
        () = gone.cancelled() => {}
    }
    forwarding.shutdown().await;
    if let Some(channels) = Arc::into_inner(channels) {
        channels.close().await;
    }
}
