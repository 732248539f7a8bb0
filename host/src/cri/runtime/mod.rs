//! RuntimeService: one file per verb; this one only dispatches.

use std::sync::Arc;

use bulkhead_proto::cri;
use bulkhead_proto::cri::runtime_service_server::RuntimeService;
use tonic::{Request, Response, Status};

use super::not_built;
use super::stream::Batches;
use crate::node::Node;

mod attach;
mod container_stats;
mod container_status;
mod convert;
mod create_container;
mod exec;
mod exec_sync;
mod figures;
mod get_container_events;
mod list_container_stats;
mod list_containers;
mod list_metric_descriptors;
mod list_pod_sandbox;
mod list_pod_sandbox_metrics;
mod list_pod_sandbox_stats;
mod pod_sandbox_stats;
mod pod_sandbox_status;
mod port_forward;
mod remove_container;
mod remove_pod_sandbox;
mod reopen_container_log;
mod run_pod_sandbox;
mod runtime_config;
mod start_container;
mod status;
mod stop_container;
mod stop_pod_sandbox;
mod stream_container_stats;
mod stream_containers;
mod stream_pod_sandbox_metrics;
mod stream_pod_sandbox_stats;
mod stream_pod_sandboxes;
mod update_container_resources;
mod update_pod_sandbox_resources;
mod update_runtime_config;
mod version;

/// Serves the verbs on a node.
#[derive(Debug, Clone)]
pub struct Runtime {
    node: Arc<Node>,
}

