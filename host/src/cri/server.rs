//! The CRI socket.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bulkhead_proto::cri::image_service_server::ImageServiceServer;
use bulkhead_proto::cri::runtime_service_server::RuntimeServiceServer;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;

use super::deadline::DeadlineLayer;
use super::image::ImageVerbs;
use super::runtime::Runtime;
use crate::node::Node;

/// The kubelet's own limit (16 MiB), so that what it can send is taken.
const MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// How long requests may go on once the daemon was told to stop; what they began is finished or undone by the next one.
const GRACE: Duration = Duration::from_secs(2);

/// Why the socket is not served.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ServeError {
    #[error("cannot listen on {}", path.display())]
    Listen { path: PathBuf, source: std::io::Error },
    #[error("{} is no socket; set daemon.socket to another path", path.display())]
    NoSocket { path: PathBuf },
    #[error("another daemon answers on {}; stop it, or set daemon.socket to another path", path.display())]
    Served { path: PathBuf },
    #[error("serving {} failed", path.display())]
    Serve { path: PathBuf, source: tonic::transport::Error },
}

/// Binds the socket, for root only. A stale socket of a daemon that was killed is replaced.
pub fn bind(path: &Path) -> Result<UnixListener, ServeError> {
    let fail = |source| ServeError::Listen { path: path.to_owned(), source };
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(fail)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(ServeError::NoSocket { path: path.to_owned() }),
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            return Err(ServeError::Served { path: path.to_owned() });
        }
        Ok(_) => std::fs::remove_file(path).map_err(fail)?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(fail)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(fail)?;
    Ok(listener)
}

/// Serves both services until `stop` resolves. Requests that run then get [`GRACE`] to end; a client that only keeps its
/// connection open, as the kubelet does, holds nothing up.
pub async fn serve(
    node: Arc<Node>,
    listener: UnixListener,
    path: &Path,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let events = node.events.clone();
    let runtime = RuntimeServiceServer::new(Runtime::new(node.clone())).max_decoding_message_size(MAX_MESSAGE);
    let images = ImageServiceServer::new(ImageVerbs::new(node)).max_decoding_message_size(MAX_MESSAGE);
    let (stopped, mut graceful) = tokio::sync::watch::channel(false);
    let mut forced = graceful.clone();
    tokio::spawn(async move {
        stop.await;
        stopped.send_replace(true);
        // Their streams have no end of their own.
        events.close();
    });
    let served = tonic::transport::Server::builder()
        .layer(DeadlineLayer)
        .add_service(runtime)
        .add_service(images)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async move {
            let _ = graceful.wait_for(|stopped| *stopped).await;
        });
    let deadline = async {
        let _ = forced.wait_for(|stopped| *stopped).await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        result = served => result.map_err(|source| ServeError::Serve { path: path.to_owned(), source }),
        () = deadline => Ok(()),
    }
}
