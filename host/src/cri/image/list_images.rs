//! ListImages: from memory, never waits.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use super::convert;
use crate::node::Node;

pub(super) async fn list_images(
    node: &Arc<Node>,
    request: cri::ListImagesRequest,
) -> Result<cri::ListImagesResponse, Status> {
    let name = request.filter.and_then(|filter| filter.image).map(|spec| spec.image).unwrap_or_default();
    let images = if name.is_empty() { node.images.list() } else { node.images.find(&name).into_iter().collect() };
    Ok(cri::ListImagesResponse { images: images.iter().map(convert::image).collect() })
}
