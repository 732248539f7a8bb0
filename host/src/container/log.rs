//! A container's log file: opened here, written by the per-pod process.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Container, ContainerError, ContainerState};
use crate::blocking;
use crate::node::Node;

/// Opens the log for appending; its directory is made.
pub(super) async fn open(id: &str, path: &str) -> Result<File, ContainerError> {
    let failed = |source: std::io::Error| ContainerError::Log {
        id: id.to_owned(),
        path: path.to_owned(),
        source: Arc::new(source),
    };
    let target = PathBuf::from(path);
    let opened = blocking::on_path(Path::new(path), move || {
        if let Some(dir) = target.parent() {
            std::fs::create_dir_all(dir)?;
        }
        File::options().create(true).append(true).mode(0o640).open(target)
    });
    opened.await.map_err(|hung| failed(std::io::Error::other(hung)))?.map_err(failed)
}

/// Opens a new file at the log's path, after the kubelet renamed the old one.
pub async fn reopen(node: &Arc<Node>, container: &Arc<Container>) -> Result<(), ContainerError> {
    let record = container.record.get();
    if !matches!(record.state, ContainerState::Running { .. }) {
        return Err(ContainerError::WrongState {
            id: record.id.clone(),
            state: record.state.name(),
            request: "reopening the log",
        });
    }
    if record.log_path.is_empty() {
        return Ok(());
    }
    let sandbox = node.sandboxes.find("sandbox", &record.sandbox_id)?;
    let live = sandbox.live("reopening a log")?;
    let file = open(&record.id, &record.log_path).await?;
    live.machine.reopen_log(&record.id, &file).await.map_err(ContainerError::machine(&record.id))
}
