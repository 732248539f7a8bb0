//! Ending connections on which nothing happens.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Cancels `gone` after `limit` without a sign of activity; returns when it is cancelled.
pub(super) async fn watch(activity: Arc<Notify>, limit: Duration, gone: CancellationToken) {
    loop {
        tokio::select! {
            () = activity.notified() => {}
            () = gone.cancelled() => return,
            () = tokio::time::sleep(limit) => {
                tracing::info!(seconds = limit.as_secs(), "a streaming client was silent for too long");
                return gone.cancel();
            }
        }
    }
}
