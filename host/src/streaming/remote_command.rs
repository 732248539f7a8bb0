//! Exec and attach: a client's streams joined to a process's, whatever protocol carries the client's.

mod spdy;
mod websocket;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::status::Outcome;
use super::websocket::{ChannelProtocol, Channels};
use super::{Request, Streams, spdy as transport};
use crate::container::{self, Command, ContainerError, ProcessHandle};
use crate::error_text;
use crate::guest::stdio::{Output, StreamReader, StreamWriter};
use crate::node::Node;

pub(super) use self::spdy::{VERSIONS, Version, serve_spdy};
pub(super) use self::websocket::serve_websocket;

/// How long a session may take to be set up, and to be silent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    pub(super) idle: Duration,
    pub(super) creation: Duration,
}

/// A client's ends.
struct Client {
    stdin: Option<mpsc::Receiver<Bytes>>,
    resize: Option<mpsc::Receiver<Bytes>>,
    output: ClientOutput,
    gone: CancellationToken,
}

enum ClientOutput {
    Spdy(self::spdy::ClientStreams),
    WebSocket(self::websocket::ClientChannels),
}

impl ClientOutput {
    async fn stdout(&self, bytes: Bytes) -> Result<(), transport::Gone> {
        match self {
            Self::Spdy(client) => client.stdout(bytes).await,
            Self::WebSocket(client) => client.stdout(bytes).await,
        }
    }

    async fn stderr(&self, bytes: Bytes) -> Result<(), transport::Gone> {
        match self {
            Self::Spdy(client) => client.stderr(bytes).await,
            Self::WebSocket(client) => client.stderr(bytes).await,
        }
    }

    /// Says how it ended, and that nothing follows.
    async fn finish(self, outcome: &Outcome) {
        match self {
            Self::Spdy(client) => client.finish(outcome).await,
            Self::WebSocket(client) => client.finish(outcome).await,
        }
    }
}

/// A process's ends.
struct Process {
    reader: StreamReader,
    writer: StreamWriter,
    handle: ProcessHandle,
    /// The end of the client's input is the end of the process's.
    closes_stdin: bool,
    /// It ends with the session unless something keeps it.
    owned: bool,
}

async fn open(node: &Arc<Node>, request: &Request) -> Result<Process, ContainerError> {
    match request {
        Request::Exec { container, command, streams } => {
            let container = node.containers.find("container", container)?;
            let command = Command { words: command.clone(), terminal: streams.terminal, stdin: streams.stdin };
            let (opened, handle) = container::exec(node, &container, command).await?;
            let crate::guest::stdio::Streams { reader, writer } = opened;
            Ok(Process { reader, writer, handle, closes_stdin: true, owned: true })
        }
        Request::Attach { container, streams } => {
            let container = node.containers.find("container", container)?;
            let attached = container::attach(node, &container, streams.stdin).await?;
            let crate::guest::stdio::Streams { reader, writer } = attached.streams;
            let (handle, closes_stdin) = (attached.handle, attached.closes_stdin);
            Ok(Process { reader, writer, handle, closes_stdin, owned: false })
        }
        Request::PortForward { sandbox, .. } => Err(ContainerError::Request {
            id: sandbox.clone(),
            request: "a remote command",
            why: "the URL is one of port forwarding".into(),
        }),
    }
}

