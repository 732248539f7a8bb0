//! Two ttrpc connections over one socket, as containerd/nri's pkg/net/multiplex frames them: connection id and length of
//! the payload, both 32 bits big-endian, then the payload.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Connection on which the plugin serves the runtime.
const PLUGIN: u32 = 1;
/// Connection on which the runtime serves the plugin.
const RUNTIME: u32 = 2;
/// Bytes of a frame's head.
const HEAD: usize = 8;
/// Bytes of a ttrpc message's head, of which the first four are the length of the rest.
const TTRPC_HEAD: usize = 10;
/// Longest payload of a frame: a whole ttrpc message.
pub const MAX_PAYLOAD: usize = TTRPC_HEAD + (4 << 20);
/// What plugins on the reference stub read at once. Their reader takes no frame in parts, so a message is one frame of this
/// size and one with the rest.
const FIRST_FRAME: usize = 4096;
/// Bytes between a connection's user and the socket.
const BUFFER: usize = 64 << 10;

/// Why the connections broke.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum MuxError {
    #[error("a frame of connection {connection} has {length} bytes; {MAX_PAYLOAD} is the most")]
    TooLong { connection: u32, length: usize },
    #[error("the socket failed")]
    Socket(#[from] io::Error),
}

/// The ends of both connections.
#[derive(Debug)]
pub struct Connections {
    /// Here the plugin answers requests.
    pub plugin: DuplexStream,
    /// Here it sends its own.
    pub runtime: DuplexStream,
}

/// Carries both connections over `trunk` until either side is closed or `closed` is cancelled, which it is in any case at
/// the end.
pub fn start<T>(trunk: T, closed: CancellationToken) -> Connections
where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let (plugin, plugin_end) = tokio::io::duplex(BUFFER);
    let (runtime, runtime_end) = tokio::io::duplex(BUFFER);
    tokio::spawn(async move {
        let _guard = closed.clone().drop_guard();
        tokio::select! {
            () = closed.cancelled() => {}
            result = carry(trunk, plugin_end, runtime_end) => {
                if let Err(error) = result {
                    tracing::debug!(error = %crate::error_text(&error), "connection of an NRI plugin ended");
                }
            }
        }
    });
    Connections { plugin, runtime }
}

async fn carry<T>(trunk: T, plugin: DuplexStream, runtime: DuplexStream) -> Result<(), MuxError>
where
    T: AsyncRead + AsyncWrite,
{
    let (from_trunk, to_trunk) = tokio::io::split(trunk);
    let (from_plugin, to_plugin) = tokio::io::split(plugin);
    let (from_runtime, to_runtime) = tokio::io::split(runtime);
    let (frames, queue) = mpsc::channel(4);
    // The first that ends, ends all: half a connection is of no use to anybody.
    tokio::select! {
        result = distribute(from_trunk, to_plugin, to_runtime) => result,
        result = collect(from_plugin, PLUGIN, frames.clone()) => result,
        result = collect(from_runtime, RUNTIME, frames) => result,
        result = send(to_trunk, queue) => result,
    }
}

/// Reads frames and hands their payloads to their connections; those of others are dropped, as the reference does.
pub async fn distribute(
    mut trunk: impl AsyncRead + Unpin,
    mut plugin: impl AsyncWrite + Unpin,
    mut runtime: impl AsyncWrite + Unpin,
) -> Result<(), MuxError> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let mut head = [0; HEAD];
        match trunk.read_exact(&mut head).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            result => result?,
        };
        let [a, b, c, d, e, f, g, h] = head;
        let connection = u32::from_be_bytes([a, b, c, d]);
        let length = usize::try_from(u32::from_be_bytes([e, f, g, h])).unwrap_or(usize::MAX);
        if length > MAX_PAYLOAD {
            return Err(MuxError::TooLong { connection, length });
        }
        let mut left = length;
        while left > 0 {
            let part = left.min(BUFFER);
            trunk.read_exact(&mut buffer[..part]).await?;
            match connection {
                PLUGIN => plugin.write_all(&buffer[..part]).await?,
                RUNTIME => runtime.write_all(&buffer[..part]).await?,
                _ => {}
            }
            left -= part;
        }
    }
}

/// Reads ttrpc messages of one connection and queues them as frames.
async fn collect(
    mut from: ReadHalf<DuplexStream>,
    connection: u32,
    frames: mpsc::Sender<Vec<u8>>,
) -> Result<(), MuxError> {
    loop {
        let mut message = vec![0; TTRPC_HEAD];
        match from.read_exact(&mut message).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            result => result?,
        };
        let [a, b, c, d, ..] = message[..] else { return Ok(()) };
        let rest = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        let length = rest.saturating_add(TTRPC_HEAD);
        if length > MAX_PAYLOAD {
            return Err(MuxError::TooLong { connection, length });
        }
        message.resize(length, 0);
        from.read_exact(&mut message[TTRPC_HEAD..]).await?;
        if frames.send(framed(connection, &message)).await.is_err() {
            return Ok(());
        }
    }
}

