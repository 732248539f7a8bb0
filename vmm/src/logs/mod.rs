//! Container output: read from the agent's stdio port, written to CRI log files, one thread per container.
//!
//! A thread each, because a log on a slow or full disk must not hold up another container.

mod copy;
mod format;

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex};

use bulkhead_proto::launch::ContainerExitRecord;
use tokio::sync::watch;

pub use copy::LogError;
pub use format::{Formatter, MAX_TEXT, Stream};

use crate::devices::vsock::VsockHandle;

/// Enough for the copying loop; its buffers are on the heap.
const STACK: usize = 128 * 1024;

/// How a container's output ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEnd {
    /// As the agent said; `None` when the connection broke first.
    pub exit: Option<ContainerExitRecord>,
    /// Bytes that could not be written.
    pub lost_bytes: u64,
}

/// Where lines go; swapped when the log is reopened.
type LogFile = Arc<Mutex<Option<File>>>;
/// Set once the output has ended.
type LogEnded = watch::Receiver<Option<LogEnd>>;

/// A container's log while its thread runs and until it is forgotten.
#[derive(Debug)]
struct Log {
    file: LogFile,
    end: LogEnded,
}

/// Every container's log.
#[derive(Debug, Default)]
pub struct Logs {
    logs: Mutex<HashMap<String, Log>>,
}

impl Logs {
    /// Starts copying a container's output into `file`, or nowhere.
    pub fn attach(&self, container: &str, file: Option<File>, vsock: &VsockHandle) -> Result<(), LogError> {
        let mut logs = self.lock();
        if logs.contains_key(container) {
            return Err(LogError::Attached { container: container.to_owned() });
        }
        let file = Arc::new(Mutex::new(file));
        let (ended, end) = watch::channel(None);
        let (target, vsock, name) = (file.clone(), vsock.clone(), container.to_owned());
        std::thread::Builder::new()
            .name(format!("log-{}", &container[..container.len().min(8)]))
            .stack_size(STACK)
            .spawn(move || {
                let end = copy::run(&name, &vsock, &target);
                ended.send_replace(Some(end));
            })
            .map_err(|source| LogError::Thread { container: container.to_owned(), source })?;
        logs.insert(container.to_owned(), Log { file, end });
        Ok(())
    }

    /// Sends further lines to `file`; lines before it are in the old one when this returns.
    pub fn reopen(&self, container: &str, file: File) -> Result<(), LogError> {
        let slot = self.find(container)?.0;
        *slot.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(file);
        Ok(())
    }

    /// Resolves when the container's last line is written.
    pub async fn wait(&self, container: &str) -> Result<LogEnd, LogError> {
        let mut end = self.find(container)?.1;
        let gone = || LogError::Unknown { container: container.to_owned() };
        let value = end.wait_for(Option::is_some).await.map_err(|_| gone())?.clone();
        value.ok_or_else(gone)
    }

    /// Resolves when every container's output has ended.
    pub async fn wait_all(&self) {
        let ends: Vec<_> = self.lock().values().map(|log| log.end.clone()).collect();
        for mut end in ends {
            let _ = end.wait_for(Option::is_some).await;
        }
    }

    /// Forgets a container. Idempotent.
    pub fn detach(&self, container: &str) {
        self.lock().remove(container);
    }

    /// Exits that agents have reported, of containers not yet forgotten.
    #[must_use]
    pub fn exits(&self) -> Vec<ContainerExitRecord> {
        let logs = self.lock();
        logs.values().filter_map(|log| log.end.borrow().as_ref().and_then(|end| end.exit.clone())).collect()
    }

    fn find(&self, container: &str) -> Result<(LogFile, LogEnded), LogError> {
        let logs = self.lock();
        let log = logs.get(container).ok_or_else(|| LogError::Unknown { container: container.to_owned() })?;
        Ok((log.file.clone(), log.end.clone()))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Log>> {
        self.logs.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
