//! What plugins may ask of the daemon.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use async_trait::async_trait;
use bulkhead_proto::{nri, nri_ttrpc};
use tokio::sync::oneshot;
use ttrpc::r#async::TtrpcContext;

use super::Inner;
use super::plugin::PluginId;

/// The Runtime service of one connection.
pub(super) struct RuntimeService {
    inner: Weak<Inner>,
    /// Known already when the daemon started the plugin.
    given: Option<PluginId>,
    registered: Mutex<Option<oneshot::Sender<Result<PluginId, String>>>>,
    plugin: Mutex<Option<PluginId>>,
}

impl RuntimeService {
    /// The service, and what the plugin's registration comes to.
    pub(super) fn new(
        inner: &Arc<Inner>,
        given: Option<PluginId>,
    ) -> (Self, oneshot::Receiver<Result<PluginId, String>>) {
        let (sender, registered) = oneshot::channel();
        let (inner, plugin) = (Arc::downgrade(inner), Mutex::default());
        (Self { inner, given, registered: Mutex::new(Some(sender)), plugin }, registered)
    }
}

fn refuse<T>(code: ttrpc::Code, text: &str) -> ttrpc::Result<T> {
    Err(ttrpc::Error::RpcStatus(ttrpc::get_status(code, text)))
}

#[async_trait]
impl nri_ttrpc::Runtime for RuntimeService {
    async fn register_plugin(
        &self,
        _context: &TtrpcContext,
        request: nri::RegisterPluginRequest,
    ) -> ttrpc::Result<nri::Empty> {
        let Some(sender) = self.registered.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return refuse(ttrpc::Code::ALREADY_EXISTS, "this plugin has registered already");
        };
        let id = match &self.given {
            Some(id) => Ok(id.clone()),
            None => PluginId::new(&request.plugin_idx, &request.plugin_name),
        };
        let answer = match &id {
            Ok(id) => {
                *self.plugin.lock().unwrap_or_else(PoisonError::into_inner) = Some(id.clone());
                let version = request.NRI_version.chars().take(64).collect::<String>();
                tracing::info!(plugin = %id, version, "NRI plugin registers");
                Ok(nri::Empty::default())
            }
            Err(why) => refuse(ttrpc::Code::INVALID_ARGUMENT, why),
        };
        // Nobody waits any more when the time is over.
        let _ = sender.send(id);
        answer
    }

    async fn update_containers(
        &self,
        _context: &TtrpcContext,
        request: nri::UpdateContainersRequest,
    ) -> ttrpc::Result<nri::UpdateContainersResponse> {
        let plugin = self.plugin.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (Some(plugin), Some(inner)) = (plugin, self.inner.upgrade()) else {
            return refuse(ttrpc::Code::FAILED_PRECONDITION, "register first");
        };
        tracing::info!(%plugin, updates = request.update.len(), evictions = request.evict.len(), "NRI plugin asks");
        let failed = inner.requested(&plugin.to_string(), request.update, request.evict).await;
        Ok(nri::UpdateContainersResponse { failed, ..Default::default() })
    }
}
