//! ImageService: one file per verb; this one only dispatches.

use std::sync::Arc;

use bulkhead_proto::cri;
use bulkhead_proto::cri::image_service_server::ImageService;
use tonic::{Request, Response, Status};

use crate::cri::stream::Batches;
use crate::node::Node;

mod convert;
mod image_fs_info;
mod image_status;
mod list_images;
mod pull_image;
mod remove_image;
mod stream_images;

/// Serves the verbs on a node's image store.
#[derive(Debug, Clone)]
pub struct ImageVerbs {
    node: Arc<Node>,
}

impl ImageVerbs {
    /// Verbs on `node`.
    #[must_use]
    pub fn new(node: Arc<Node>) -> Self {
        Self { node }
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl ImageService for ImageVerbs {
    type StreamImagesStream = Batches<cri::StreamImagesResponse>;

    async fn list_images(&self, request: Request<cri::ListImagesRequest>) -> Answer<cri::ListImagesResponse> {
        list_images::list_images(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn image_status(&self, request: Request<cri::ImageStatusRequest>) -> Answer<cri::ImageStatusResponse> {
        image_status::image_status(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn pull_image(&self, request: Request<cri::PullImageRequest>) -> Answer<cri::PullImageResponse> {
        pull_image::pull_image(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn remove_image(&self, request: Request<cri::RemoveImageRequest>) -> Answer<cri::RemoveImageResponse> {
        remove_image::remove_image(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn image_fs_info(&self, request: Request<cri::ImageFsInfoRequest>) -> Answer<cri::ImageFsInfoResponse> {
        image_fs_info::image_fs_info(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn stream_images(&self, request: Request<cri::StreamImagesRequest>) -> Answer<Self::StreamImagesStream> {
        stream_images::stream_images(&self.node, request.into_inner()).await.map(Response::new)
    }
}
