use tokio::io::{AsyncWriteExt, DuplexStream};

use super::super::frame;
use super::super::headers::Compressor;
use super::*;

const LIMITS: Limits = Limits { streams: 2, idle: Duration::from_secs(60) };

struct Client {
    io: DuplexStream,
    compressor: Compressor,
}

fn connect(limits: Limits) -> (Client, Session) {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    (Client { io: ours, compressor: Compressor::new().unwrap() }, Session::start(Link::unwatched(theirs), limits))
}

impl Client {
    async fn open(&mut self, id: u32, kind: &str) {
        let block = self.compressor.next(&[("streamType", kind)]).unwrap();
        self.io.write_all(&frame::syn_stream(id, 0, &block)).await.unwrap();
    }

    async fn data(&mut self, id: u32, bytes: &[u8], fin: bool) {
        self.io.write_all(&frame::data_head(id, fin, bytes.len())).await.unwrap();
        self.io.write_all(bytes).await.unwrap();
    }

    async fn frame(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; HEAD_LEN];
        self.io.read_exact(&mut bytes).await.unwrap();
        let len = u32::from_be_bytes([0, bytes[5], bytes[6], bytes[7]]) as usize;
        bytes.resize(HEAD_LEN + len, 0);
        self.io.read_exact(&mut bytes[HEAD_LEN..]).await.unwrap();
        bytes
    }
}

#[tokio::test]
async fn bytes_and_half_closes_pass_both_ways() {
    let (mut client, mut session) = connect(LIMITS);
    client.open(1, "stdin").await;
    client.data(1, &vec![b'x'; 3 * CHUNK / 2], false).await;
    client.data(1, b"end", true).await;
    let mut stream = session.next().await.unwrap();
    assert_eq!(stream.headers.get("streamtype"), Some("stdin"));
    stream.accept().await.unwrap();
    assert_eq!(client.frame().await[..8], [0x80, 3, 0, 2, 0, 0, 0, client.frame_len_of_reply()]);
    let mut got = Vec::new();
    while let Some(bytes) = stream.incoming.recv().await {
        got.extend_from_slice(&bytes);
    }
    assert_eq!((got.len(), &got[got.len() - 3..]), (3 * CHUNK / 2 + 3, &b"end"[..]));
    assert!(!stream.reset.is_cancelled());
    stream.output.send(Bytes::from_static(b"hello")).await.unwrap();
    stream.output.finish().await.unwrap();
    assert_eq!(client.frame().await, [&frame::data_head(1, false, 5)[..], b"hello"].concat());
    assert_eq!(client.frame().await, frame::data_head(1, true, 0));
}

impl Client {
    /// Length of the first reply's payload: four bytes of number and the compressed empty block.
    fn frame_len_of_reply(&self) -> u8 {
        u8::try_from(4 + Compressor::new().unwrap().next(&[]).unwrap().len()).unwrap()
    }
}

#[tokio::test]
async fn a_client_that_vanishes_is_no_half_close() {
    let (mut client, mut session) = connect(LIMITS);
    client.open(1, "stdin").await;
    let mut stream = session.next().await.unwrap();
    drop(client);
    assert!(stream.incoming.recv().await.is_none());
    assert!(stream.reset.is_cancelled() && session.gone().is_cancelled());
}

#[tokio::test]
async fn a_reset_ends_one_stream() {
    let (mut client, mut session) = connect(LIMITS);
    client.open(1, "data").await;
    client.open(3, "data").await;
    let (first, second) = (session.next().await.unwrap(), session.next().await.unwrap());
    client.io.write_all(&frame::reset(1, ResetReason::InternalError)).await.unwrap();
    first.reset.cancelled().await;
    assert!(!second.reset.is_cancelled());
}

#[tokio::test]
async fn streams_past_the_limit_are_refused_until_one_ends() {
    let (mut client, mut session) = connect(LIMITS);
    for id in [1, 3, 5] {
        client.open(id, "data").await;
    }
    assert_eq!(client.frame().await, frame::reset(5, ResetReason::RefusedStream));
    drop(session.next().await.unwrap());
    client.open(7, "data").await;
    session.next().await.unwrap();
    assert!(session.next().await.is_some());
}

#[tokio::test]
async fn pings_come_back() {
    let (mut client, _session) = connect(LIMITS);
    client.io.write_all(&frame::ping(3)).await.unwrap();
    assert_eq!(client.frame().await, frame::ping(3));
}

#[tokio::test]
async fn what_is_no_spdy_ends_the_connection() {
    for bad in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x80, 3, 0, 1, 0, 0, 0, 12, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 1, 2]] {
        let (mut client, mut session) = connect(LIMITS);
        client.io.write_all(bad).await.unwrap();
        client.io.shutdown().await.unwrap();
        assert!(session.next().await.is_none());
        assert!(session.gone().is_cancelled());
    }
}

#[tokio::test]
async fn silence_ends_the_connection_but_pings_are_silence() {
    let (mut client, session) = connect(Limits { streams: 2, idle: Duration::from_millis(300) });
    client.io.write_all(&frame::ping(1)).await.unwrap();
    session.gone().cancelled().await;
}
