//! How far a pull is, for everyone who waits for it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::watch;

/// How far a pull is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Of the image; 0 until the manifest is there.
    pub layers: usize,
    /// In the store.
    pub layers_done: usize,
    /// Compressed, of all layers.
    pub bytes: u64,
    /// Received or not needed, as the store has the layer.
    pub bytes_done: u64,
}

/// The writing end of one pull's progress.
#[derive(Debug)]
pub(super) struct Meter(watch::Sender<Progress>);

impl Meter {
    /// Later values.
    pub fn watch(&self) -> watch::Receiver<Progress> {
        self.0.subscribe()
    }

    /// The manifest is known.
    pub fn begin(&self, layers: usize, bytes: u64) {
        self.0.send_modify(|p| *p = Progress { layers, bytes, ..Progress::default() });
    }

    /// Bytes came in.
    pub fn received(&self, bytes: u64) {
        self.0.send_modify(|p| p.bytes_done += bytes);
    }

    /// Bytes that came in were of no use.
    pub fn lost(&self, bytes: u64) {
        self.0.send_modify(|p| p.bytes_done = p.bytes_done.saturating_sub(bytes));
    }

    /// A layer is complete; `bytes` of it were not counted yet.
    pub fn layer_done(&self, bytes: u64) {
        self.0.send_modify(|p| {
            p.layers_done += 1;
            p.bytes_done += bytes;
        });
    }
}

/// The meters of pulls under way.
#[derive(Debug)]
pub(super) struct Meters<K>(Mutex<HashMap<K, Weak<Meter>>>);

impl<K> Default for Meters<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash + Clone> Meters<K> {
    /// The meter of a pull, new or shared.
    pub fn of(&self, key: &K) -> Arc<Meter> {
        let mut meters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(meter) = meters.get(key).and_then(Weak::upgrade) {
            return meter;
        }
        meters.retain(|_, meter| meter.strong_count() > 0);
        let meter = Arc::new(Meter(watch::Sender::default()));
        meters.insert(key.clone(), Arc::downgrade(&meter));
        meter
    }
}
