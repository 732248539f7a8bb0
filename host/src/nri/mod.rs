//! NRI, the Node Resource Interface: plugins of the node are told what happens to pods and containers, and may change
//! containers (github.com/containerd/nri 0.12; [the protocol](bulkhead_proto::nri)).
//!
//! * `requests` is what happens in the queue (below); `listen` admits plugins, `mux` and `runtime` carry their connection, `plugin` asks one of them.
//! * `merge`, `owners` and `check` make one adjustment of what all of them want; `messages` and `resources` translate.
//!
//! Requests to plugins go through one queue, so that all of them see one order of events. No lock is held meanwhile, and a
//! plugin that does not answer costs its time limit once: it is closed then. A plugin that connects is told of what there
//! is by an operation of the same queue, so it misses nothing and hears nothing twice. Nothing of this is journaled: a
//! daemon that starts again has no plugins, and tells those that connect all that there is.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use bulkhead_proto::nri::{self, Event};
use tokio_util::sync::CancellationToken;

use crate::container::Container;
use crate::node::Node;
use crate::sandbox::SandboxRecord;
use crate::serial::Serial;

pub(crate) mod check;
mod config;
mod error;
mod listen;
mod merge;
pub(crate) mod messages;
pub mod mux;
pub(crate) mod owners;
mod plugin;
mod requests;
pub(crate) mod resources;
mod runtime;
mod told;

pub use config::NriConfig;
pub use error::NriError;
pub use listen::ListenError;
pub(crate) use merge::{Creation, Updates};
pub use plugin::PluginId;

use plugin::Plugin;
use told::{KnownPod, Told};

