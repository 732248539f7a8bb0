//! ImageFsInfo.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use super::convert;
use crate::node::Node;

pub(super) async fn image_fs_info(
    node: &Arc<Node>,
    _request: cri::ImageFsInfoRequest,
) -> Result<cri::ImageFsInfoResponse, Status> {
    let usage = convert::fs_usage(&node.images.fs_usage());
    Ok(cri::ImageFsInfoResponse { image_filesystems: vec![usage.clone()], container_filesystems: vec![usage] })
}
