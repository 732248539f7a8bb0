//! ImageFsInfo: the image store by its own books, the writable layers by what they take on disk now.

use std::sync::Arc;

use bulkhead_proto::cri;
use tonic::Status;

use super::convert;
use crate::node::{Node, now_ns};
use crate::sandbox::stats;

pub(super) async fn image_fs_info(
    node: &Arc<Node>,
    _request: cri::ImageFsInfoRequest,
) -> Result<cri::ImageFsInfoResponse, Status> {
    let images = convert::fs_usage(&node.images.fs_usage());
    let used = stats::disk_usage(node).await;
    let containers = cri::FilesystemUsage {
        timestamp: now_ns(),
        fs_id: Some(cri::FilesystemIdentifier { mountpoint: node.container_file_system.display().to_string() }),
        used_bytes: Some(cri::UInt64Value { value: used.bytes }),
        inodes_used: Some(cri::UInt64Value { value: used.inodes }),
    };
    Ok(cri::ImageFsInfoResponse { image_filesystems: vec![images], container_filesystems: vec![containers] })
}
