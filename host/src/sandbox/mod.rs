//! Pod sandboxes: one state machine each, driven by the sandbox's own queue.
//!
//! [`run()`] makes one, [`stop()`] releases what it holds, [`remove()`] forgets it, [`recover()`] picks up after a restart.

use std::sync::{Arc, RwLock};
use std::time::Duration;

use crate::guest::{Agent, GuestError};
use crate::journaled::Journaled;
use crate::node::{LookupError, Registered};
use crate::nri::NriError;
use crate::sandboxer::Machine;
use crate::sandboxer::monitor::MonitorError;
use crate::sandboxer::sizing::SizeError;
use crate::serial::Serial;
use crate::store::StoreError;
use crate::version::VersionError;
use bulkhead_proto::agent;

mod native;
pub mod record;
mod recover;
mod release;
mod remove;
mod run;
pub mod scratch;
mod size;
pub mod state;
pub mod stats;
mod stop;
mod update;
pub mod user_namespace;
pub mod users;
mod validate;
mod watch;

pub use record::SandboxRecord;
pub use recover::recover;
pub use remove::remove;
pub use run::run;
pub use state::{SandboxEvent, SandboxState};
pub use stop::stop;
pub use update::{containers_changed, update};

/// The daemon's start waits so long for an agent to tell its version.
const INFO_PATIENCE: Duration = Duration::from_secs(2);

/// Why a sandbox did not become what it should.
#[derive(Debug, Clone, thiserror::Error)]
#[allow(missing_docs)]
pub enum SandboxError {
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error("cannot run the pod sandbox: {0}")]
    Invalid(String),
    #[error(
        "cannot run the pod sandbox: runtime handler {handler:?} is not configured; there are: {known}. Add [runtimes.{handler}] to the configuration or name another in the RuntimeClass"
    )]
    UnknownHandler { handler: String, known: String },
    #[error("a pod sandbox for pod {pod:?} exists already: {id}; remove it first")]
    Exists { pod: String, id: String },
    #[error("sandbox {id} is {state:?}: {request} needs a ready one{}", end.as_ref().map(|e| format!(" ({e})")).unwrap_or_default())]
    NotReady { id: String, state: SandboxState, request: &'static str, end: Option<String> },
    #[error("sandbox {id}: {request} is not possible: {source}")]
    OtherRelease { id: String, request: &'static str, source: VersionError },
    #[error("{step} of sandbox {id} failed")]
    Step { id: String, step: &'static str, source: Arc<dyn std::error::Error + Send + Sync> },
    #[error(transparent)]
    Nri(#[from] NriError),
    #[error(transparent)]
    Store(Arc<StoreError>),
    #[error(transparent)]
    State(#[from] state::InvalidTransition),
    #[error("the operation on sandbox {id} was interrupted by a fault in the daemon; see its log")]
    Interrupted { id: String },
}

impl From<StoreError> for SandboxError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

impl From<MonitorError> for SandboxError {
    fn from(error: MonitorError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<SizeError> for SandboxError {
    fn from(error: SizeError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl SandboxError {
    /// Names the step that an error came from.
    pub(crate) fn step<E>(id: &str, step: &'static str) -> impl FnOnce(E) -> Self
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let id = id.to_owned();
        move |source| Self::Step { id, step, source: Arc::new(source) }
    }
}

/// The connections to a pod that runs.
#[derive(Debug, Clone)]
pub struct Live {
    /// Its per-pod process.
    pub machine: Machine,
    /// Its agent.
    pub agent: Agent,
    /// The containers run on the host's own kernel.
    pub shares_host: bool,
}

impl Live {
    /// Connects to the agent of a machine that is ready.
    pub async fn connect(machine: Machine, record: &SandboxRecord) -> Result<Self, GuestError> {
        let agent = Agent::connect(&machine.paths().vsock()).await?;
        Ok(Self { machine, agent, shares_host: record.shares_host() })
    }

    /// [`Self::connect`] to an agent that another release may have started.
    pub async fn connect_again(machine: Machine, record: &SandboxRecord) -> Result<Self, GuestError> {
        let live = Self::connect(machine, record).await?;
        let asked = tokio::time::timeout(INFO_PATIENCE, live.agent.info(agent::InfoRequest::new())).await;
        // One that hangs is no reason to end its pod.
        if let Ok(Ok(info)) = asked {
            Agent::check_version(info.protocol_version)?;
        }
        Ok(live)
    }
}

/// One pod sandbox.
#[derive(Debug)]
pub struct Sandbox {
    /// Its id.
    pub id: String,
    /// What is known of it, durably.
    pub record: Journaled<SandboxRecord>,
    /// Its external steps, one at a time.
    pub operations: Serial,
    /// Its resource use, as last read.
    pub stats: stats::Sampler,
    live: RwLock<Link>,
}

/// The way to a sandbox's processes.
#[derive(Debug, Clone, Default)]
enum Link {
    /// There are none, or not yet.
    #[default]
    None,
    /// They can be asked.
    Live(Live),
    /// They run, and are of a release that this daemon does not know.
    Foreign(VersionError),
}

impl Registered for Sandbox {
    fn id(&self) -> &str {
        &self.id
    }
}

impl Sandbox {
    fn new(id: &str, record: Journaled<SandboxRecord>) -> Arc<Self> {
        Arc::new(Self {
            id: id.to_owned(),
            record,
            operations: Serial::new(),
            stats: stats::Sampler::default(),
            live: RwLock::default(),
        })
    }

    /// Connections for `request`, or why there are none.
    pub fn live(&self, request: &'static str) -> Result<Live, SandboxError> {
        let live = self.live.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let record = self.record.get();
        match live {
            Link::Live(live) if matches!(record.state, SandboxState::Ready | SandboxState::Creating) => Ok(live),
            Link::Foreign(source) if record.state == SandboxState::Ready => {
                Err(SandboxError::OtherRelease { id: self.id.clone(), request, source })
            }
            _ => Err(SandboxError::NotReady {
                id: self.id.clone(),
                state: record.state,
                request,
                end: record.end.clone(),
            }),
        }
    }

    fn set_live(&self, live: Option<Live>) {
        self.set_link(live.map_or(Link::None, Link::Live));
    }

    fn set_link(&self, link: Link) {
        *self.live.write().unwrap_or_else(std::sync::PoisonError::into_inner) = link;
    }

    /// Takes an event: durable first, visible then.
    pub(crate) async fn take(&self, event: SandboxEvent) -> Result<(), SandboxError> {
        self.record
            .change(move |record: &mut SandboxRecord| {
                record.state = record.state.next(event)?;
                Ok::<_, SandboxError>(())
            })
            .await
            .map(drop)
    }
}