/// Runs a session to its end.
async fn run(node: &Arc<Node>, request: &Request, client: Client) {
    let process = match open(node, request).await {
        Ok(process) => process,
        Err(error) => return client.output.finish(&Outcome::Failed(error_text(&error))).await,
    };
    let Process { mut reader, writer, handle, closes_stdin, owned } = process;
    let Client { stdin, resize, output, gone } = client;
    let resizing = tokio::spawn(follow_size(resize, handle.clone()));
    let mut feeding = tokio::spawn(feed(stdin, writer, gone.clone(), closes_stdin));
    let outcome = tokio::select! {
        outcome = carry(&mut reader, &output) => outcome,
        () = gone.cancelled() => None,
    };
    resizing.abort();
    match outcome {
        Some(outcome) => {
            feeding.abort();
            if owned {
                handle.forget().await;
            }
            output.finish(&outcome).await;
        }
        None => {
            tracing::debug!(container = handle.container(), "a streaming client has gone");
            // Closes stdin where that is the client's to do. The end of the connection lets the agent hang up an
            // exec'd process: it may run on alone, and is forgotten when it ends.
            if tokio::time::timeout(FAREWELL, &mut feeding).await.is_err() {
                // With it goes its half of the agent's connection.
                feeding.abort();
                tracing::debug!(container = handle.container(), "the process takes no input");
            }
        }
    }
}

/// Longest wait for a process to take the input of a client that has gone.
const FAREWELL: Duration = Duration::from_secs(1);

/// Moves output to the client; `None` when it has gone.
async fn carry(reader: &mut StreamReader, output: &ClientOutput) -> Option<Outcome> {
    loop {
        let sent = match reader.next().await {
            Ok(Output::Stdout(bytes)) => output.stdout(bytes).await,
            Ok(Output::Stderr(bytes)) => output.stderr(bytes).await,
            Ok(Output::Closed) => Ok(()),
            Ok(Output::Exit(status)) => return Some(Outcome::Exited(status.code.clamp(0, 255))),
            Err(error) => return Some(Outcome::Failed(error_text(&error))),
        };
        if sent.is_err() {
            return None;
        }
    }
}

/// Moves input to the process, as fast as it takes it.
async fn feed(
    stdin: Option<mpsc::Receiver<Bytes>>,
    mut writer: StreamWriter,
    gone: CancellationToken,
    closes_stdin: bool,
) {
    let Some(mut stdin) = stdin else {
        // The process's connection lasts as long as the session.
        return gone.cancelled().await;
    };
    while let Some(bytes) = stdin.recv().await {
        if writer.input(&bytes).await.is_err() {
            return;
        }
    }
    if closes_stdin && writer.close_input().await.is_err() {
        return;
    }
    gone.cancelled().await;
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
struct TerminalSize {
    #[serde(rename = "Width")]
    width: u16,
    #[serde(rename = "Height")]
    height: u16,
}

async fn follow_size(resize: Option<mpsc::Receiver<Bytes>>, handle: ProcessHandle) {
    let Some(mut resize) = resize else { return };
    let mut sizes = Sizes::default();
    while let Some(bytes) = resize.recv().await {
        // Only the last one counts.
        if let Some(size) = sizes.push(&bytes).pop() {
            handle.resize(size.height, size.width).await;
        }
    }
}

/// JSON objects one behind the other, cut anywhere.
#[derive(Debug, Default)]
struct Sizes(Vec<u8>);

impl Sizes {
    /// Longest text that is no size yet.
    const MAX: usize = 1024;

    fn push(&mut self, bytes: &[u8]) -> Vec<TerminalSize> {
        let mut found = Vec::new();
        for byte in bytes {
            self.0.push(*byte);
            if *byte == b'}' || self.0.len() > Self::MAX {
                found.extend(serde_json::from_slice::<TerminalSize>(&self.0).ok());
                self.0.clear();
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_found_wherever_they_are_cut() {
        let mut sizes = Sizes::default();
        assert!(sizes.push(b"{\"Width\":80,\"He").is_empty());
        let found = sizes.push(b"ight\":24}\n{\"Width\":100,\"Height\":50}");
        assert_eq!(found, [TerminalSize { width: 80, height: 24 }, TerminalSize { width: 100, height: 50 }]);
        assert!(sizes.push(b"rubbish}").is_empty());
        assert!(sizes.push(&vec![b'x'; 5000]).is_empty() && sizes.0.len() <= Sizes::MAX);
    }
}
