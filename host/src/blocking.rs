//! File system calls on paths that other people choose: off the async threads, and within a time limit, because a hung
//! network file system must cost one request and not the daemon.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest wait for one path.
const LIMIT: Duration = Duration::from_secs(30);

/// A path did not answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{} did not answer within {} s; is its file system hung?", path.display(), LIMIT.as_secs())]
pub struct Hung {
    /// The path.
    pub path: PathBuf,
}

/// Runs `work`, which touches `path`, on a blocking thread. The thread itself may stay behind until the path answers.
pub async fn on_path<T: Send + 'static>(path: &Path, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Hung> {
    let hung = || Hung { path: path.to_owned() };
    match tokio::time::timeout(LIMIT, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(value)) => Ok(value),
        _ => Err(hung()),
    }
}
