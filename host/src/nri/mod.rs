//! NRI, the Node Resource Interface: plugins of the node are told what happens to pods and containers, and may change
//! containers (github.com/containerd/nri 0.12; [the protocol](bulkhead_proto::nri)).
//!
//! * `listen` admits plugins, `mux` and `runtime` carry their connection, `plugin` asks one of them.
//! * `merge`, `owners` and `check` make one adjustment of what all of them want; `messages` and `resources` translate.
//!
//! Requests to plugins go through one queue, so that all of them see one order of events. No lock is held meanwhile, and a
//! plugin that does not answer costs its time limit once: it is closed then. A plugin that connects is told of what there
//! is by an operation of the same queue, so it misses nothing and hears nothing twice. Nothing of this is journaled: a
//! daemon that starts again has no plugins, and tells those that connect all that there is.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use bulkhead_proto::nri::{self, Event};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use crate::container::{self, Container, ContainerState};
use crate::node::Node;
use crate::sandbox::{SandboxRecord, SandboxState};
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
pub(crate) mod resources;
mod runtime;
mod told;

pub use config::NriConfig;
pub use error::NriError;
pub use listen::ListenError;
pub(crate) use merge::{Creation, Updates};
pub use plugin::PluginId;

use plugin::Plugin;
use told::{KnownContainer, KnownPod, Told};

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

impl Inner {
    fn plugins(&self) -> Vec<Arc<Plugin>> {
        let mut plugins = lock(&self.plugins);
        plugins.retain(|plugin| !plugin.is_closed());
        plugins.clone()
    }

    fn node(&self) -> Option<Arc<Node>> {
        self.node.get().and_then(Weak::upgrade)
    }

    /// Everything of the journal that plugins are told of when they connect.
    fn know_all(&self, node: &Node) {
        let mut told = lock(&self.told);
        for sandbox in node.sandboxes.all() {
            let record = sandbox.record.get();
            if matches!(record.state, SandboxState::Creating | SandboxState::Removing) {
                continue;
            }
            let is_stopped = record.state == SandboxState::Stopped;
            let known = KnownPod { message: messages::pod(&record), is_stopped };
            told.pods.insert(record.id.clone(), known);
            for container in container::of_sandbox(node, &record.id) {
                let made = container.record.get();
                if matches!(made.state, ContainerState::Creating | ContainerState::Removing) {
                    continue;
                }
                let has_ended = matches!(made.state, ContainerState::Exited { .. });
                let known = KnownContainer { message: messages::container(&made, &record), has_ended };
                told.containers.insert(made.id.clone(), known);
            }
        }
    }

    /// A pod that plugins know, as it stands.
    fn pod(&self, id: &str) -> Option<nri::PodSandbox> {
        let known = lock(&self.told).pods.get(id).map(|known| known.message.clone())?;
        let found = self.node().and_then(|node| node.sandboxes.find("sandbox", id).ok());
        Some(found.map_or(known, |sandbox| messages::pod(&sandbox.record.get())))
    }

    /// A container that plugins know, and its pod, as they stand.
    fn container(&self, id: &str) -> Option<(nri::PodSandbox, nri::Container)> {
        let known = lock(&self.told).containers.get(id).map(|known| known.message.clone())?;
        let pod = self.pod(&known.pod_sandbox_id)?;
        let node = self.node();
        let now = node.as_ref().and_then(|node| {
            let sandbox = node.sandboxes.find("sandbox", &known.pod_sandbox_id).ok()?;
            let container = node.containers.find("container", id).ok()?;
            Some(messages::container(&container.record.get(), &sandbox.record.get()))
        });
        Some((pod, now.unwrap_or(known)))
    }

