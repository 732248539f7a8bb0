//! Requests to the pod's file server.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use crate::file_server::protocol::{MAX_ANSWER, NameError, Request};
use crate::rights;

/// It answers from memory.
const PATIENCE: Duration = Duration::from_secs(20);
/// Requests that wait for the one before.
const BACKLOG: usize = 64;

/// Why a volume cannot be added or removed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// No component of a path.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The launch message named none.
    #[error("the pod was started without a file server")]
    NoServer,
    /// The file server's words.
    #[error("the pod's file server could not {request}: {answer}")]
    Refused {
        /// What was asked.
        request: String,
        /// What it said.
        answer: String,
    },
    /// It died, or never came up.
    #[error("the pod's file server is gone or does not answer ({what}) to {request}")]
    Gone {
        /// What was asked.
        request: String,
        /// What failed.
        what: String,
    },
}

struct Job {
    request: Request,
    mount: Option<OwnedFd>,
    answer: oneshot::Sender<Result<(), VolumeError>>,
}

/// The file server as requests see it: one after the other.
#[derive(Debug, Clone)]
pub struct Volumes(mpsc::Sender<Job>);

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("request", &self.request).finish_non_exhaustive()
    }
}

impl Volumes {
    /// Talks to the file server at the other end of `socket`, on the current runtime.
    #[must_use]
    pub fn connect(socket: UnixStream) -> Self {
        let (sender, mut jobs) = mpsc::channel::<Job>(BACKLOG);
        tokio::spawn(async move {
            while let Some(job) = jobs.recv().await {
                let result = converse(&socket, &job.request, job.mount).await;
                // Whoever asked may have gone.
                let _ = job.answer.send(result);
            }
        });
        Self(sender)
    }

    /// Carries out a request; adding takes the detached mount.
    ///
    /// # Errors
    /// When the file server refuses or is gone.
    pub async fn ask(&self, request: Request, mount: Option<OwnedFd>) -> Result<(), VolumeError> {
        let gone = |request: String| VolumeError::Gone { request, what: "it is stopped".into() };
        let words = request.to_string();
        let (answer, result) = oneshot::channel();
        self.0.send(Job { request, mount, answer }).await.map_err(|_| gone(words.clone()))?;
        result.await.unwrap_or_else(|_| Err(gone(words)))
    }
}

async fn converse(socket: &UnixStream, request: &Request, mount: Option<OwnedFd>) -> Result<(), VolumeError> {
    let gone = |what: String| VolumeError::Gone { request: request.to_string(), what };
    let bytes = request.to_string();
    let conversation = async {
        let mount = mount.as_ref().map(AsFd::as_fd);
        let sent = socket.async_io(Interest::WRITABLE, || rights::send(socket, bytes.as_bytes(), mount)).await?;
        if sent != bytes.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let mut answer = [0; MAX_ANSWER];
        let (count, _) = socket.async_io(Interest::READABLE, || rights::receive(socket, &mut answer, 0)).await?;
        Ok::<_, io::Error>(String::from_utf8_lossy(&answer[..count]).into_owned())
    };
    let answer = tokio::time::timeout(PATIENCE, conversation).await;
    let answer = answer
        .map_err(|_| gone(format!("no answer within {} s", PATIENCE.as_secs())))?
        .map_err(|e| gone(e.to_string()))?;
    match answer.as_str() {
        "ok" => Ok(()),
        "" => Err(gone("it closed the connection".into())),
        text => Err(VolumeError::Refused {
            request: request.to_string(),
            answer: text.strip_prefix("error: ").unwrap_or(text).to_owned(),
        }),
    }
}
