//! One container's output, from the agent's frames to the log file.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use bulkhead_proto::agent::{ExitStatus, StdioHello};
use bulkhead_proto::launch::ContainerExitRecord;
use bulkhead_proto::stdio::{FrameKind, HEADER_LEN, Header};
use bulkhead_proto::{AGENT_STDIO_PORT, agent};
use protobuf::Message;
use time::OffsetDateTime;

use super::{Formatter, LogEnd, Stream};
use crate::devices::vsock::VsockHandle;

/// Something about a container's log failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum LogError {
    #[error("container {container} has a log already")]
    Attached { container: String },
    #[error("container {container} has no log here")]
    Unknown { container: String },
    #[error("cannot start the log thread of container {container}")]
    Thread { container: String, source: io::Error },
    #[error("cannot reach the agent's stdio port")]
    Connect(#[source] io::Error),
    #[error("the agent's stream broke")]
    Broken(#[source] io::Error),
    #[error("the agent's stream makes no sense: {0}")]
    Protocol(String),
    #[error("the agent has no stream: {0}")]
    Refused(String),
}

/// Copies until the container's exit, or until the connection breaks.
pub(super) fn run(container: &str, vsock: &VsockHandle, file: &Mutex<Option<File>>) -> LogEnd {
    let mut sink = Sink { container, file, lost_bytes: 0, complained: false };
    let exit = match copy(container, vsock, &mut sink) {
        Ok(exit) => Some(exit),
        Err(error) => {
            tracing::warn!(container, "its output ended early: {}", crate::error_text(&error));
            None
        }
    };
    LogEnd { exit, lost_bytes: sink.lost_bytes }
}

fn copy(container: &str, vsock: &VsockHandle, sink: &mut Sink<'_>) -> Result<ContainerExitRecord, LogError> {
    let mut stream = connect(container, vsock)?;
    let (mut formatter, mut lines) = (Formatter::default(), Vec::new());
    let mut payload = Vec::new();
    loop {
        let frame = match read_frame(&mut stream, &mut payload) {
            Ok(kind) => kind,
            Err(error) => {
                formatter.finish(OffsetDateTime::now_utc(), &mut lines);
                sink.write(&lines);
                return Err(error);
            }
        };
        let now = OffsetDateTime::now_utc();
        match frame {
            FrameKind::Stdout => formatter.push(Stream::Stdout, &payload, now, &mut lines),
            FrameKind::Stderr => formatter.push(Stream::Stderr, &payload, now, &mut lines),
            FrameKind::Exit => {
                formatter.finish(now, &mut lines);
                sink.write(&lines);
                return exit(container, &payload);
            }
            FrameKind::Error => return Err(LogError::Refused(String::from_utf8_lossy(&payload).into_owned())),
            kind => return Err(LogError::Protocol(format!("a {kind:?} frame from the agent"))),
        }
        sink.write(&lines);
        lines.clear();
    }
}

fn connect(container: &str, vsock: &VsockHandle) -> Result<UnixStream, LogError> {
    let mut stream = vsock.connect_blocking(AGENT_STDIO_PORT).map_err(LogError::Connect)?;
    stream.set_nonblocking(false).map_err(LogError::Connect)?;
    let hello = StdioHello { container_id: container.to_owned(), primary: true, ..Default::default() };
    let payload = hello.write_to_bytes().map_err(|e| LogError::Protocol(e.to_string()))?;
    let header = Header { kind: FrameKind::Hello, len: payload.len() }.encode();
    stream.write_all(&[&header[..], &payload].concat()).map_err(LogError::Broken)?;
    Ok(stream)
}

fn read_frame(stream: &mut impl Read, payload: &mut Vec<u8>) -> Result<FrameKind, LogError> {
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header).map_err(LogError::Broken)?;
    let header = Header::decode(header).map_err(|e| LogError::Protocol(e.to_string()))?;
    payload.resize(header.len, 0);
    stream.read_exact(payload).map_err(LogError::Broken)?;
    Ok(header.kind)
}

fn exit(container: &str, payload: &[u8]) -> Result<ContainerExitRecord, LogError> {
    let status: ExitStatus =
        agent::ExitStatus::parse_from_bytes(payload).map_err(|e| LogError::Protocol(e.to_string()))?;
    Ok(ContainerExitRecord {
        id: container.to_owned(),
        code: status.code.clamp(0, 255),
        oom_killed: status.oom_killed,
        // The host's clock: the guest's is a claim, and starts from whole seconds.
        finished_at_ns: crate::exit::now_ns(),
    })
}

/// The log file; a full disk loses lines, never the container.
struct Sink<'a> {
    container: &'a str,
    file: &'a Mutex<Option<File>>,
    lost_bytes: u64,
    complained: bool,
}

impl Sink<'_> {
    fn write(&mut self, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        // Held over the write, so that a reopened log's old file is complete when ReopenLog answers.
        let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(file) = file.as_mut() else { return };
        match file.write_all(lines) {
            Ok(()) => self.complained = false,
            Err(error) => {
                self.lost_bytes += lines.len() as u64;
                if !std::mem::replace(&mut self.complained, true) {
                    tracing::error!(container = self.container, %error, "cannot write its log; lines are lost until there is room");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_counted_and_recovers() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let file = Mutex::new(Some(full));
        let mut sink = Sink { container: "c", file: &file, lost_bytes: 0, complained: false };
        sink.write(b"12345");
        sink.write(b"67");
        assert_eq!(sink.lost_bytes, 7);
        *file.lock().unwrap() = Some(tempfile::tempfile().unwrap());
        sink.write(b"89");
        assert_eq!(sink.lost_bytes, 7);
    }

    #[test]
    fn hostile_frames_are_errors() {
        let mut payload = Vec::new();
        assert!(matches!(read_frame(&mut &[9u8; 8][..], &mut payload), Err(LogError::Protocol(_))));
        let header = Header { kind: FrameKind::Stdout, len: 5 }.encode();
        assert!(matches!(read_frame(&mut &header[..], &mut payload), Err(LogError::Broken(_))));
    }
}
