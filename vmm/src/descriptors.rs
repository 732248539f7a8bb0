//! The descriptor socket: keeps what the daemon hands over until a request names it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bulkhead_proto::launch::MAX_TOKEN;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::rights;

/// Connections at a time, and so descriptors that wait.
const MAX_CONNECTIONS: usize = 256;
/// A client sends its message at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a descriptor is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Nothing waits under this name.
    #[error("no descriptor was sent with token {0:?}, or its connection is closed; send it again")]
    Unknown(String),
}

#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("you are uid {0}, neither root nor the user of this process")]
    Stranger(u32),
    #[error("no message came within {} s", PATIENCE.as_secs())]
    Late,
    #[error("a token has 1 to {MAX_TOKEN} bytes of UTF-8")]
    Token,
    #[error("exactly one descriptor comes with a token, not {0}")]
    Count(usize),
    #[error("token {0:?} is in use")]
    Taken(String),
    #[error("cannot receive: {0}")]
    Io(#[from] io::Error),
}

/// The descriptors that wait. Clones share the table.
#[derive(Debug, Clone, Default)]
pub struct Tokens(Arc<Mutex<HashMap<String, OwnedFd>>>);

impl Tokens {
    /// Takes the descriptor that was sent with `token`.
    ///
    /// # Errors
    /// When there is none.
    pub fn take(&self, token: &str) -> Result<OwnedFd, TokenError> {
        self.table().remove(token).ok_or_else(|| TokenError::Unknown(token.to_owned()))
    }

    fn table(&self) -> MutexGuard<'_, HashMap<String, OwnedFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves connections for as long as the process lives.
    pub async fn serve(self, listener: UnixListener) {
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(permit) = room.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let tokens = self.clone();
                    tokio::spawn(async move {
                        tokens.converse(stream).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!("descriptor socket: cannot accept a connection: {error}");
                    // Out of descriptors, most likely: some close before long.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn converse(&self, mut stream: UnixStream) {
        match self.admit(&stream).await {
            Ok(token) => {
                let told = stream.write_all(b"ok\n").await;
                // More bytes mean nothing; the end of the stream ends the token.
                while told.is_ok() && matches!(stream.read(&mut [0; 64]).await, Ok(1..)) {}
                let forgotten = self.table().remove(&token);
                drop(forgotten);
            }
            Err(refusal) => {
                let _ = stream.write_all(format!("error: {refusal}\n").as_bytes()).await;
            }
        }
    }

    async fn admit(&self, stream: &UnixStream) -> Result<String, Refusal> {
        let peer = stream.peer_cred()?.uid();
        if peer != 0 && peer != rustix::process::geteuid().as_raw() {
            return Err(Refusal::Stranger(peer));
        }
        let mut buffer = [0; MAX_TOKEN + 1];
        let message = stream.async_io(Interest::READABLE, || rights::receive(stream, &mut buffer, rights::MAX));
        let (count, mut descriptors) = tokio::time::timeout(PATIENCE, message).await.map_err(|_| Refusal::Late)??;
        if count == 0 || count > MAX_TOKEN {
            return Err(Refusal::Token);
        }
        let token = std::str::from_utf8(&buffer[..count]).map_err(|_| Refusal::Token)?.to_owned();
        let descriptor = match (descriptors.len(), descriptors.pop()) {
            (1, Some(descriptor)) => descriptor,
            (count, _) => return Err(Refusal::Count(count)),
        };
        match self.table().entry(token.clone()) {
            Entry::Occupied(_) => Err(Refusal::Taken(token)),
            Entry::Vacant(place) => {
                place.insert(descriptor);
                Ok(token)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{BufRead, BufReader};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream as Blocking;
    use std::path::Path;

    fn ask(path: &Path, token: &[u8], file: Option<&File>) -> (Blocking, String) {
        let stream = Blocking::connect(path).unwrap();
        rights::send(&stream, token, file.map(AsFd::as_fd)).unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        (stream, line)
    }

    #[tokio::test]
    async fn descriptors_wait_for_their_request() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("d");
        let tokens = Tokens::default();
        tokio::spawn(tokens.clone().serve(UnixListener::bind(&path).unwrap()));
        let client = tokio::task::spawn_blocking(move || {
            let file = tempfile::tempfile().unwrap();
            let (held, answer) = ask(&path, b"log:1", Some(&file));
            assert_eq!(answer, "ok\n");
            assert_eq!(ask(&path, b"log:1", Some(&file)).1, "error: token \"log:1\" is in use\n");
            assert_eq!(ask(&path, b"x", None).1, "error: exactly one descriptor comes with a token, not 0\n");
            assert!(ask(&path, &[b'x'; MAX_TOKEN + 1], Some(&file)).1.starts_with("error: a token has"));
            assert!(ask(&path, b"\xff", Some(&file)).1.starts_with("error: a token has"));
            let (gone, answer) = ask(&path, b"gone", Some(&file));
            assert_eq!(answer, "ok\n");
            drop(gone);
            held
        });
        let held = client.await.unwrap();
        while tokens.table().contains_key("gone") {
            tokio::task::yield_now().await;
        }
        assert!(tokens.take("log:1").is_ok());
        assert!(tokens.take("log:1").is_err());
        drop(held);
    }
}
