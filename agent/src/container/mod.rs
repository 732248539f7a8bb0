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
mod start;
pub mod state;
pub mod stats;
mod streams;
pub mod volumes;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;

use self::cgroups::{Cgroup, CgroupError};
use self::images::ImageError;
use self::launch::{Control, LaunchError};
use self::layers::{Layer, LayerError};
use self::process::Process;
use self::state::{Event, InvalidTransition, State};
use self::volumes::VolumeError;

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
}

#[derive(Debug)]
struct Inner {
    state: State,
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
            first: None,
            control: None,
            holdings: Holdings::default(),
            execs: HashMap::new(),
        };
        Self { id: id.into(), cgroup, inner: Mutex::new(inner) }
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

    /// The first process has ended: whatever else is in the container ends with it.
    fn first_process_ended(&self) {
        // A container whose removal or creation failed half-way has no state that an exit could change.
        let _ = self.advance(Event::Exited);
        if let Err(error) = self.cgroup.kill() {
            crate::log::warning!("container {}: {error}", self.id);
        }
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

    /// The writable layer's usage in bytes and inodes. Blocking.
    #[must_use]
    pub fn layer_usage(&self) -> (u64, u64) {
        let layer = self.lock().holdings.layer.clone();
        layer.map_or((0, 0), |layer| layer.usage())
    }

    fn invalid(&self, what: String) -> ContainerError {
        ContainerError::Invalid { id: self.id.clone(), what }
    }

    fn launch_error(&self, source: LaunchError) -> ContainerError {
        ContainerError::Launch { id: self.id.clone(), source }
    }
}
