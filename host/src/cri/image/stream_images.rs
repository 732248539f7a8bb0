//! StreamImages: ListImages in batches, for nodes whose list outgrows a message.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use super::convert;
use crate::node::Node;

/// Images in one response.
const BATCH: usize = 100;

/// Responses that are made when they are sent.
pub(super) type Batches = tokio_stream::Iter<std::vec::IntoIter<Result<cri::StreamImagesResponse, Status>>>;

pub(super) fn stream_images(node: &Arc<Node>, request: cri::StreamImagesRequest) -> Batches {
    let name = request.filter.and_then(|filter| filter.image).map(|spec| spec.image).unwrap_or_default();
    let images = if name.is_empty() { node.images.list() } else { node.images.find(&name).into_iter().collect() };
    let batches: Vec<_> = images
        .chunks(BATCH)
        .map(|batch| Ok(cri::StreamImagesResponse { images: batch.iter().map(convert::image).collect() }))
        .collect();
    tokio_stream::iter(batches)
}
