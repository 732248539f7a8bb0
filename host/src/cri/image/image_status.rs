//! ImageStatus: an image that is not there is no error.

use std::collections::HashMap;
use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use super::convert;
use crate::node::Node;

pub(super) async fn image_status(
    node: &Arc<Node>,
    request: cri::ImageStatusRequest,
) -> Result<cri::ImageStatusResponse, Status> {
    let name = request.image.map(|spec| spec.image).unwrap_or_default();
    let found = node.images.find(&name);
    let info = match (&found, request.verbose) {
        (Some(image), true) => convert::image_info(image),
        _ => HashMap::new(),
    };
    Ok(cri::ImageStatusResponse { image: found.as_ref().map(convert::image), info })
}
