//! What is done in the queue of requests to plugins: each is asked in its turn, and what they want is carried out.

use std::sync::{Arc, Weak};

use bulkhead_proto::nri::{self, Event};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::merge::{Creation, Updates};
use super::plugin::{self, Plugin};
use super::told::{KnownContainer, KnownPod};
use super::{Inner, NriError, lock, messages, owners, resources};
use crate::container::{self, ContainerState};
use crate::node::Node;
use crate::sandbox::SandboxState;

impl Inner {
    pub(super) fn plugins(&self) -> Vec<Arc<Plugin>> {
        let mut plugins = lock(&self.plugins);
        plugins.retain(|plugin| !plugin.is_closed());
        plugins.clone()
    }

    pub(super) fn node(&self) -> Option<Arc<Node>> {
        self.node.get().and_then(Weak::upgrade)
    }

    /// Everything of the journal that plugins are told of when they connect.
    pub(super) fn know_all(&self, node: &Node) {
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
    pub(super) fn pod(&self, id: &str) -> Option<nri::PodSandbox> {
        let known = lock(&self.told).pods.get(id).map(|known| known.message.clone())?;
        let found = self.node().and_then(|node| node.sandboxes.find("sandbox", id).ok());
        Some(found.map_or(known, |sandbox| messages::pod(&sandbox.record.get())))
    }

    /// A container that plugins know, and its pod, as they stand.
    pub(super) fn container(&self, id: &str) -> Option<(nri::PodSandbox, nri::Container)> {
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
    pub(super) async fn join(self: &Arc<Self>, plugin: Plugin) -> Result<(), String> {
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

    pub(super) async fn notify(
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

    pub(super) async fn stop_pod(self: &Arc<Self>, id: &str) -> Result<(), NriError> {
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

    pub(super) async fn create_container(
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
    pub(super) async fn validate(
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

    pub(super) async fn update_container(
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

    pub(super) async fn stop_container(self: &Arc<Self>, id: &str) -> Result<(), NriError> {
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

    pub(super) async fn remove_container(self: &Arc<Self>, id: &str) -> Result<(), NriError> {
        let stopped = self.stop_container(id).await;
        let Some((pod, container)) = self.container(id) else { return stopped };
        lock(&self.told).containers.remove(id);
        self.notify(Event::REMOVE_CONTAINER, &pod, Some(&container)).await
    }

    /// Carries out what a plugin wants of containers; gives back what failed and may not.
    pub(super) fn requested(
        self: &Arc<Self>,
        plugin: &str,
        updates: Vec<nri::ContainerUpdate>,
        evictions: Vec<nri::ContainerEviction>,
    ) -> BoxFuture<'static, Vec<nri::ContainerUpdate>> {
        let (inner, plugin) = (self.clone(), plugin.to_owned());
        // Boxed, because the end of an evicted container may ask for more updates.
        async move { inner.carry_out(&plugin, updates, evictions).await }.boxed()
    }

    pub(super) async fn carry_out(
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
