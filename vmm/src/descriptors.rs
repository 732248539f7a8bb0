//! Descriptors that the daemon hands over while the pod runs (`bulkhead_proto::launch`): a token names each until a
//! request takes it or its connection closes.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use bulkhead_proto::launch::MAX_TOKEN;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};

use crate::passing;

/// Most descriptors that wait at one time.
const MAX_WAITING: usize = 256;

/// Descriptors that wait to be taken, by token.
#[derive(Debug, Clone, Default)]
pub struct Descriptors {
    waiting: Arc<Mutex<HashMap<String, OwnedFd>>>,
}

impl Descriptors {
    /// Takes the descriptor with this token.
    #[must_use]
    pub fn take(&self, token: &str) -> Option<OwnedFd> {
        self.lock().remove(token)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, OwnedFd>> {
        self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn offer(&self, token: &str, descriptor: OwnedFd) -> Result<(), String> {
        let mut waiting = self.lock();
        if waiting.len() >= MAX_WAITING {
            return Err(format!("{MAX_WAITING} descriptors wait already"));
        }
        if waiting.contains_key(token) {
            return Err(format!("a descriptor with token {token:?} waits already"));
        }
        waiting.insert(token.to_owned(), descriptor);
        Ok(())
    }

    /// Serves the socket until the runtime ends.
    pub async fn serve(self, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(self.clone().receive(stream))),
                Err(error) => {
                    tracing::error!(%error, "the descriptor socket is broken");
                    return;
                }
            }
        }
    }

    async fn receive(self, mut stream: UnixStream) {
        let (token, result) = match read_message(&stream).await {
            Ok((token, descriptor)) => {
                let result = self.offer(&token, descriptor);
                (token, result)
            }
            Err(text) => (String::new(), Err(text)),
        };
        let answer = match &result {
            Ok(()) => "ok\n".to_owned(),
            Err(text) => format!("error: {text}\n"),
        };
        let sent = stream.write_all(answer.as_bytes()).await;
        if result.is_ok() {
            // The sender keeps the connection until its request was answered.
            if sent.is_ok() {
                let _ = stream.read(&mut [0]).await;
            }
            drop(self.take(&token));
        }
    }
}

async fn read_message(stream: &UnixStream) -> Result<(String, OwnedFd), String> {
    let peer = stream.peer_cred().map_err(|e| e.to_string())?;
    let own = rustix::process::geteuid().as_raw();
    if peer.uid() != own && peer.uid() != 0 {
        return Err(format!("user {} may not hand over descriptors", peer.uid()));
    }
    let mut buffer = [0; MAX_TOKEN + 1];
    let received = stream.async_io(Interest::READABLE, || passing::receive(stream, &mut buffer)).await;
    let (bytes, mut descriptors) = received.map_err(|e| e.to_string())?;
    let token = match std::str::from_utf8(&buffer[..bytes]) {
        Ok(token) if (1..=MAX_TOKEN).contains(&token.len()) => token.to_owned(),
        _ => return Err(format!("a token is 1 to {MAX_TOKEN} bytes of UTF-8")),
    };
    match (descriptors.pop(), descriptors.is_empty()) {
        (Some(descriptor), true) => Ok((token, descriptor)),
        (None, _) => Err(format!("no descriptor came with token {token:?}")),
        (Some(_), false) => Err(format!("more than one descriptor came with token {token:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    async fn send(path: &std::path::Path, token: &str, count: usize) -> (UnixStream, String) {
        let stream = std::os::unix::net::UnixStream::connect(path).unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        passing::send(&stream, token.as_bytes(), &vec![file.as_fd(); count]).unwrap();
        stream.set_nonblocking(true).unwrap();
        let mut stream = UnixStream::from_std(stream).unwrap();
        let mut answer = [0; 256];
        let read = stream.read(&mut answer).await.unwrap();
        (stream, String::from_utf8_lossy(&answer[..read]).into_owned())
    }

    #[tokio::test]
    async fn a_descriptor_waits_while_its_sender_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fd.sock");
        let descriptors = Descriptors::default();
        tokio::spawn(descriptors.clone().serve(UnixListener::bind(&path).unwrap()));
        let (first, answer) = send(&path, "one", 1).await;
        assert_eq!(answer, "ok\n");
        assert!(send(&path, "one", 1).await.1.contains("waits already"));
        assert!(send(&path, "two", 0).await.1.contains("no descriptor"));
        assert!(send(&path, "two", 2).await.1.contains("more than one"));
        assert!(descriptors.take("one").is_some() && descriptors.take("one").is_none());
        let (second, _) = send(&path, "three", 1).await;
        drop((first, second));
        while descriptors.lock().contains_key("three") {
            tokio::task::yield_now().await;
        }
    }
}
