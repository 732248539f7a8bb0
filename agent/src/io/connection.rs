//! One connection to the stdio port.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_proto::agent::{ExitStatus, StdioHello};
use bulkhead_proto::stdio::{FrameKind, HEADER_LEN, Header};
use protobuf::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::{ProcessIo, frame};
use crate::container::process::{Process, Status};
use crate::sandbox::Sandbox;

/// Longest wait for the first frame, and for an earlier primary connection to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves a connection to its end.
pub async fn serve<S: AsyncRead + AsyncWrite + Send + 'static>(sandbox: Arc<Sandbox>, stream: S) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let opened = match tokio::time::timeout(PATIENCE, open(&sandbox, &mut reader)).await {
        Ok(opened) => opened,
        Err(_) => Err("no hello frame came".into()),
    };
    let served = match opened {
        Ok((hello, process)) => run(&hello, &process, reader, &mut writer).await,
        Err(message) => writer.write_all(&frame(FrameKind::Error, message.as_bytes())).await,
    };
    // A reader that went away needs no farewell.
    if served.is_ok() {
        let _ = writer.shutdown().await;
    }
}

async fn open<R: AsyncRead + Unpin>(sandbox: &Sandbox, reader: &mut R) -> Result<(StdioHello, Arc<Process>), String> {
    let (kind, payload) = read_frame(reader).await.map_err(|error| error.to_string())?;
    if kind != FrameKind::Hello {
        return Err(format!("the first frame is {kind:?}, not Hello"));
    }
    let hello = StdioHello::parse_from_bytes(&payload).map_err(|error| format!("bad hello: {error}"))?;
    let process = sandbox.process(&hello.container_id, &hello.exec_id).map_err(|error| error.to_string())?;
    Ok((hello, process))
}

async fn read_frame<R: AsyncRead + Unpin>(reader: &mut R) -> io::Result<(FrameKind, Vec<u8>)> {
    let mut header = [0; HEADER_LEN];
    reader.read_exact(&mut header).await?;
    let header = Header::decode(header).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let mut payload = vec![0; header.len];
    reader.read_exact(&mut payload).await?;
    Ok((header.kind, payload))
}

async fn run<S: AsyncRead + AsyncWrite + Send + 'static>(
    hello: &StdioHello,
    process: &Arc<Process>,
    reader: ReadHalf<S>,
    writer: &mut WriteHalf<S>,
) -> io::Result<()> {
    // Subscribed before anything is awaited, so that a copy begins with the hello.
    let copies = process.io.copies.subscribe();
    let mut input = tokio::spawn(read_input(Arc::clone(process), reader, hello.stdin));
    let result = tokio::select! {
        result = output(hello.primary, process, copies, writer) => result,
        _ = &mut input => Err(io::ErrorKind::ConnectionAborted.into()),
    };
    input.abort();
    result
}

async fn output<W: AsyncWrite + Unpin>(
    primary: bool,
    process: &Process,
    copies: broadcast::Receiver<super::Frame>,
    writer: &mut W,
) -> io::Result<()> {
    let refused = if primary { pump(process, writer).await? } else { copy(&process.io, copies, writer).await? };
    if let Some(message) = refused {
        return writer.write_all(&frame(FrameKind::Error, message.as_bytes())).await;
    }
    let exit = exit_message(process.wait().await).write_to_bytes().map_err(io::Error::from)?;
    writer.write_all(&frame(FrameKind::Exit, &exit)).await
}

/// Moves output to the primary connection; says why it is refused.
async fn pump<W: AsyncWrite + Unpin>(process: &Process, writer: &mut W) -> io::Result<Option<&'static str>> {
    let Ok(mut output) = tokio::time::timeout(PATIENCE, process.io.output.lock()).await else {
        return Ok(Some("the process has a primary connection already"));
    };
    let mut status = process.status.clone();
    loop {
        if output.undelivered.is_none() {
            let Some(frame) = output.next(&mut status).await else { break };
            // Nobody listening is the usual case.
            let _ = process.io.copies.send(Arc::clone(&frame));
            output.undelivered = Some(frame);
        }
        if let Some(frame) = &output.undelivered {
            writer.write_all(frame).await?;
            output.undelivered = None;
        }
    }
    process.io.drained.send_replace(true);
    Ok(None)
}

/// Copies frames to a secondary connection until the primary one has seen the last.
async fn copy<W: AsyncWrite + Unpin>(
    io: &ProcessIo,
    mut copies: broadcast::Receiver<super::Frame>,
    writer: &mut W,
) -> io::Result<Option<&'static str>> {
    let mut drained = io.drained.subscribe();
    loop {
        let received = tokio::select! {
            biased;
            received = copies.recv() => received,
            _ = drained.wait_for(|drained| *drained) => return Ok(None),
        };
        match received {
            Ok(frame) => writer.write_all(&frame).await?,
            Err(RecvError::Closed) => return Ok(None),
            Err(RecvError::Lagged(_)) => return Ok(Some("this connection was too slow for the process's output")),
        }
    }
}

/// Takes the caller's frames; returns when the caller is gone or breaks the protocol.
async fn read_input<R: AsyncRead + Unpin>(process: Arc<Process>, mut reader: R, accepted: bool) {
    while let Ok((kind, payload)) = read_frame(&mut reader).await {
        let mut ended = process.status.clone();
        match kind {
            FrameKind::Stdin if accepted => tokio::select! {
                () = process.io.feed(&payload) => {}
                _ = ended.wait_for(Option::is_some) => {}
            },
            FrameKind::StdinClosed if accepted => process.io.close_input().await,
            FrameKind::Stdin | FrameKind::StdinClosed => {}
            _ => return,
        }
    }
}

/// `status` as the protocol has it.
fn exit_message(status: Status) -> ExitStatus {
    let mut message = ExitStatus::new();
    message.code = status.code;
    message.oom_killed = status.oom_killed;
    message.finished_at_ns = status.finished_at_ns;
    message
}
