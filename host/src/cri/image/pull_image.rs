//! PullImage: answers the image id, as ContainerStatus.image_id will.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use super::convert;
use crate::node::Node;

pub(super) async fn pull_image(
    node: &Arc<Node>,
    request: cri::PullImageRequest,
) -> Result<cri::PullImageResponse, Status> {
    let name = request.image.map(|spec| spec.image).unwrap_or_default();
    let secret = request.auth.map(convert::secret).transpose()?.flatten();
    let id = node.images.pull(&name, secret, |_| {}).await?;
    tracing::info!(image = name, %id, "image pulled");
    Ok(cri::PullImageResponse { image_ref: id.to_string() })
}
