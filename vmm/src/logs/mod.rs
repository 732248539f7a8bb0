//! Containers' output, from the agent's stdio port to log files in CRI's format.
//!
//! ```text
//! agent --frames--> Decoder --bytes--> Formatter --records--> Sink --write(2)--> log file
//! ```

mod follow;
mod format;
mod frames;
mod sink;
mod timestamp;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bulkhead_proto::AGENT_STDIO_PORT;
use bulkhead_proto::agent::StdioHello;
use bulkhead_proto::launch::ContainerExitRecord;
use bulkhead_proto::stdio::{FrameKind, Header, MAX_PAYLOAD};
use protobuf::Message;

use self::follow::Follower;
pub use self::follow::LogEnd;
use crate::agent_link::AgentLink;

/// Containers of one pod; a thread each.
const MAX_LOGS: usize = 1024;
/// Longest container id in bytes.
const MAX_ID: usize = 256;

/// Why a log cannot be had, or followed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Not attached, or detached.
    #[error("container {0} has no log attached")]
    Unknown(String),
    /// Attached twice.
    #[error("container {0} has a log attached already; detach it first")]
    Exists(String),
    /// Its last line is written.
    #[error("the output of container {0} has ended")]
    Ended(String),
    /// No container is called that.
    #[error("container id has {0} bytes, not 1 to {MAX_ID}")]
    Id(usize),
    /// The pod has too many.
    #[error("the pod has {MAX_LOGS} logs attached, which is the limit")]
    TooMany,
    /// The agent cannot be reached.
    #[error("cannot connect to the agent for the output of container {container}: {source}")]
    Connect {
        /// Whose.
        container: String,
        /// Why.
        source: io::Error,
    },
    /// The stream broke.
    #[error("output of container {container}: {what}")]
    Stream {
        /// Whose.
        container: String,
        /// In words.
        what: String,
    },
}

/// The logs of a pod's containers. A place without a follower is one that is being connected.
pub struct Logs {
    followers: Mutex<HashMap<String, Option<Arc<Follower>>>>,
    agent: AgentLink,
}

impl std::fmt::Debug for Logs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Logs").field("attached", &self.followers().len()).finish_non_exhaustive()
    }
}

impl Logs {
    /// None are attached yet.
    #[must_use]
    pub fn new(agent: AgentLink) -> Self {
        Self { followers: Mutex::default(), agent }
    }

    /// Copies a container's output into `target`, or nowhere, from its first byte on.
    ///
    /// # Errors
    /// When it is attached already, or the agent cannot be reached.
    pub async fn attach(&self, container: &str, target: Option<File>) -> Result<(), LogError> {
        if container.is_empty() || container.len() > MAX_ID {
            return Err(LogError::Id(container.len()));
        }
        let place = self.reserve(container)?;
        let failed = |source| LogError::Connect { container: container.to_owned(), source };
        let mut stream = self.agent.connect(AGENT_STDIO_PORT).await.map_err(failed)?;
        let follower = say_hello(&mut stream, container)
            .and_then(|()| Follower::start(container, stream, target))
            .map_err(failed)?;
        place.fill(follower);
        Ok(())
    }

    fn reserve<'a>(&'a self, container: &'a str) -> Result<Place<'a>, LogError> {
        let mut followers = self.followers();
        if followers.len() >= MAX_LOGS {
            return Err(LogError::TooMany);
        }
        match followers.entry(container.to_owned()) {
            Entry::Occupied(_) => Err(LogError::Exists(container.to_owned())),
            Entry::Vacant(place) => {
                place.insert(None);
                Ok(Place { logs: self, container })
            }
        }
    }

    /// Later lines go to `target`; returns when every line before is in the old file.
    ///
    /// # Errors
    /// When there is no such log, or its output has ended.
    pub async fn reopen(&self, container: &str, target: File) -> Result<(), LogError> {
        let done = self.find(container)?.reopen(target);
        done.await.map_err(|_| LogError::Ended(container.to_owned()))
    }

    /// Returns when the container's last line is written.
    ///
    /// # Errors
    /// When there is no such log, or the agent refused.
    pub async fn wait(&self, container: &str) -> Result<LogEnd, LogError> {
        let mut end = self.find(container)?.end();
        let failed = |what: String| LogError::Stream { container: container.to_owned(), what };
        let end = end.wait_for(Option::is_some).await.map_err(|_| failed("its thread ended early".into()))?.clone();
        match end {
            Some(LogEnd { error: Some(what), .. }) => Err(failed(what)),
            end => Ok(end.unwrap_or_default()),
        }
    }

    /// Forgets a container's log; its output is no longer read. Idempotent.
    pub fn detach(&self, container: &str) {
        let follower = self.followers().remove(container);
        drop(follower);
    }

    /// The VM has ended: waits until the logs have their last lines, but not longer than `limit`.
    pub async fn drain(&self, limit: Duration) {
        let ends: Vec<_> = self.followers().values().flatten().map(|follower| follower.end()).collect();
        let all = async {
            for mut end in ends {
                let _ = end.wait_for(Option::is_some).await;
            }
        };
        if tokio::time::timeout(limit, all).await.is_err() {
            tracing::warn!("a container's log did not take its last lines within {} s", limit.as_secs());
        }
    }

    /// The exits that the agent reported and nobody detached.
    #[must_use]
    pub fn exits(&self) -> Vec<ContainerExitRecord> {
        let mut exits = Vec::new();
        for (id, follower) in self.followers().iter() {
            let end = follower.as_ref().and_then(|follower| follower.end().borrow().clone());
            if let Some(exit) = end.and_then(|end| end.exit) {
                exits.push(ContainerExitRecord {
                    id: id.clone(),
                    code: exit.code,
                    oom_killed: exit.oom_killed,
                    finished_at_ns: exit.finished_at_ns,
                });
            }
        }
        exits.sort_by(|a, b| a.id.cmp(&b.id));
        exits
    }

    fn find(&self, container: &str) -> Result<Arc<Follower>, LogError> {
        self.followers().get(container).cloned().flatten().ok_or_else(|| LogError::Unknown(container.to_owned()))
    }

    fn followers(&self) -> MutexGuard<'_, HashMap<String, Option<Arc<Follower>>>> {
        self.followers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name that is taken until it is filled or given back.
struct Place<'a> {
    logs: &'a Logs,
    container: &'a str,
}

impl Place<'_> {
    fn fill(self, follower: Follower) {
        // A detach in the meantime wins.
        if let Some(place) = self.logs.followers().get_mut(self.container) {
            *place = Some(Arc::new(follower));
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut followers = self.logs.followers();
        if followers.get(self.container).is_some_and(Option::is_none) {
            followers.remove(self.container);
        }
    }
}

/// A new connection has room for its first frame.
fn say_hello(stream: &mut UnixStream, container: &str) -> io::Result<()> {
    let mut hello = StdioHello::new();
    hello.container_id = container.to_owned();
    hello.primary = true;
    let payload = hello.write_to_bytes().map_err(io::Error::from)?;
    if payload.len() > MAX_PAYLOAD {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let header = Header { kind: FrameKind::Hello, len: payload.len() };
    stream.write_all(&[&header.encode()[..], &payload].concat())
}
