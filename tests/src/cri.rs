//! The CRI as a kubelet speaks it: typed, over the daemon's socket, one request at a time.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use bulkhead_proto::cri;
use bulkhead_proto::cri::image_service_client::ImageServiceClient;
use bulkhead_proto::cri::runtime_service_client::RuntimeServiceClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

/// No verb of a healthy daemon takes longer: more than a guest may take to boot, whose error says where it stands.
const LIMIT: Duration = Duration::from_secs(200);
const MAX_ANSWER: usize = 64 << 20;

/// A verb that failed.
#[derive(Debug)]
pub struct CallError {
    /// Its name, in snake case.
    pub verb: &'static str,
    /// Of gRPC.
    pub code: Code,
    /// What people get to read.
    pub message: String,
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} failed with {:?}: {}", self.verb, self.code, self.message)
    }
}

impl std::error::Error for CallError {}

/// Connections to both services; made again by themselves when the daemon was restarted.
#[derive(Debug)]
pub struct Cri {
    tokio: Runtime,
    runtime: RuntimeServiceClient<Channel>,
    image: ImageServiceClient<Channel>,
}

macro_rules! verbs {
    ($($(#[$doc:meta])* $service:ident.$verb:ident($request:ident) -> $response:ident;)*) => {
        impl Cri {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// The daemon's status.
                pub fn $verb(&self, request: cri::$request) -> Result<cri::$response, CallError> {
                    let mut client = self.$service.clone();
                    self.call(stringify!($verb), LIMIT, async move { client.$verb(request).await })
                }
            )*
        }
    };
}

macro_rules! lists {
    ($($(#[$doc:meta])* $service:ident.$verb:ident($request:ident) -> $response:ident;)*) => {
        impl Cri {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// The daemon's status.
                pub fn $verb(&self, request: cri::$request) -> Result<Vec<cri::$response>, CallError> {
                    let mut client = self.$service.clone();
                    self.call(stringify!($verb), LIMIT, async move {
                        let mut stream = client.$verb(request).await?.into_inner();
                        let mut all = Vec::new();
                        while let Some(response) = stream.message().await? {
                            all.push(response);
                        }
                        Ok(Response::new(all))
                    })
                }
            )*
        }
    };
}

lists! {
    /// StreamPodSandboxes: every response of the stream.
    runtime.stream_pod_sandboxes(StreamPodSandboxesRequest) -> StreamPodSandboxesResponse;
    /// StreamContainers: every response of the stream.
    runtime.stream_containers(StreamContainersRequest) -> StreamContainersResponse;
    /// StreamContainerStats: every response of the stream.
    runtime.stream_container_stats(StreamContainerStatsRequest) -> StreamContainerStatsResponse;
    /// StreamPodSandboxStats: every response of the stream.
    runtime.stream_pod_sandbox_stats(StreamPodSandboxStatsRequest) -> StreamPodSandboxStatsResponse;
    /// StreamPodSandboxMetrics: every response of the stream.
    runtime.stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest) -> StreamPodSandboxMetricsResponse;
    /// StreamImages: every response of the stream.
    image.stream_images(StreamImagesRequest) -> StreamImagesResponse;
}

verbs! {
    /// Version
    runtime.version(VersionRequest) -> VersionResponse;
    /// Status
    runtime.status(StatusRequest) -> StatusResponse;
    /// RunPodSandbox
    runtime.run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse;
    /// StopPodSandbox
    runtime.stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse;
    /// RemovePodSandbox
    runtime.remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse;
    /// PodSandboxStatus
    runtime.pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse;
    /// ListPodSandbox
    runtime.list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse;
    /// PodSandboxStats
    runtime.pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
    /// ListPodSandboxStats
    runtime.list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
    /// ListContainerStats
    runtime.list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
    /// ListMetricDescriptors
    runtime.list_metric_descriptors(ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse;
    /// ListPodSandboxMetrics
    runtime.list_pod_sandbox_metrics(ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse;
    /// CreateContainer
    runtime.create_container(CreateContainerRequest) -> CreateContainerResponse;
    /// StartContainer
    runtime.start_container(StartContainerRequest) -> StartContainerResponse;
    /// StopContainer
    runtime.stop_container(StopContainerRequest) -> StopContainerResponse;
    /// RemoveContainer
    runtime.remove_container(RemoveContainerRequest) -> RemoveContainerResponse;
    /// ContainerStatus
    runtime.container_status(ContainerStatusRequest) -> ContainerStatusResponse;
    /// ListContainers
    runtime.list_containers(ListContainersRequest) -> ListContainersResponse;
    /// ContainerStats
    runtime.container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
    /// UpdateContainerResources
    runtime.update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
    runtime.update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest) -> UpdatePodSandboxResourcesResponse;
    /// ReopenContainerLog
    runtime.reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
    /// ExecSync
    runtime.exec_sync(ExecSyncRequest) -> ExecSyncResponse;
    /// Exec
    runtime.exec(ExecRequest) -> ExecResponse;
    /// Attach
    runtime.attach(AttachRequest) -> AttachResponse;
    /// PortForward
    runtime.port_forward(PortForwardRequest) -> PortForwardResponse;
    /// RuntimeConfig
    runtime.runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse;
    /// CheckpointContainer
    runtime.checkpoint_container(CheckpointContainerRequest) -> CheckpointContainerResponse;
    /// ListImages
    image.list_images(ListImagesRequest) -> ListImagesResponse;
    /// ImageStatus
    image.image_status(ImageStatusRequest) -> ImageStatusResponse;
    /// PullImage
    image.pull_image(PullImageRequest) -> PullImageResponse;
    /// RemoveImage
    image.remove_image(RemoveImageRequest) -> RemoveImageResponse;
    /// ImageFsInfo
    image.image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse;
}

impl Cri {
    /// A client of `socket`. Connects with the first request.
    ///
    /// # Errors
    /// When no runtime can be made.
    pub fn new(socket: &Path) -> Result<Self> {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio")?;
        let inside = tokio.enter();
        let socket = socket.to_owned();
        let connect = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://bulkhead.invalid").connect_with_connector_lazy(connect);
        drop(inside);
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_ANSWER),
            image: ImageServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER),
            tokio,
        })
    }

    pub(crate) fn runtime(&self) -> RuntimeServiceClient<Channel> {
        self.runtime.clone()
    }

    pub(crate) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.tokio.block_on(work)
    }

    fn call<T>(
        &self,
        verb: &'static str,
        limit: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, CallError> {
        let answer = self.tokio.block_on(async { tokio::time::timeout(limit, call).await });
        let status = match answer {
            Ok(Ok(response)) => return Ok(response.into_inner()),
            Ok(Err(status)) => status,
            Err(_) => Status::deadline_exceeded(format!("the harness gave up after {limit:?}")),
        };
        Err(CallError { verb, code: status.code(), message: status.message().to_owned() })
    }

    /// CreateContainer with a deadline that the daemon is told of.
    ///
    /// # Errors
    /// The daemon's status; DEADLINE_EXCEEDED, or CANCELLED by the client's own clock, when it had not answered.
    pub fn create_container_within(
        &self,
        request: cri::CreateContainerRequest,
        limit: Duration,
    ) -> Result<cri::CreateContainerResponse, CallError> {
        let mut client = self.runtime.clone();
        let mut request = tonic::Request::new(request);
        request.set_timeout(limit);
        self.call("create_container", limit * 10, async move { client.create_container(request).await })
    }

    /// Pulls an image that is open to all; gives its reference.
    ///
    /// # Errors
    /// The daemon's status.
    pub fn pull(&self, image: &str) -> Result<String, CallError> {
        let spec = cri::ImageSpec { image: image.to_owned(), ..Default::default() };
        let request = cri::PullImageRequest { image: Some(spec), ..Default::default() };
        Ok(self.pull_image(request)?.image_ref)
    }

    /// The image by this name, if it is there.
    ///
    /// # Errors
    /// The daemon's status.
    pub fn find_image(&self, image: &str) -> Result<Option<cri::Image>, CallError> {
        let spec = cri::ImageSpec { image: image.to_owned(), ..Default::default() };
        Ok(self.image_status(cri::ImageStatusRequest { image: Some(spec), verbose: false })?.image)
    }

    /// Every sandbox.
    ///
    /// # Errors
    /// The daemon's status.
    pub fn pods(&self) -> Result<Vec<cri::PodSandbox>, CallError> {
        Ok(self.list_pod_sandbox(cri::ListPodSandboxRequest::default())?.items)
    }

    /// Every container.
    ///
    /// # Errors
    /// The daemon's status.
    pub fn containers(&self) -> Result<Vec<cri::Container>, CallError> {
        Ok(self.list_containers(cri::ListContainersRequest::default())?.containers)
    }

    /// Stops and removes a sandbox with everything in it.
    ///
    /// # Errors
    /// The daemon's status.
    pub fn remove_pod(&self, id: &str) -> Result<(), CallError> {
        self.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() })?;
        self.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() })?;
        Ok(())
    }
}