    /// Tells a new plugin of everything, and asks it from then on.
    async fn join(self: &Arc<Self>, plugin: Plugin) -> Result<(), String> {
        let inner = self.clone();
        let id = plugin.id.clone();
        let joined = self.queue.run(async move {
            let (pods, containers): (Vec<_>, Vec<_>) = {
                let told = lock(&inner.told);
                let alive = told.containers.values().filter(|known| !known.has_ended);
                (told.pods.keys().cloned().collect(), alive.map(|known| known.message.id.clone()).collect())
            };
            let pods = pods.iter().filter_map(|id| inner.pod(id)).collect();
            let containers = containers.iter().filter_map(|id| Some(inner.container(id)?.1)).collect();
            let updates = plugin.synchronize(pods, containers).await?;
            let mut plugins = lock(&inner.plugins);
            plugins.push(Arc::new(plugin));
            plugins.sort_by(|a, b| a.id.cmp(&b.id));
            Ok::<_, String>(updates)
        });
        let updates = joined.await.unwrap_or_else(|| Err("interrupted by a fault in the daemon".into()))?;
        tracing::info!(plugin = %id, "NRI plugin is served");
        self.requested(&id.to_string(), updates, Vec::new()).await;
        Ok(())
    }

    async fn notify(
        &self,
        event: Event,
        pod: &nri::PodSandbox,
        container: Option<&nri::Container>,
    ) -> Result<(), NriError> {
        for plugin in self.plugins() {
            plugin.notify(event, pod, container).await?;
        }
        Ok(())
    }

    async fn stop_pod(self: &Arc<Self>, id: &str) -> Result<(), NriError> {
        let running = lock(&self.told).running_in(id);
        for container in running {
            self.stop_container(&container).await?;
        }
        let Some(pod) = self.pod(id) else { return Ok(()) };
        let first = match lock(&self.told).pods.get_mut(id) {
            Some(known) => !std::mem::replace(&mut known.is_stopped, true),
            None => false,
        };
        if first { self.notify(Event::STOP_POD_SANDBOX, &pod, None).await } else { Ok(()) }
    }

    async fn create_container(
        self: &Arc<Self>,
        pod: nri::PodSandbox,
        container: nri::Container,
    ) -> Result<Creation, NriError> {
        let id = container.id.clone();
        let known = KnownContainer { message: container.clone(), has_ended: false };
        lock(&self.told).containers.insert(id.clone(), known);
        let plugins = self.plugins();
        let mut creation = Creation::new(container);
        let before = creation.container.clone();
        for plugin in &plugins {
            let request = nri::CreateContainerRequest {
                pod: Some(pod.clone()).into(),
                container: Some(creation.container.clone()).into(),
                ..Default::default()
            };
            if let Some(answer) = plugin.create_container(&request).await? {
                creation.apply(&plugin.id.to_string(), answer)?;
            }
        }
        self.validate(&plugins, pod, before, &creation).await?;
        if let Some(known) = lock(&self.told).containers.get_mut(&id) {
            known.message = creation.container.clone();
        }
        Ok(creation)
    }

    /// Asks those who watch over what plugins want.
    async fn validate(
        &self,
        plugins: &[Arc<Plugin>],
        pod: nri::PodSandbox,
        container: nri::Container,
        creation: &Creation,
    ) -> Result<(), NriError> {
        if !plugins.iter().any(|plugin| plugin.wants(Event::VALIDATE_CONTAINER_ADJUSTMENT)) {
            return Ok(());
        }
        let instance = |plugin: &Arc<Plugin>| nri::PluginInstance {
            name: plugin.id.name.clone(),
            index: plugin.id.index.clone(),
            ..Default::default()
        };
        let request = nri::ValidateContainerAdjustmentRequest {
            pod: Some(pod).into(),
            container: Some(container).into(),
            adjust: Some(creation.adjust.clone()).into(),
            update: creation.updates.limits.clone(),
            owners: Some(creation.owners.0.clone()).into(),
            plugins: plugins.iter().map(instance).collect(),
            ..Default::default()
        };
        for plugin in plugins {
            match plugin.validate_container_adjustment(&request).await? {
                Some(answer) if answer.reject => {
                    let request = plugin::name(Event::VALIDATE_CONTAINER_ADJUSTMENT);
                    return Err(NriError::Refused { plugin: plugin.id.clone(), request, why: answer.reason });
                }
                // It watches over what is made, so nothing is made while it does not.
                None if plugin.wants(Event::VALIDATE_CONTAINER_ADJUSTMENT) => {
                    let request = plugin::name(Event::VALIDATE_CONTAINER_ADJUSTMENT);
                    let why = "it does not answer".to_owned();
                    return Err(NriError::Refused { plugin: plugin.id.clone(), request, why });
                }
                _ => {}
            }
        }
        Ok(())
    }

