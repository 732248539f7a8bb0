//! A process's streams, as `proto/src/stdio.rs` frames them.

use std::path::Path;

use bulkhead_proto::stdio::{FrameKind, HEADER_LEN, Header};
use bulkhead_proto::{AGENT_STDIO_PORT, agent};
use protobuf::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::GuestError;

const WHAT: &str = "carry the process's streams";

/// What the agent sends.
#[derive(Debug)]
pub enum Output {
    /// Bytes of standard output (with a terminal: all output).
    Stdout(Vec<u8>),
    /// Bytes of standard error.
    Stderr(Vec<u8>),
    /// The end; nothing follows.
    Exit(agent::ExitStatus),
}

/// One connection to a process's streams.
#[derive(Debug)]
pub struct Streams {
    stream: UnixStream,
}

impl Streams {
    /// Opens the streams that `hello` names.
    pub async fn open(vsock: &Path, hello: &agent::StdioHello) -> Result<Self, GuestError> {
        let stream = super::connect(vsock, AGENT_STDIO_PORT).await?;
        let mut streams = Self { stream };
        let payload = hello.write_to_bytes().map_err(|e| protocol(&e.to_string()))?;
        streams.send(FrameKind::Hello, &payload).await?;
        Ok(streams)
    }

    async fn send(&mut self, kind: FrameKind, payload: &[u8]) -> Result<(), GuestError> {
        let header = Header { kind, len: payload.len() }.encode();
        let result = async {
            self.stream.write_all(&header).await?;
            self.stream.write_all(payload).await
        };
        result.await.map_err(|e| protocol(&e.to_string()))
    }

    /// Tells the process that no input follows.
    pub async fn close_stdin(&mut self) -> Result<(), GuestError> {
        self.send(FrameKind::StdinClosed, &[]).await
    }

    /// The next piece of output. An end without [`Output::Exit`] is an error.
    pub async fn next(&mut self) -> Result<Output, GuestError> {
        let mut header = [0u8; HEADER_LEN];
        self.stream.read_exact(&mut header).await.map_err(|e| protocol(&e.to_string()))?;
        let header = Header::decode(header).map_err(|e| protocol(&e.to_string()))?;
        let mut payload = vec![0u8; header.len];
        self.stream.read_exact(&mut payload).await.map_err(|e| protocol(&e.to_string()))?;
        match header.kind {
            FrameKind::Stdout => Ok(Output::Stdout(payload)),
            FrameKind::Stderr => Ok(Output::Stderr(payload)),
            FrameKind::Exit => {
                agent::ExitStatus::parse_from_bytes(&payload).map(Output::Exit).map_err(|e| protocol(&e.to_string()))
            }
            FrameKind::Error => Err(protocol(&String::from_utf8_lossy(&payload))),
            kind => Err(protocol(&format!("a {kind:?} frame from the agent"))),
        }
    }
}

fn protocol(detail: &str) -> GuestError {
    GuestError::Protocol { request: WHAT, detail: detail.to_owned() }
}