/// The node's plugins. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Nri(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: NriConfig,
    /// Requests to plugins, one after the other.
    queue: Serial,
    /// In the order in which they are asked.
    plugins: Mutex<Vec<Arc<Plugin>>>,
    told: Mutex<Told>,
    node: OnceLock<Weak<Node>>,
    stopping: CancellationToken,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Nri {
    /// Without plugins yet.
    #[must_use]
    pub fn new(config: NriConfig) -> Self {
        Self(Arc::new(Inner {
            config,
            queue: Serial::new(),
            plugins: Mutex::default(),
            told: Mutex::default(),
            node: OnceLock::new(),
            stopping: CancellationToken::new(),
        }))
    }

    /// Starts the installed plugins and lets others connect. Called once, when the journal has been read.
    ///
    /// # Errors
    /// When the socket cannot be had.
    pub async fn serve(&self, node: &Arc<Node>) -> Result<(), ListenError> {
        let inner = &self.0;
        if !inner.config.enabled || inner.node.set(Arc::downgrade(node)).is_err() {
            return Ok(());
        }
        let socket = &inner.config.socket;
        let listener = if socket.as_os_str().is_empty() { None } else { Some(listen::bind(socket)?) };
        inner.know_all(node);
        listen::start_installed(inner).await;
        if let Some(listener) = listener {
            tracing::info!(socket = %socket.display(), "serving NRI plugins");
            tokio::spawn(listen::accept(inner.clone(), listener));
        }
        Ok(())
    }

    /// Closes every connection, ends installed plugins and removes the socket.
    pub async fn stop(&self) {
        let inner = &self.0;
        if inner.node.get().is_none() {
            return;
        }
        inner.stopping.cancel();
        if !inner.config.socket.as_os_str().is_empty() {
            std::fs::remove_file(&inner.config.socket).ok();
        }
        // What was asked last has its answer, or none.
        let _ = inner.queue.run(async {}).await;
    }

    /// Whether there can be plugins at all.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        !self.is_off()
    }

    fn is_off(&self) -> bool {
        self.0.node.get().is_none()
    }

    /// Runs `work` after what was queued before; it ends even when the caller goes away.
    async fn queued<T, F>(&self, request: &'static str, work: F) -> Result<T, NriError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, NriError>> + Send + 'static,
    {
        self.0.queue.run(work).await.unwrap_or(Err(NriError::Interrupted { request }))
    }

    async fn told(
        &self,
        request: &'static str,
        id: &str,
        work: impl Future<Output = Result<(), NriError>> + Send + 'static,
    ) {
        if let Err(error) = self.queued(request, work).await {
            tracing::warn!(id, %error, "an NRI plugin objects to what has happened already");
        }
    }

    /// A pod runs. A plugin that refuses it makes it fail.
    pub(crate) async fn run_pod(&self, record: &SandboxRecord) -> Result<(), NriError> {
        if self.is_off() {
            return Ok(());
        }
        let (inner, pod) = (self.0.clone(), messages::pod(record));
        let work = async move {
            let known = KnownPod { message: pod.clone(), is_stopped: false };
            lock(&inner.told).pods.insert(pod.id.clone(), known);
            inner.notify(Event::RUN_POD_SANDBOX, &pod, None).await
        };
        self.queued("RunPodSandbox", work).await
    }

    /// A pod's containers have ended and it is about to be, or was, stopped. Told once.
    pub(crate) async fn stop_pod(&self, id: &str) {
        if self.is_off() {
            return;
        }
        let (inner, pod) = (self.0.clone(), id.to_owned());
        self.told("StopPodSandbox", id, async move { inner.stop_pod(&pod).await }).await;
    }

    /// Nothing is left of a pod. Told once, after its stop.
    pub(crate) async fn remove_pod(&self, id: &str) {
        if self.is_off() {
            return;
        }
        let (inner, pod) = (self.0.clone(), id.to_owned());
        let work = async move {
            let stopped = inner.stop_pod(&pod).await;
            let Some(message) = inner.pod(&pod) else { return stopped };
            let left: Vec<_> = {
                let told = lock(&inner.told);
                let of_pod = told.containers.values().filter(|known| known.message.pod_sandbox_id == pod);
                of_pod.map(|known| known.message.id.clone()).collect()
            };
            for container in left {
                inner.remove_container(&container).await?;
            }
            lock(&inner.told).pods.remove(&pod);
            inner.notify(Event::REMOVE_POD_SANDBOX, &message, None).await
        };
        self.told("RemovePodSandbox", id, work).await;
    }

    /// A pod's limits are about to change. A plugin may refuse.
    pub(crate) async fn update_pod(
        &self,
        record: &SandboxRecord,
        overhead: Option<&bulkhead_proto::cri::LinuxContainerResources>,
        limits: Option<&bulkhead_proto::cri::LinuxContainerResources>,
    ) -> Result<(), NriError> {
        if self.is_off() {
            return Ok(());
        }
        let request = nri::UpdatePodSandboxRequest {
            pod: Some(messages::pod(record)).into(),
            overhead_linux_resources: overhead.map(resources::to_nri).into(),
            linux_resources: limits.map(resources::to_nri).into(),
            ..Default::default()
        };
        let inner = self.0.clone();
        let work = async move {
            for plugin in inner.plugins() {
                plugin.update_pod_sandbox(&request).await?;
            }
            Ok(())
        };
        self.queued("UpdatePodSandbox", work).await
    }

    /// A pod's limits have changed.
    pub(crate) async fn pod_updated(&self, record: &SandboxRecord) {
        if self.is_off() {
            return;
        }
        let (inner, pod) = (self.0.clone(), messages::pod(record));
        let work = async move { inner.notify(Event::POST_UPDATE_POD_SANDBOX, &pod, None).await };
        self.told("PostUpdatePodSandbox", &record.id, work).await;
    }

    /// A container is about to be made: what all plugins want of it. Plugins know of it from then on, also when one of
    /// them refuses; [`Self::remove_container`] undoes that.
    pub(crate) async fn create_container(
        &self,
        sandbox: &SandboxRecord,
        container: nri::Container,
    ) -> Result<Creation, NriError> {
        let (inner, pod) = (self.0.clone(), messages::pod(sandbox));
        if self.is_off() {
            return Ok(Creation::default());
        }
        self.queued("CreateContainer", async move { inner.create_container(pod, container).await }).await
    }

    /// Tells of an event of a container. A plugin that refuses a start makes it fail.
    pub(crate) async fn container_event(&self, event: Event, container: &Container) -> Result<(), NriError> {
        if self.is_off() {
            return Ok(());
        }
        let (inner, id) = (self.0.clone(), container.id.clone());
        let work = async move {
            let Some((pod, container)) = inner.container(&id) else { return Ok(()) };
            inner.notify(event, &pod, Some(&container)).await
        };
        self.queued(plugin::name(event), work).await
    }

    /// As [`Self::container_event`], of something that nobody can change any more.
    pub(crate) async fn container_told(&self, event: Event, container: &Container) {
        if let Err(error) = self.container_event(event, container).await {
            tracing::warn!(container = %container.id, %error, "an NRI plugin objects to what has happened already");
        }
    }

    /// A container's limits are about to change; what all plugins make of the change, and what they want of others.
    pub(crate) async fn update_container(
        &self,
        container: &Container,
        limits: nri::LinuxResources,
    ) -> Result<(nri::LinuxResources, Updates), NriError> {
        if self.is_off() {
            return Ok((limits, Updates::default()));
        }
        let (inner, id) = (self.0.clone(), container.id.clone());
        self.queued("UpdateContainer", async move { inner.update_container(&id, limits).await }).await
    }

    /// A container has ended, however. Told once.
    pub(crate) async fn container_ended(&self, id: &str) {
        if self.is_off() {
            return;
        }
        let (inner, container) = (self.0.clone(), id.to_owned());
        self.told("StopContainer", id, async move { inner.stop_container(&container).await }).await;
    }

    /// Nothing is left of a container, or it was not made. Told once, after its end.
    pub(crate) async fn remove_container(&self, id: &str) {
        if self.is_off() {
            return;
        }
        let (inner, container) = (self.0.clone(), id.to_owned());
        self.told("RemoveContainer", id, async move { inner.remove_container(&container).await }).await;
    }

    /// Applies what plugins want of other containers.
    pub(crate) async fn apply(&self, updates: Updates) {
        self.0.requested("(several)", updates.limits, updates.evictions).await;
    }
}