impl Runtime {
    /// Verbs on `node`.
    #[must_use]
    pub fn new(node: Arc<Node>) -> Self {
        Self { node }
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl RuntimeService for Runtime {
    type StreamPodSandboxesStream = Batches<cri::StreamPodSandboxesResponse>;
    type StreamContainersStream = Batches<cri::StreamContainersResponse>;
    type StreamContainerStatsStream = Batches<cri::StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = Batches<cri::StreamPodSandboxStatsResponse>;
    type StreamPodSandboxMetricsStream = Batches<cri::StreamPodSandboxMetricsResponse>;
    type GetContainerEventsStream = get_container_events::EventStream;

    async fn version(&self, request: Request<cri::VersionRequest>) -> Answer<cri::VersionResponse> {
        version::version(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn run_pod_sandbox(&self, request: Request<cri::RunPodSandboxRequest>) -> Answer<cri::RunPodSandboxResponse> {
        run_pod_sandbox::run_pod_sandbox(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<cri::StopPodSandboxRequest>,
    ) -> Answer<cri::StopPodSandboxResponse> {
        stop_pod_sandbox::stop_pod_sandbox(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<cri::RemovePodSandboxRequest>,
    ) -> Answer<cri::RemovePodSandboxResponse> {
        remove_pod_sandbox::remove_pod_sandbox(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<cri::PodSandboxStatusRequest>,
    ) -> Answer<cri::PodSandboxStatusResponse> {
        pod_sandbox_status::pod_sandbox_status(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<cri::ListPodSandboxRequest>,
    ) -> Answer<cri::ListPodSandboxResponse> {
        list_pod_sandbox::list_pod_sandbox(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn create_container(
        &self,
        request: Request<cri::CreateContainerRequest>,
    ) -> Answer<cri::CreateContainerResponse> {
        create_container::create_container(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn start_container(
        &self,
        request: Request<cri::StartContainerRequest>,
    ) -> Answer<cri::StartContainerResponse> {
        start_container::start_container(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn stop_container(&self, request: Request<cri::StopContainerRequest>) -> Answer<cri::StopContainerResponse> {
        stop_container::stop_container(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn remove_container(
        &self,
        request: Request<cri::RemoveContainerRequest>,
    ) -> Answer<cri::RemoveContainerResponse> {
        remove_container::remove_container(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn list_containers(
        &self,
        request: Request<cri::ListContainersRequest>,
    ) -> Answer<cri::ListContainersResponse> {
        list_containers::list_containers(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn container_status(
        &self,
        request: Request<cri::ContainerStatusRequest>,
    ) -> Answer<cri::ContainerStatusResponse> {
        container_status::container_status(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn update_container_resources(
        &self,
        request: Request<cri::UpdateContainerResourcesRequest>,
    ) -> Answer<cri::UpdateContainerResourcesResponse> {
        update_container_resources::update_container_resources(&self.node, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn reopen_container_log(
        &self,
        request: Request<cri::ReopenContainerLogRequest>,
    ) -> Answer<cri::ReopenContainerLogResponse> {
        reopen_container_log::reopen_container_log(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn exec_sync(&self, request: Request<cri::ExecSyncRequest>) -> Answer<cri::ExecSyncResponse> {
        exec_sync::exec_sync(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn container_stats(
        &self,
        request: Request<cri::ContainerStatsRequest>,
    ) -> Answer<cri::ContainerStatsResponse> {
        container_stats::container_stats(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn list_container_stats(
        &self,
        request: Request<cri::ListContainerStatsRequest>,
    ) -> Answer<cri::ListContainerStatsResponse> {
        list_container_stats::list_container_stats(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<cri::PodSandboxStatsRequest>,
    ) -> Answer<cri::PodSandboxStatsResponse> {
        pod_sandbox_stats::pod_sandbox_stats(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<cri::ListPodSandboxStatsRequest>,
    ) -> Answer<cri::ListPodSandboxStatsResponse> {
        list_pod_sandbox_stats::list_pod_sandbox_stats(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn update_runtime_config(
        &self,
        request: Request<cri::UpdateRuntimeConfigRequest>,
    ) -> Answer<cri::UpdateRuntimeConfigResponse> {
        update_runtime_config::update_runtime_config(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn status(&self, request: Request<cri::StatusRequest>) -> Answer<cri::StatusResponse> {
        status::status(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn runtime_config(&self, request: Request<cri::RuntimeConfigRequest>) -> Answer<cri::RuntimeConfigResponse> {
        runtime_config::runtime_config(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn exec(&self, request: Request<cri::ExecRequest>) -> Answer<cri::ExecResponse> {
        exec::exec(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn attach(&self, request: Request<cri::AttachRequest>) -> Answer<cri::AttachResponse> {
        attach::attach(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn port_forward(&self, request: Request<cri::PortForwardRequest>) -> Answer<cri::PortForwardResponse> {
        port_forward::port_forward(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn checkpoint_container(
        &self,
        _: Request<cri::CheckpointContainerRequest>,
    ) -> Answer<cri::CheckpointContainerResponse> {
        not_built("CheckpointContainer")
    }

    async fn checkpoint_pod(&self, _: Request<cri::CheckpointPodRequest>) -> Answer<cri::CheckpointPodResponse> {
        not_built("CheckpointPod")
    }

    async fn restore_pod(&self, _: Request<cri::RestorePodRequest>) -> Answer<cri::RestorePodResponse> {
        not_built("RestorePod")
    }

    async fn list_metric_descriptors(
        &self,
        request: Request<cri::ListMetricDescriptorsRequest>,
    ) -> Answer<cri::ListMetricDescriptorsResponse> {
        Ok(Response::new(list_metric_descriptors::list_metric_descriptors(request.into_inner())))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        request: Request<cri::ListPodSandboxMetricsRequest>,
    ) -> Answer<cri::ListPodSandboxMetricsResponse> {
        list_pod_sandbox_metrics::list_pod_sandbox_metrics(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<cri::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<cri::UpdatePodSandboxResourcesResponse> {
        update_pod_sandbox_resources::update_pod_sandbox_resources(&self.node, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn stream_pod_sandboxes(
        &self,
        request: Request<cri::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        stream_pod_sandboxes::stream_pod_sandboxes(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn stream_containers(
        &self,
        request: Request<cri::StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        stream_containers::stream_containers(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn stream_container_stats(
        &self,
        request: Request<cri::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        stream_container_stats::stream_container_stats(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<cri::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        stream_pod_sandbox_stats::stream_pod_sandbox_stats(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        request: Request<cri::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        stream_pod_sandbox_metrics::stream_pod_sandbox_metrics(&self.node, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn get_container_events(
        &self,
        request: Request<cri::GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        get_container_events::get_container_events(&self.node, request.into_inner()).map(Response::new)
    }
}
