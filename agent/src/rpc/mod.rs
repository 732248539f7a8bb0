//! The agent's ttrpc service: one file per verb, each checks, calls the domain and answers.

mod configure_sandbox;
mod create_container;
mod errors;
mod exec_process;
mod info;
mod remove_container;
mod remove_process;
mod resize_terminal;
mod set_cpus;
mod shutdown;
mod signal_process;
mod start_container;
mod stats;
mod update_container;
mod wait_process;

use std::sync::Arc;

use bulkhead_proto::agent as proto;
use bulkhead_proto::agent_ttrpc::Agent;
use tokio::sync::Notify;
use ttrpc::r#async::TtrpcContext;

use crate::sandbox::Sandbox;

/// What all verbs need.
#[derive(Debug, Clone)]
pub struct Service {
    /// The pod.
    pub sandbox: Arc<Sandbox>,
    /// Told when the agent shall end.
    pub shutdown: Arc<Notify>,
    /// From kernel start (guest) or process start (host) to the listening socket, in microseconds.
    pub boot_us: u64,
}

/// Runs what may block off the runtime's thread.
async fn blocking<T, E, F>(work: F) -> ttrpc::Result<T>
where
    T: Send + 'static,
    E: Into<errors::Refusal> + Send + 'static,
    F: FnOnce() -> Result<T, E> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| error.into().into()),
        Err(error) => Err(errors::internal(&format!("the agent's worker failed: {error}"))),
    }
}

#[async_trait::async_trait]
impl Agent for Service {
    async fn info(&self, _: &TtrpcContext, _: proto::InfoRequest) -> ttrpc::Result<proto::InfoResponse> {
        Ok(info::run(self))
    }

    async fn configure_sandbox(
        &self,
        _: &TtrpcContext,
        request: proto::ConfigureSandboxRequest,
    ) -> ttrpc::Result<proto::ConfigureSandboxResponse> {
        configure_sandbox::run(self, request).await
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: proto::CreateContainerRequest,
    ) -> ttrpc::Result<proto::CreateContainerResponse> {
        create_container::run(self, request).await
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        request: proto::StartContainerRequest,
    ) -> ttrpc::Result<proto::StartContainerResponse> {
        start_container::run(self, request).await
    }

    async fn remove_container(
        &self,
        _: &TtrpcContext,
        request: proto::RemoveContainerRequest,
    ) -> ttrpc::Result<proto::RemoveContainerResponse> {
        remove_container::run(self, request).await
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: proto::UpdateContainerRequest,
    ) -> ttrpc::Result<proto::UpdateContainerResponse> {
        update_container::run(self, request).await
    }

    async fn set_cpus(
        &self,
        _: &TtrpcContext,
        request: proto::SetCpusRequest,
    ) -> ttrpc::Result<proto::SetCpusResponse> {
        set_cpus::run(self, request).await
    }

    async fn exec_process(
        &self,
        _: &TtrpcContext,
        request: proto::ExecProcessRequest,
    ) -> ttrpc::Result<proto::ExecProcessResponse> {
        exec_process::run(self, request).await
    }

    async fn signal_process(
        &self,
        _: &TtrpcContext,
        request: proto::SignalProcessRequest,
    ) -> ttrpc::Result<proto::SignalProcessResponse> {
        signal_process::run(self, request).await
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: proto::WaitProcessRequest,
    ) -> ttrpc::Result<proto::WaitProcessResponse> {
        wait_process::run(self, request).await
    }

    async fn remove_process(
        &self,
        _: &TtrpcContext,
        request: proto::RemoveProcessRequest,
    ) -> ttrpc::Result<proto::RemoveProcessResponse> {
        remove_process::run(self, &request)
    }

    async fn resize_terminal(
        &self,
        _: &TtrpcContext,
        request: proto::ResizeTerminalRequest,
    ) -> ttrpc::Result<proto::ResizeTerminalResponse> {
        resize_terminal::run(self, &request)
    }

    async fn stats(&self, _: &TtrpcContext, request: proto::StatsRequest) -> ttrpc::Result<proto::StatsResponse> {
        stats::run(self, request).await
    }

    async fn shutdown(&self, _: &TtrpcContext, _: proto::ShutdownRequest) -> ttrpc::Result<proto::ShutdownResponse> {
        Ok(shutdown::run(self))
    }
}
