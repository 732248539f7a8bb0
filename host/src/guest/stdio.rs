//! A process's streams, or a connection to a port of the pod, as `proto/src/stdio.rs` frames them.

use std::path::Path;

use bulkhead_proto::stdio::{FrameKind, HEADER_LEN, Header, MAX_PAYLOAD};
use bulkhead_proto::{AGENT_STDIO_PORT, agent};
use bytes::Bytes;
use protobuf::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::GuestError;

const WHAT: &str = "carry the process's streams";

/// What the agent sends.
#[derive(Debug)]
pub enum Output {
    /// Bytes of standard output (with a terminal: all output), or from the port.
    Stdout(Bytes),
    /// Bytes of standard error.
    Stderr(Bytes),
    /// The port sends no more.
    Closed,
    /// The process's end; nothing follows.
    Exit(agent::ExitStatus),
}

/// One connection to a process's streams, or to a port.
#[derive(Debug)]
pub struct Streams {
    /// From the agent.
    pub reader: StreamReader,
    /// To the agent.
    pub writer: StreamWriter,
}

/// What comes from the agent.
#[derive(Debug)]
pub struct StreamReader(BufReader<OwnedReadHalf>);

/// What goes to the agent.
#[derive(Debug)]
pub struct StreamWriter(OwnedWriteHalf);

impl Streams {
    /// Opens the streams that `hello` names.
    pub async fn open(vsock: &Path, hello: &agent::StdioHello) -> Result<Self, GuestError> {
        let stream = super::connect(vsock, AGENT_STDIO_PORT).await?;
        let (reader, writer) = stream.into_split();
        let mut writer = StreamWriter(writer);
        let payload = hello.write_to_bytes().map_err(|e| protocol(&e.to_string()))?;
        writer.send(FrameKind::Hello, &payload).await?;
        Ok(Self { reader: StreamReader(BufReader::new(reader)), writer })
    }

    /// Opens a connection to a TCP port on the pod's loopback address; a refusal comes with the first read.
    pub async fn port(vsock: &Path, port: u16) -> Result<Self, GuestError> {
        Self::open(vsock, &agent::StdioHello { port: port.into(), ..Default::default() }).await
    }
}

impl StreamWriter {
    async fn send(&mut self, kind: FrameKind, payload: &[u8]) -> Result<(), GuestError> {
        let header = Header { kind, len: payload.len() }.encode();
        let result = async {
            self.0.write_all(&header).await?;
            self.0.write_all(payload).await
        };
        result.await.map_err(|e| protocol(&e.to_string()))
    }

    /// Sends input, as fast as it is taken.
    pub async fn input(&mut self, bytes: &[u8]) -> Result<(), GuestError> {
        for piece in bytes.chunks(MAX_PAYLOAD) {
            self.send(FrameKind::Stdin, piece).await?;
        }
        Ok(())
    }

    /// Tells the process or the port that no input follows.
    pub async fn close_input(&mut self) -> Result<(), GuestError> {
        self.send(FrameKind::StdinClosed, &[]).await
    }
}

impl StreamReader {
    /// The next piece of output. A process's end without [`Output::Exit`] is an error. Not to be dropped half-way if
    /// more is to be read.
    pub async fn next(&mut self) -> Result<Output, GuestError> {
        let mut header = [0u8; HEADER_LEN];
        self.0.read_exact(&mut header).await.map_err(|e| protocol(&e.to_string()))?;
        let header = Header::decode(header).map_err(|e| protocol(&e.to_string()))?;
        let mut payload = vec![0u8; header.len];
        self.0.read_exact(&mut payload).await.map_err(|e| protocol(&e.to_string()))?;
        match header.kind {
            FrameKind::Stdout => Ok(Output::Stdout(payload.into())),
            FrameKind::Stderr => Ok(Output::Stderr(payload.into())),
            FrameKind::OutputClosed => Ok(Output::Closed),
            FrameKind::Exit => {
                agent::ExitStatus::parse_from_bytes(&payload).map(Output::Exit).map_err(|e| protocol(&e.to_string()))
            }
            FrameKind::Error => Err(GuestError::Stream(String::from_utf8_lossy(&payload).into_owned())),
            kind => Err(protocol(&format!("a {kind:?} frame from the agent"))),
        }
    }
}

fn protocol(detail: &str) -> GuestError {
    GuestError::Protocol { request: WHAT, detail: detail.to_owned() }
}
