//! Why a plugin, or what plugins want, keeps something from being done.

use super::plugin::PluginId;

/// Why a request of the CRI fails because of a plugin. Every message names the plugin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum NriError {
    #[error("NRI plugin {plugin} refused {request}: {why}")]
    Refused { plugin: PluginId, request: &'static str, why: String },
    #[error("NRI plugin {plugin} failed in {request}, which it wants to be fatal (failure_policy.fail_request): {why}")]
    Failed { plugin: PluginId, request: &'static str, why: String },
    #[error("NRI plugins {plugin} and {other} both set {field}; have only one of them do it")]
    Conflict { plugin: String, other: String, field: String },
    #[error("NRI plugin {plugin} asks for {field}: {why}")]
    Unsupported { plugin: String, field: String, why: String },
    #[error("the dispatch of {request} to NRI plugins was interrupted by a fault in the daemon; see its log")]
    Interrupted { request: &'static str },
}
