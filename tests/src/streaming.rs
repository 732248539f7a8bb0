//! A client of streaming URLs over WebSocket (v5.channel.k8s.io and base64): one thread, blocking.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bulkhead_proto::cri;
use serde_json::Value;
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket};

use crate::cri::Cri;

/// No answer of a healthy daemon takes longer.
const LIMIT: Duration = Duration::from_secs(180);
const STDIN: u8 = 0;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// What a session left.
#[derive(Debug, Default)]
pub struct Finished {
    /// Its standard output, or all output of a terminal.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
    /// `metav1.Status`; null when none came.
    pub status: Value,
}

impl Finished {
    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The exit code that the status tells.
    ///
    /// # Errors
    /// When it tells none.
    pub fn code(&self) -> Result<i32> {
        if self.status["status"] == "Success" {
            return Ok(0);
        }
        let cause = &self.status["details"]["causes"][0];
        ensure!(cause["reason"] == "ExitCode", "no exit code in {}", self.status);
        Ok(cause["message"].as_str().context("no code")?.parse()?)
    }
}

/// An open session.
#[derive(Debug)]
pub struct Session {
    socket: WebSocket<TcpStream>,
    got: Finished,
    base64: bool,
}

/// The URL of an Exec.
///
/// # Errors
/// The daemon's status.
pub fn exec_url(cri: &Cri, container: &str, command: &[&str], tty: bool) -> Result<String> {
    let request = cri::ExecRequest {
        container_id: container.to_owned(),
        cmd: command.iter().map(|word| (*word).to_owned()).collect(),
        tty,
        stdin: true,
        stdout: true,
        stderr: !tty,
    };
    Ok(cri.exec(request)?.url)
}

/// The URL of an Attach.
///
/// # Errors
/// The daemon's status.
pub fn attach_url(cri: &Cri, container: &str, tty: bool) -> Result<String> {
    let container_id = container.to_owned();
    let request = cri::AttachRequest { container_id, tty, stdin: true, stdout: true, stderr: !tty };
    Ok(cri.attach(request)?.url)
}

/// "127.0.0.1:1234" and "/exec/TOKEN" of a URL.
///
/// # Errors
/// For anything but plain HTTP.
pub fn parts(url: &str) -> Result<(&str, &str)> {
    let rest = url.strip_prefix("http://").with_context(|| format!("{url:?} is no http URL"))?;
    let slash = rest.find('/').with_context(|| format!("{url:?} has no path"))?;
    Ok(rest.split_at(slash))
}

impl Session {
    /// Connects.
    ///
    /// # Errors
    /// When the server does not take it; its answer is in the message.
    pub fn open(url: &str) -> Result<Self> {
        Self::open_as(url, "v5.channel.k8s.io")
    }

    /// Connects with a subprotocol, whose channels are in base64 when its name says so.
    ///
    /// # Errors
    /// When the server does not take it; its answer is in the message.
    pub fn open_as(url: &str, protocol: &str) -> Result<Self> {
        let (address, path) = parts(url)?;
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        let mut request = format!("ws://{address}{path}").into_client_request()?;
        request.headers_mut().insert("Sec-WebSocket-Protocol", protocol.parse()?);
        let (socket, _) = tungstenite::client(request, stream).map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok(Self { socket, got: Finished::default(), base64: protocol.contains("base64") })
    }

    fn send(&mut self, message: &[u8]) -> Result<()> {
        let message = match message {
            [channel, bytes @ ..] if self.base64 => {
                Message::Text(format!("{channel}{}", STANDARD.encode(bytes)).into())
            }
            _ => Message::Binary(message.to_vec().into()),
        };
        Ok(self.socket.send(message)?)
    }

    /// Sends input until nobody takes any for a second; then the buffers of both sides are full.
    ///
    /// # Errors
    /// When the server has gone.
    pub fn flood(&mut self) -> Result<()> {
        self.socket.get_ref().set_write_timeout(Some(Duration::from_secs(1)))?;
        let message = Message::Binary(vec![STDIN; 64 * 1024].into());
        loop {
            match self.socket.send(message.clone()) {
                Ok(()) => {}
                Err(tungstenite::Error::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Types.
    ///
    /// # Errors
    /// When the server has gone.
    pub fn input(&mut self, text: &str) -> Result<()> {
        self.send(&[&[STDIN], text.as_bytes()].concat())
    }

    /// Ends the input.
    ///
    /// # Errors
    /// When the server has gone.
    pub fn close_input(&mut self) -> Result<()> {
        self.send(&[CLOSE, STDIN])
    }

    /// Says how large the terminal is.
    ///
    /// # Errors
    /// When the server has gone.
    pub fn resize(&mut self, rows: u16, columns: u16) -> Result<()> {
        let size = serde_json::json!({ "Width": columns, "Height": rows }).to_string();
        self.send(&[&[RESIZE], size.as_bytes()].concat())
    }

    /// Takes one message; false at the end.
    fn step(&mut self) -> Result<bool> {
        let message = match self.socket.read() {
            Ok(Message::Binary(bytes)) if !self.base64 => bytes,
            Ok(Message::Text(text)) if self.base64 => decoded(text.as_str())?.into(),
            Ok(Message::Close(_)) | Err(tungstenite::Error::ConnectionClosed) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        match message.split_first() {
            Some((1, bytes)) => self.got.stdout.extend_from_slice(bytes),
            Some((2, bytes)) => self.got.stderr.extend_from_slice(bytes),
            Some((&ERROR, [])) => {}
            Some((&ERROR, bytes)) => self.got.status = serde_json::from_slice(bytes)?,
            other => bail!("a message on no channel: {other:?}"),
        }
        Ok(true)
    }

    /// Reads until standard output has `text`.
    ///
    /// # Errors
    /// When the session ends before, or that takes too long.
    pub fn until(&mut self, text: &str) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while !self.got.text().contains(text) {
            let goes_on = self.step().with_context(|| format!("{text:?} did not come, but {:?}", self.got))?;
            ensure!(goes_on && Instant::now() < deadline, "{text:?} did not come, but {:?}", self.got);
        }
        Ok(())
    }

    /// Reads to the end.
    ///
    /// # Errors
    /// When the connection breaks.
    pub fn finish(mut self) -> Result<Finished> {
        while self.step().with_context(|| format!("after {:?}", self.got.status))? {}
        Ok(self.got)
    }
}

/// A message of a base64 protocol: the channel as a digit, then its bytes.
fn decoded(text: &str) -> Result<Vec<u8>> {
    let (channel, rest) = text.split_at_checked(1).context("an empty message")?;
    let mut message = vec![channel.parse()?];
    message.extend(STANDARD.decode(rest)?);
    Ok(message)
}
