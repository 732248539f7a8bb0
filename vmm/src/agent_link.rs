//! How this process reaches the pod's agent, whatever carries it.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bulkhead_proto::AGENT_READY_PORT;
use tokio::sync::mpsc;

use crate::devices::vsock::VsockHandle;

/// An agent that takes connections answers the first line at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// Clones lead to the same agent.
#[derive(Debug, Clone)]
pub enum AgentLink {
    /// In a guest.
    Vsock(VsockHandle),
    /// A process of the host.
    Socket(SocketLink),
}

/// The socket of an agent on the host.
#[derive(Debug, Clone)]
pub struct SocketLink {
    path: PathBuf,
    ready: Arc<Mutex<Option<UnixStream>>>,
}

impl SocketLink {
    /// The agent listens on `path`, and says so on `ready`.
    #[must_use]
    pub fn new(path: PathBuf, ready: UnixStream) -> Self {
        Self { path, ready: Arc::new(Mutex::new(Some(ready))) }
    }
}

impl AgentLink {
    /// Connects to a port of the agent: a non-blocking stream.
    ///
    /// # Errors
    /// When the agent is gone or nobody listens there.
    pub async fn connect(&self, port: u32) -> io::Result<UnixStream> {
        match self {
            Self::Vsock(vsock) => vsock.connect(port).await,
            Self::Socket(SocketLink { path, .. }) => {
                let path = path.clone();
                let connected = tokio::task::spawn_blocking(move || connect(&path, port)).await;
                connected.map_err(io::Error::other)?
            }
        }
    }

    /// The agent's word that it listens. Needs the runtime; to be called once.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn ready(&self) -> io::Result<mpsc::Receiver<UnixStream>> {
        let SocketLink { ready, .. } = match self {
            Self::Vsock(vsock) => return vsock.listen(AGENT_READY_PORT),
            Self::Socket(link) => link,
        };
        let taken = ready.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut stream = taken.ok_or(io::ErrorKind::AddrInUse)?;
        let (sender, receiver) = mpsc::channel(1);
        tokio::task::spawn_blocking(move || {
            // An agent that ends without a word is told by its exit status.
            if stream.read(&mut [0; 16]).is_ok_and(|count| count > 0) {
                let _ = sender.blocking_send(stream);
            }
        });
        Ok(receiver)
    }

    /// Bytes that went to the agent and came from it, as far as this process carries them.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        match self {
            Self::Vsock(vsock) => (vsock.counters().to_guest_bytes(), vsock.counters().from_guest_bytes()),
            Self::Socket(_) => (0, 0),
        }
    }
}

fn connect(path: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let expected = format!("OK {port}\n");
    let mut answer = vec![0; expected.len()];
    stream.read_exact(&mut answer)?;
    if answer != expected.as_bytes() {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    stream.set_read_timeout(None)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_port_is_asked_for_in_the_first_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let agent = std::thread::spawn(move || {
            for answer in ["OK 1025\nhello", "ERR nobody\n"] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut line = [0; 13];
                stream.read_exact(&mut line).unwrap();
                assert_eq!(&line, b"CONNECT 1025\n");
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        let mut stream = connect(&path, 1025).unwrap();
        stream.set_nonblocking(false).unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "hello");
        assert_eq!(connect(&path, 1025).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        agent.join().unwrap();
    }
}
