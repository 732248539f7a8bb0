//! RemoveImage: all names of the image; idempotent.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use crate::node::Node;

pub(super) async fn remove_image(
    node: &Arc<Node>,
    request: cri::RemoveImageRequest,
) -> Result<cri::RemoveImageResponse, Status> {
    let name = request.image.map(|spec| spec.image).unwrap_or_default();
    node.images.remove(&name).await?;
    Ok(cri::RemoveImageResponse {})
}
