//! StreamImages: ListImages in batches.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use super::list_images::list_images;
use crate::cri::stream::{Batches, batches};
use crate::node::Node;

pub(super) async fn stream_images(
    node: &Arc<Node>,
    request: cri::StreamImagesRequest,
) -> Result<Batches<cri::StreamImagesResponse>, Status> {
    let list = list_images(node, cri::ListImagesRequest { filter: request.filter }).await?;
    Ok(batches(list.images, |images| cri::StreamImagesResponse { images }))
}