    async fn update_container(
        &self,
        id: &str,
        limits: nri::LinuxResources,
    ) -> Result<(nri::LinuxResources, Updates), NriError> {
        let Some((pod, container)) = self.container(id) else { return Ok((limits, Updates::default())) };
        let mut request = nri::UpdateContainerRequest {
            pod: Some(pod).into(),
            container: Some(container).into(),
            linux_resources: Some(limits).into(),
            ..Default::default()
        };
        let (mut updates, mut owners) = (Updates::default(), owners::Owners::default());
        for plugin in self.plugins() {
            let Some(answer) = plugin.update_container(&request).await? else { continue };
            updates.evictions.extend(answer.evict);
            updates.apply(&mut owners, &plugin.id.to_string(), answer.update)?;
            // Taken at once, so that the next plugin sees it; who set what is remembered all the same.
            if let Some(own) = updates.take(id) {
                resources::put(&own, request.linux_resources.mut_or_insert_default());
            }
        }
        Ok((request.linux_resources.unwrap_or_default(), updates))
    }

    async fn stop_container(self: &Arc<Self>, id: &str) -> Result<(), NriError> {
        let Some((pod, container)) = self.container(id) else { return Ok(()) };
        let first = match lock(&self.told).containers.get_mut(id) {
            Some(known) => !std::mem::replace(&mut known.has_ended, true),
            None => false,
        };
        if !first {
            return Ok(());
        }
        let request = nri::StopContainerRequest {
            pod: Some(pod).into(),
            container: Some(container).into(),
            ..Default::default()
        };
        let (mut updates, mut owners) = (Updates::default(), owners::Owners::default());
        let mut result = Ok(());
        for plugin in self.plugins() {
            // The end is a fact: the others are told of it although one objects.
            match plugin.stop_container(&request).await {
                Ok(Some(answer)) => {
                    result = result.and(updates.apply(&mut owners, &plugin.id.to_string(), answer.update));
                }
                Ok(None) => {}
                Err(error) => result = result.and(Err(error)),
            }
        }
        if !updates.limits.is_empty() {
            // Not in this queue, which the changes may have to wait for.
            tokio::spawn(self.requested("(several)", updates.limits, Vec::new()));
        }
        result
    }

    async fn remove_container(self: &Arc<Self>, id: &str) -> Result<(), NriError> {
        let stopped = self.stop_container(id).await;
        let Some((pod, container)) = self.container(id) else { return stopped };
        lock(&self.told).containers.remove(id);
        self.notify(Event::REMOVE_CONTAINER, &pod, Some(&container)).await
    }

    /// Carries out what a plugin wants of containers; gives back what failed and may not.
    fn requested(
        self: &Arc<Self>,
        plugin: &str,
        updates: Vec<nri::ContainerUpdate>,
        evictions: Vec<nri::ContainerEviction>,
    ) -> BoxFuture<'static, Vec<nri::ContainerUpdate>> {
        let (inner, plugin) = (self.clone(), plugin.to_owned());
        // Boxed, because the end of an evicted container may ask for more updates.
        async move { inner.carry_out(&plugin, updates, evictions).await }.boxed()
    }

    async fn carry_out(
        &self,
        plugin: &str,
        updates: Vec<nri::ContainerUpdate>,
        evictions: Vec<nri::ContainerEviction>,
    ) -> Vec<nri::ContainerUpdate> {
        let mut failed = Vec::new();
        let Some(node) = self.node() else { return updates };
        for update in updates {
            let result = container::update_for_plugin(&node, plugin, &update).await;
            if let Err(error) = result {
                let error = crate::error_text(&error);
                tracing::warn!(plugin, container = update.container_id, error, "update of an NRI plugin failed");
                if !update.ignore_failure {
                    failed.push(update);
                }
            }
        }
        for eviction in evictions {
            let reason = eviction.reason.chars().take(256).collect::<String>();
            tracing::warn!(plugin, container = eviction.container_id, reason, "NRI plugin evicts a container");
            let Ok(found) = node.containers.find("container", &eviction.container_id) else { continue };
            if let Err(error) = container::stop(&node, &found, std::time::Duration::ZERO).await {
                tracing::error!(container = %found.id, error = %crate::error_text(&error), "cannot evict it");
            }
        }
        failed
    }
}
