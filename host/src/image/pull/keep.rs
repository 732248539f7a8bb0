//! Layers that a failed pull did get, kept a while for the next attempt: the kubelet makes one within minutes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Puller;
use crate::image::store::Lease;

/// What failed pulls left, with the time of each failure.
#[derive(Debug, Default)]
pub(super) struct Kept(Mutex<Vec<(Instant, Vec<Arc<Lease>>)>>);

impl Kept {
    fn add(&self, leases: Vec<Arc<Lease>>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), leases));
    }

    /// Lets go of what is older than `age`.
    fn prune(&self, age: Duration) {
        let old: Vec<_> = {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extract_if(.., |(since, _)| since.elapsed() >= age).collect()
        };
        drop(old);
    }
}

impl Puller {
    /// Keeps layers for the configured time.
    pub(super) fn keep(self: &Arc<Self>, leases: Vec<Arc<Lease>>) {
        let time = Duration::from_secs(self.config.keep_layers_s);
        if leases.is_empty() || time.is_zero() {
            return;
        }
        self.kept.add(leases);
        let puller = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            if let Some(puller) = puller.upgrade() {
                puller.kept.prune(time);
            }
        });
    }

    /// Lets go of all kept layers: their room is needed.
    pub(super) fn keep_nothing(&self) {
        self.kept.prune(Duration::ZERO);
    }
}
