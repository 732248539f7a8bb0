//! A connection to the service manager itself, without a message bus between: /run/systemd/private, which is root's.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::message::{self, Body, Call, Kind, Malformed, Message};

/// Longest line of the greeting.
const MAX_LINE: usize = 512;

/// Why a conversation failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ConnectionError {
    #[error("cannot talk to systemd")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("systemd refuses the connection: {0:?}")]
    Greeting(String),
    #[error("systemd refuses it: {message} ({name})")]
    Refused { name: String, message: String },
}

/// An open connection.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    serial: u32,
    /// That came while an answer was waited for.
    signals: VecDeque<Message>,
}

impl Connection {
    /// Connects; each answer must come within `limit`.
    ///
    /// # Errors
    /// When nobody listens, or the greeting is refused.
    pub fn open(socket: &Path, limit: Duration) -> Result<Self, ConnectionError> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        // EXTERNAL: the kernel tells who connects; the name is the user id's digits, in hexadecimal.
        let user: String =
            rustix::process::geteuid().as_raw().to_string().bytes().map(|digit| format!("{digit:02x}")).collect();
        stream.write_all(format!("\0AUTH EXTERNAL {user}\r\n").as_bytes())?;
        let answer = line(&mut stream)?;
        if !answer.starts_with("OK ") {
            return Err(ConnectionError::Greeting(answer));
        }
        stream.write_all(b"BEGIN\r\n")?;
        Ok(Self { stream, serial: 0, signals: VecDeque::new() })
    }

    /// Calls a method and waits for its answer.
    ///
    /// # Errors
    /// [`ConnectionError::Refused`] with the peer's words; else when the conversation breaks.
    pub fn call(&mut self, call: &Call<'_>, body: &Body) -> Result<Message, ConnectionError> {
        self.serial += 1;
        self.stream.write_all(&call.encode(self.serial, body))?;
        loop {
            let message = self.receive()?;
            match &message.kind {
                Kind::Return(serial) if *serial == self.serial => return Ok(message),
                Kind::Error(serial, name) if *serial == self.serial => {
                    let text = message.texts()?.into_iter().next().unwrap_or_default();
                    return Err(ConnectionError::Refused { name: name.clone(), message: text });
                }
                Kind::Signal(_) => self.signals.push_back(message),
                _ => {}
            }
        }
    }

    /// The next signal.
    ///
    /// # Errors
    /// When none comes within the connection's limit, or the conversation breaks.
    pub fn signal(&mut self) -> Result<Message, ConnectionError> {
        loop {
            if let Some(signal) = self.signals.pop_front() {
                return Ok(signal);
            }
            let message = self.receive()?;
            if matches!(message.kind, Kind::Signal(_)) {
                return Ok(message);
            }
        }
    }

    fn receive(&mut self) -> Result<Message, ConnectionError> {
        let mut start = [0; 16];
        self.stream.read_exact(&mut start)?;
        let mut bytes = vec![0; message::length(&start)?];
        bytes[..start.len()].copy_from_slice(&start);
        self.stream.read_exact(&mut bytes[start.len()..])?;
        Ok(Message::decode(&bytes)?)
    }
}

fn line(stream: &mut UnixStream) -> Result<String, ConnectionError> {
    let mut line = Vec::new();
    while line.len() < MAX_LINE && !line.ends_with(b"\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}
