//! One connection to the stdio port.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_proto::agent::{ExitStatus, StdioHello};
use bulkhead_proto::stdio::{FrameKind, HEADER_LEN, Header};
use protobuf::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use super::peer::Peer;
use super::{Frame, frame, port};
use crate::container::process::{Process, Status};
use crate::sandbox::Sandbox;
use crate::sys;

/// Longest wait for the first frame, and for an earlier primary connection to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves a connection to its end.
pub async fn serve<S: AsyncRead + AsyncWrite + AsFd + Send + 'static>(sandbox: Arc<Sandbox>, stream: S) {
    let peer = match Peer::of(&stream) {
        Ok(peer) => Arc::new(peer),
        Err(error) => return crate::log::warning!("cannot watch a stdio connection: {error}"),
    };
    let (mut reader, mut writer) = tokio::io::split(stream);
    let opened = match tokio::time::timeout(PATIENCE, open(&sandbox, &mut reader)).await {
        Ok(opened) => opened,
        Err(_) => Err("no hello frame came".into()),
    };
    let served = match opened {
        Ok(Opened::Port(number)) => port::serve(number, reader, &mut writer, peer).await,
        Ok(Opened::Process(hello, process)) => {
            let served = run(&hello, &process, (reader, peer), &mut writer).await;
            if served.is_err() && hello.primary && !hello.exec_id.is_empty() {
                tokio::spawn(abandon(sandbox, hello, process));
            }
            served
        }
        Err(message) => writer.write_all(&frame(FrameKind::Error, message.as_bytes())).await,
    };
    // A reader that went away needs no farewell.
    if served.is_ok() {
        let _ = writer.shutdown().await;
    }
}

/// What a connection is about.
enum Opened {
    Process(StdioHello, Arc<Process>),
    Port(u32),
}

async fn open<R: AsyncRead + Unpin>(sandbox: &Sandbox, reader: &mut R) -> Result<Opened, String> {
    let (kind, payload) = read_frame(reader).await.map_err(|error| error.to_string())?;
    if kind != FrameKind::Hello {
        return Err(format!("the first frame is {kind:?}, not Hello"));
    }
    let hello = StdioHello::parse_from_bytes(&payload).map_err(|error| format!("bad hello: {error}"))?;
    if hello.port != 0 {
        return Ok(Opened::Port(hello.port));
    }
    let process = sandbox.process(&hello.container_id, &hello.exec_id).map_err(|error| error.to_string())?;
    Ok(Opened::Process(hello, process))
}

/// An exec'd process whose caller has gone and will not come back: its input ends, a terminal hangs up, its output is
/// thrown away, so that it can end by itself; then it is forgotten.
async fn abandon(sandbox: Arc<Sandbox>, hello: StdioHello, process: Arc<Process>) {
    if process.io.has_terminal() && !process.has_ended() {
        // It may have ended just now.
        let _ = sys::kill_group(process.pid, libc::SIGHUP);
        let _ = sys::kill_group(process.pid, libc::SIGCONT);
    }
    process.io.close_input().await;
    // Another connection may have taken over, which was refused a busy process until now.
    let _ = pump(&process, &mut tokio::io::sink()).await;
    process.wait().await;
    if let Ok(container) = sandbox.container(&hello.container_id) {
        container.remove_process(&hello.exec_id);
    }
}

/// One whole frame.
pub(super) async fn read_frame<R: AsyncRead + Unpin>(reader: &mut R) -> io::Result<(FrameKind, Vec<u8>)> {
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
    reader: (ReadHalf<S>, Arc<Peer>),
    writer: &mut WriteHalf<S>,
) -> io::Result<()> {
    // Before anything is awaited, so that a copy begins with the hello.
    let copies = (!hello.primary).then(|| process.io.subscribe());
    let mut input = tokio::spawn(read_input(Arc::clone(process), reader, hello.stdin));
    let result = tokio::select! {
        result = output(process, copies, writer) => result,
        _ = &mut input => Err(io::ErrorKind::ConnectionAborted.into()),
    };
    input.abort();
    result
}

async fn output<W: AsyncWrite + Unpin>(
    process: &Process,
    copies: Option<mpsc::Receiver<Frame>>,
    writer: &mut W,
) -> io::Result<()> {
    let refused = match copies {
        None => pump(process, writer).await?,
        Some(copies) => copy(process, copies, writer).await?,
    };
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
            output.undelivered = Some(Arc::clone(&frame));
            process.io.copy(&frame).await;
        }
        if let Some(frame) = &output.undelivered {
            writer.write_all(frame).await?;
            output.undelivered = None;
        }
    }
    process.io.end_copies();
    Ok(None)
}

/// Copies frames to a secondary connection until the primary one has seen the last.
async fn copy<W: AsyncWrite + Unpin>(
    process: &Process,
    mut copies: mpsc::Receiver<Frame>,
    writer: &mut W,
) -> io::Result<Option<&'static str>> {
    while let Some(frame) = copies.recv().await {
        writer.write_all(&frame).await?;
    }
    Ok((!process.io.copies_have_ended()).then_some("this connection was too slow for the process's output"))
}

/// Takes the caller's frames; returns when the caller is gone or breaks the protocol. What the process does not read holds
/// the caller up, but hides its end from nobody.
async fn read_input<R: AsyncRead + Unpin>(process: Arc<Process>, (mut reader, peer): (R, Arc<Peer>), accepted: bool) {
    while let Ok((kind, payload)) = read_frame(&mut reader).await {
        let mut ended = process.status.clone();
        match kind {
            FrameKind::Stdin if accepted => tokio::select! {
                () = process.io.feed(&payload) => {}
                _ = ended.wait_for(Option::is_some) => {}
                () = peer.gone() => return,
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
