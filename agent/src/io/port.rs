//! A connection to a TCP port of the pod, in the frames of the stdio port.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use bulkhead_proto::stdio::{FrameKind, HEADER_LEN, Header, MAX_PAYLOAD};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::connection::read_frame;
use super::frame;
use super::peer::Peer;

/// Carries one connection to its end, each direction on its own.
pub(super) async fn serve<R, W>(port: u32, reader: R, writer: &mut W, peer: Arc<Peer>) -> io::Result<()>
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin,
{
    let stream = match connect(port).await {
        Ok(stream) => stream,
        Err(why) => return writer.write_all(&frame(FrameKind::Error, why.as_bytes())).await,
    };
    let (from_port, to_port) = stream.into_split();
    let mut sending = tokio::spawn(send(reader, to_port, peer));
    let received = tokio::select! {
        received = receive(from_port, writer) => received,
        _ = &mut sending => return Err(io::ErrorKind::ConnectionAborted.into()),
    };
    if received.is_ok() {
        // Half a connection: the caller may still send, and leaves when it has nothing more to send.
        let _ = (&mut sending).await;
    }
    sending.abort();
    received
}

/// As "localhost" would: IPv4 first.
async fn connect(port: u32) -> Result<TcpStream, String> {
    let number = u16::try_from(port).ok().filter(|port| *port != 0).ok_or_else(|| format!("{port} is no TCP port"))?;
    let v4 = match TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, number))).await {
        Ok(stream) => return Ok(stream),
        Err(error) => error,
    };
    let v6 = TcpStream::connect(SocketAddr::from((Ipv6Addr::LOCALHOST, number))).await;
    v6.map_err(|_| format!("nothing in the pod answers on port {port} of 127.0.0.1 or ::1: {v4}"))
}

/// Moves what the port sends, then says that it sends no more.
async fn receive<W: AsyncWrite + Unpin>(mut port: OwnedReadHalf, writer: &mut W) -> io::Result<()> {
    let mut buffer = vec![0; HEADER_LEN + MAX_PAYLOAD];
    loop {
        let len = port.read(&mut buffer[HEADER_LEN..]).await?;
        if len == 0 {
            return writer.write_all(&frame(FrameKind::OutputClosed, &[])).await;
        }
        buffer[..HEADER_LEN].copy_from_slice(&Header { kind: FrameKind::Stdout, len }.encode());
        writer.write_all(&buffer[..HEADER_LEN + len]).await?;
    }
}

/// Moves what the caller sends; returns when the caller has gone or the port takes no more.
async fn send<R: AsyncRead + Unpin>(mut reader: R, mut port: OwnedWriteHalf, peer: Arc<Peer>) {
    loop {
        let passed = match read_frame(&mut reader).await {
            Ok((FrameKind::Stdin, bytes)) => tokio::select! {
                passed = port.write_all(&bytes) => passed,
                () = peer.gone() => return,
            },
            Ok((FrameKind::StdinClosed, _)) => port.shutdown().await,
            _ => return,
        };
        if passed.is_err() {
            return;
        }
    }
}
