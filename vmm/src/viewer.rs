//! Connections of people to the guest's console.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::broadcast::error::RecvError;

use crate::console::Feed;
use crate::pod::Pod;

/// What a reader sees that was too slow.
const MISSED: &[u8] = b"\r\n[some of the console was missed]\r\n";

/// Copies the console to `socket`, what is kept of it first, and what comes from there to the keyboard, until either ends.
///
/// # Errors
/// When the descriptor is none of a stream socket, or the console's file cannot be read.
pub fn spawn(pod: Arc<Pod>, socket: OwnedFd) -> io::Result<()> {
    let socket = std::os::unix::net::UnixStream::from(socket);
    socket.peer_addr()?;
    socket.set_nonblocking(true)?;
    let (input, output) = UnixStream::from_std(socket)?.into_split();
    let (kept, feed) = pod.console_file.lock().unwrap_or_else(PoisonError::into_inner).subscribe()?;
    tokio::spawn(async move {
        // Who shuts its end down has gone, also when the guest has nothing to say.
        tokio::select! {
            () = type_in(&pod, input) => {}
            () = show(output, &kept, feed) => {}
        }
    });
    Ok(())
}

async fn show(mut output: tokio::net::unix::OwnedWriteHalf, kept: &[u8], mut feed: Feed) {
    let mut sent = output.write_all(kept).await;
    while sent.is_ok() {
        sent = match feed.recv().await {
            Ok(piece) => output.write_all(&piece).await,
            Err(RecvError::Lagged(_)) => output.write_all(MISSED).await,
            Err(RecvError::Closed) => return,
        };
    }
}

async fn type_in(pod: &Pod, mut input: tokio::net::unix::OwnedReadHalf) {
    let mut bytes = [0; 512];
    while let Ok(count @ 1..) = input.read(&mut bytes).await {
        if let Some(keyboard) = &pod.keyboard {
            keyboard.press(&bytes[..count]).await;
        }
    }
}