/// A message as one frame or two.
fn framed(connection: u32, message: &[u8]) -> Vec<u8> {
    let (first, rest) = message.split_at(message.len().min(FIRST_FRAME));
    let mut bytes = Vec::with_capacity(message.len() + 2 * HEAD);
    for part in [first, rest].into_iter().filter(|part| !part.is_empty()) {
        bytes.extend(connection.to_be_bytes());
        bytes.extend(u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend(part);
    }
    bytes
}

async fn send<T: AsyncWrite>(mut trunk: WriteHalf<T>, mut queue: mpsc::Receiver<Vec<u8>>) -> Result<(), MuxError> {
    while let Some(bytes) = queue.recv().await {
        trunk.write_all(&bytes).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_taken_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64), known in any::<bool>()) {
            let mut bytes = bytes;
            if known && bytes.len() >= 8 {
                bytes[..7].copy_from_slice(&[0, 0, 0, 1, 0, 0, 0]);
            }
            let (mut plugin, mut other) = (Vec::new(), Vec::new());
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _ = runtime.block_on(distribute(&bytes[..], &mut plugin, &mut other));
            prop_assert!(plugin.len() + other.len() <= bytes.len().saturating_sub(HEAD));
        }
    }

    /// A ttrpc message with `length` bytes after its head.
    fn message(length: usize) -> Vec<u8> {
        let mut bytes = u32::try_from(length).unwrap().to_be_bytes().to_vec();
        bytes.extend([0, 0, 0, 1, 1, 0]);
        bytes.extend((0..length).map(|n| u8::try_from(n % 251).unwrap()));
        bytes
    }

    #[tokio::test]
    async fn what_goes_in_at_one_end_comes_out_at_the_other() {
        let (here, there) = tokio::io::duplex(1000);
        let closed = CancellationToken::new();
        let mut ours = start(here, closed.clone());
        let mut theirs = start(there, CancellationToken::new());
        for length in [0, 1, FIRST_FRAME - TTRPC_HEAD, FIRST_FRAME, 300_000] {
            let sent = message(length);
            let (mut to_runtime, mut to_plugin) = (vec![0; sent.len()], vec![0; sent.len()]);
            let (a, b, c, d) = tokio::join!(
                theirs.runtime.write_all(&sent),
                ours.runtime.read_exact(&mut to_runtime),
                ours.plugin.write_all(&sent),
                theirs.plugin.read_exact(&mut to_plugin),
            );
            a.unwrap();
            b.unwrap();
            c.unwrap();
            d.unwrap();
            assert!(to_runtime == sent && to_plugin == sent, "{length} bytes");
        }
        drop(theirs);
        closed.cancelled().await;
        assert_eq!(ours.plugin.read(&mut [0]).await.unwrap(), 0);
    }

    #[test]
    fn a_message_is_one_frame_or_two() {
        let heads = |length: usize| {
            let bytes = framed(2, &vec![7; length]);
            let (mut at, mut heads) = (0, Vec::new());
            while at < bytes.len() {
                assert_eq!(bytes[at..at + 4], 2u32.to_be_bytes());
                let length = u32::from_be_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
                heads.push(length);
                at += HEAD + length;
            }
            heads
        };
        assert_eq!(heads(10), [10]);
        assert_eq!(heads(4096), [4096]);
        assert_eq!(heads(MAX_PAYLOAD), [4096, MAX_PAYLOAD - 4096]);
    }

    #[tokio::test]
    async fn garbage_ends_the_connection() {
        let too_long = [0, 0, 0, 1, 0xff, 0, 0, 0];
        let error = distribute(&too_long[..], tokio::io::sink(), tokio::io::sink()).await.unwrap_err();
        assert!(error.to_string().contains("4278190080 bytes"), "{error}");
        let cut = [0, 0, 0, 1, 0, 0, 0, 9, 1];
        assert!(distribute(&cut[..], tokio::io::sink(), tokio::io::sink()).await.is_err());
        // Connections that nobody knows are read over.
        let (mut plugin, mut runtime) = (Vec::new(), Vec::new());
        let unknown = [0, 0, 0, 9, 0, 0, 0, 1, 5, 0, 0, 0, 2, 0, 0, 0, 1, 6];
        distribute(&unknown[..], &mut plugin, &mut runtime).await.unwrap();
        assert!(plugin.is_empty() && runtime == [6]);
    }
}
