//! The containers of the pod.

pub mod capabilities;
pub mod cgroups;
mod create;
pub mod devices;
mod exec;
pub mod images;
pub mod launch;
pub mod layers;
pub mod limits;
pub mod pause;
pub mod process;
mod remove;
mod request;
pub mod signal;
mod start;
pub mod state;
pub mod stats;
mod streams;
pub mod usage;
pub mod user_namespace;
pub mod volumes;

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bulkhead_proto::agent::FileSystem;
use thiserror::Error;

use self::cgroups::{Cgroup, CgroupError};
use self::images::ImageError;
use self::launch::{Control, LaunchError};
use self::layers::{Layer, LayerError};
use self::process::Process;
use self::state::{Event, InvalidTransition, State};
use self::usage::{Usage, UsageCounter};
use self::volumes::VolumeError;

/// Exit code of a process that SIGKILL ended.
const SIGKILLED: i32 = 128 + libc::SIGKILL;

/// Why something cannot be done with a container.
#[derive(Debug, Error)]
pub enum ContainerError {
    /// There is none.
    #[error("no container {0:?}")]
    NotFound(String),
    /// It has no such process.
    #[error("container {id:?} has no process {exec_id:?}")]
    NoProcess {
        /// The container.
        id: String,
        /// What it lacks.
        exec_id: String,
    },
    /// The id is taken.
    #[error("container {0:?} exists already")]
    Exists(String),
    /// The process id is taken.
    #[error("container {id:?} has a process {exec_id:?} already")]
    ProcessExists {
        /// The container.
        id: String,
        /// What is taken.
        exec_id: String,
    },
    /// A demand that makes no sense.
    #[error("container {id:?}: {what}")]
    Invalid {
        /// The container.
        id: String,
        /// What is wrong.
        what: String,
    },
    /// Not now.
    #[error("container {id:?}: {source}")]
    State {
        /// The container.
        id: String,
        /// Why not.
        source: InvalidTransition,
    },
    /// It does not run.
    #[error("container {id:?} is not running")]
    NotRunning {
        /// The container.
        id: String,
    },
    /// Its removal waits for its creation.
    #[error("container {id:?} is still being created after {waited:?}; it goes as soon as that ends")]
    StillCreating {
        /// The container.
        id: String,
        /// How long the removal has waited.
        waited: Duration,
    },
    /// Its process cannot be made.
    #[error("container {id:?}: {source}")]
    Launch {
        /// The container.
        id: String,
        /// Why.
        source: LaunchError,
    },
    /// Its command cannot be run.
    #[error("{0}")]
    Start(LaunchError),
    /// Its cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Its image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Its writable layer.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// One of its volumes.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The pod around it.
    #[error(transparent)]
    Sandbox(#[from] crate::sandbox::SandboxError),
    /// A system call for it.
    #[error("container {id:?}: cannot {step}: {source}")]
    Io {
        /// The container.
        id: String,
        /// What was tried.
        step: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

/// What has to be given back when a container goes.
#[derive(Debug, Default)]
pub struct Holdings {
    /// Its writable layer.
    pub layer: Option<Layer>,
    /// Images that it uses, one entry for each use.
    pub images: Vec<String>,
}

/// A container, from its creation to its removal.
#[derive(Debug)]
pub struct Container {
    /// Chosen by the daemon.
    pub id: String,
    /// All of its processes.
    pub cgroup: Cgroup,
    inner: Mutex<Inner>,
    creation_ended: Condvar,
    usage: Arc<UsageCounter>,
    /// The kernel's kills for memory when this agent killed the container; what came before did not end it.
    oom_kills_before: OnceLock<u64>,
}

#[derive(Debug)]
struct Inner {
    state: State,
    /// Its creation has not returned: what it holds is not to be given back yet.
    in_creation: bool,
    first: Option<Arc<Process>>,
    control: Option<Control>,
    holdings: Holdings,
    /// `None` while it is being made.
    execs: HashMap<String, Option<Arc<Process>>>,
}

impl Container {
    /// A container about to be built.
    #[must_use]
    pub fn new(id: &str, cgroup: Cgroup) -> Self {
        let inner = Inner {
            state: State::Creating,
            in_creation: true,
            first: None,
            control: None,
            holdings: Holdings::default(),
            execs: HashMap::new(),
        };
        Self {
            id: id.into(),
            cgroup,
            inner: Mutex::new(inner),
            creation_ended: Condvar::new(),
            usage: Arc::default(),
            oom_kills_before: OnceLock::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it is in its life.
    #[must_use]
    pub fn state(&self) -> State {
        self.lock().state
    }

    fn advance(&self, event: Event) -> Result<State, ContainerError> {
        let mut inner = self.lock();
        let next = inner.state.next(event);
        inner.state = next.map_err(|source| ContainerError::State { id: self.id.clone(), source })?;
        Ok(inner.state)
    }

    /// The creation returns, whatever came of it.
    fn end_creation(&self) {
        self.lock().in_creation = false;
        self.creation_ended.notify_all();
    }

    /// Waits for the end of the creation; false after `limit`. Blocking.
    fn wait_for_creation(&self, limit: Duration) -> bool {
        let waited = self.creation_ended.wait_timeout_while(self.lock(), limit, |inner| inner.in_creation);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// The first process has ended: whatever else is in the container ends with it. Whether it was killed for memory.
    fn first_process_ended(&self, code: i32) -> bool {
        // Before the rest is killed: that kill is none of the kernel's.
        let killed_for_memory = self.was_killed_for_memory(code);
        // A container whose removal or creation failed half-way has no state that an exit could change.
        let _ = self.advance(Event::Exited);
        if let Err(error) = self.cgroup.kill() {
            crate::log::warning!("container {}: {error}", self.id);
        }
        killed_for_memory
    }

    /// A process of it; the empty id is the first one.
    ///
    /// # Errors
    /// When there is none.
    pub fn process(&self, exec_id: &str) -> Result<Arc<Process>, ContainerError> {
        let inner = self.lock();
        let process = match exec_id {
            "" => inner.first.clone(),
            exec_id => inner.execs.get(exec_id).cloned().flatten(),
        };
        process.ok_or_else(|| ContainerError::NoProcess { id: self.id.clone(), exec_id: exec_id.into() })
    }

    /// The first process, while it lives.
    fn running_process(&self) -> Result<Arc<Process>, ContainerError> {
        let process = self.process("")?;
        if self.state() != State::Running || process.has_ended() {
            return Err(ContainerError::NotRunning { id: self.id.clone() });
        }
        Ok(process)
    }

    /// Begins to count the writable layer; [`Self::layer_usage`] waits for it.
    pub fn count_layer(&self) {
        let layer = self.lock().holdings.layer.clone();
        if let Some(layer) = layer {
            self.usage.start(layer);
        }
    }

    /// What the writable layer took when it was last counted; a count that runs is awaited until `deadline`. Blocking.
    #[must_use]
    pub fn layer_usage(&self, deadline: Instant) -> Option<Usage> {
        self.usage.result(deadline)
    }

    /// The file system of the writable layer. Blocking.
    #[must_use]
    pub fn layer_space(&self) -> Option<FileSystem> {
        let layer = self.lock().holdings.layer.clone();
        layer?.space()
    }

    /// Says that this agent is about to kill the container.
    pub fn expect_kill(&self) {
        self.oom_kills_before.get_or_init(|| self.cgroup.oom_kills());
    }

    /// Whether the kernel's OOM killer ended a process of the container that exited with `code`: an exit by SIGKILL
    /// (or a shell's report of one), and a kill for memory that this agent's own kill did not come before.
    #[must_use]
    pub fn was_killed_for_memory(&self, code: i32) -> bool {
        let before = self.oom_kills_before.get().copied().unwrap_or(0);
        code == SIGKILLED && self.cgroup.oom_kills() > before
    }

    fn invalid(&self, what: String) -> ContainerError {
        ContainerError::Invalid { id: self.id.clone(), what }
    }

    fn launch_error(&self, source: LaunchError) -> ContainerError {
        ContainerError::Launch { id: self.id.clone(), source }
    }
}
