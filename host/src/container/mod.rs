//! Containers: one state machine each, driven by the container's own queue. What runs is in the pod's guest.

use std::sync::Arc;

use crate::guest::GuestError;
use crate::image::RootError;
use crate::journaled::Journaled;
use crate::node::{LookupError, Node, Registered, now_ns};
use crate::nri::NriError;
use crate::sandbox::SandboxError;
use crate::sandboxer::MachineError;
use crate::serial::Serial;
use crate::store::StoreError;

mod adjust;
mod attach;
mod cdi;
mod create;
mod devices;
mod edits;
mod exec;
mod exec_sync;
mod host_access;
mod log;
pub mod record;
mod recover;
mod remove;
mod resources;
mod seccomp;
mod security;
mod spec;
mod start;
pub mod state;
mod stop;
mod update;
mod volumes;
mod watch;

pub use attach::{Attached, attach};
pub use cdi::CdiError;
pub use create::create;
pub use exec::{Command, ProcessHandle, exec};
pub use exec_sync::{ExecOutput, exec_sync};
pub use log::reopen as reopen_log;
pub use record::ContainerRecord;
pub use recover::{load, recover};
pub use remove::remove;
pub use seccomp::SeccompError;
pub use start::start;
pub use state::{ContainerEvent, ContainerState, Exit};
pub use stop::stop;
pub use update::{update, update_for_plugin};

/// Why a container did not become what it should.
#[derive(Debug, Clone, thiserror::Error)]
#[allow(missing_docs)]
pub enum ContainerError {
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error("cannot create the container: {0}")]
    Invalid(String),
    #[error("container {id}: {request} is not possible: {why}")]
    Request { id: String, request: &'static str, why: String },
    #[error("cannot create the container: image {image:?} is not in the store; pull it first")]
    NoImage { image: String },
    #[error("a container named {name:?} exists already in sandbox {sandbox}: {id}; remove it first")]
    Exists { name: String, sandbox: String, id: String },
    #[error("cannot mount {host_path:?} at {container_path:?}: {why}")]
    Mount { host_path: String, container_path: String, why: String },
    #[error("cannot create the container: {0}")]
    Seccomp(#[from] SeccompError),
    #[error("cannot create the container: {0}")]
    Cdi(#[from] CdiError),
    #[error("container {id} is {state}: {request} is not possible")]
    WrongState { id: String, state: &'static str, request: &'static str },
    #[error("the command in container {id} did not end within {seconds} s and was killed")]
    ExecTimeout { id: String, seconds: i64 },
    #[error("container {id} still runs {seconds} s after SIGKILL; its guest does not answer")]
    StopTimeout { id: String, seconds: u64 },
    #[error(transparent)]
    Nri(#[from] NriError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error("container {id}")]
    Guest { id: String, source: Arc<GuestError> },
    #[error("container {id}")]
    Machine { id: String, source: Arc<MachineError> },
    #[error("cannot open the log of container {id} at {path}")]
    Log { id: String, path: String, source: Arc<std::io::Error> },
    #[error("cannot open the root file system of container {id}")]
    Root { id: String, source: Arc<RootError> },
    #[error(transparent)]
    Store(Arc<StoreError>),
    #[error(transparent)]
    State(#[from] state::InvalidTransition),
    #[error("the operation on container {id} was interrupted by a fault in the daemon; see its log")]
    Interrupted { id: String },
}

impl From<StoreError> for ContainerError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

impl ContainerError {
    pub(crate) fn guest(id: &str) -> impl FnOnce(GuestError) -> Self {
        let id = id.to_owned();
        move |source| Self::Guest { id, source: Arc::new(source) }
    }

    pub(crate) fn machine(id: &str) -> impl FnOnce(MachineError) -> Self {
        let id = id.to_owned();
        move |source| Self::Machine { id, source: Arc::new(source) }
    }
}

/// One container.
#[derive(Debug)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// What is known of it, durably.
    pub record: Journaled<ContainerRecord>,
    /// Its external steps, one at a time.
    pub operations: Serial,
}

impl Registered for Container {
    fn id(&self) -> &str {
        &self.id
    }
}

impl Container {
    fn new(id: &str, record: Journaled<ContainerRecord>) -> Arc<Self> {
        Arc::new(Self { id: id.to_owned(), record, operations: Serial::new() })
    }

    /// Takes an event: durable first, visible then.
    pub(crate) async fn take(&self, event: ContainerEvent) -> Result<(), ContainerError> {
        self.record
            .change(move |record: &mut ContainerRecord| {
                record.state = record.state.clone().next(event)?;
                Ok::<_, ContainerError>(())
            })
            .await
            .map(drop)
    }

    /// Runs an external step after those that were queued before.
    pub(crate) async fn operate<T, F>(&self, operation: F) -> Result<T, ContainerError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ContainerError>> + Send + 'static,
    {
        let done = self.operations.run(operation).await;
        done.unwrap_or_else(|| Err(ContainerError::Interrupted { id: self.id.clone() }))
    }
}

/// The containers of a sandbox.
#[must_use]
pub fn of_sandbox(node: &Node, sandbox_id: &str) -> Vec<Arc<Container>> {
    let mut all = node.containers.all();
    all.retain(|container| container.record.get().sandbox_id == sandbox_id);
    all
}

/// Ends every container of a machine that ended: 137, unless the agent had reported better before.
pub async fn end_all(node: &Arc<Node>, sandbox_id: &str, why: &str) {
    end_all_for(node, sandbox_id, why, "Error").await;
}

/// [`end_all`] with the reason that the kubelet reads.
pub async fn end_all_for(node: &Arc<Node>, sandbox_id: &str, why: &str, reason: &str) {
    let reported = match node.sandboxes.find("sandbox", sandbox_id) {
        Ok(sandbox) => sandbox.record.get().paths(&node.config).exit_record(),
        Err(_) => None,
    };
    for container in of_sandbox(node, sandbox_id) {
        let known = reported.iter().flat_map(|end| &end.containers).find(|exit| exit.id == container.id);
        let exit = match known {
            Some(exit) => watch::exit_of(exit.code, exit.oom_killed, exit.finished_at_ns),
            None => Exit { code: 137, reason: reason.into(), message: why.to_owned(), finished_at: now_ns() },
        };
        if let Err(error) = container.take(ContainerEvent::Ended(exit)).await {
            tracing::error!(container = %container.id, error = %crate::error_text(&error), "cannot record the end");
        }
        node.nri.container_ended(&container.id).await;
    }
}
