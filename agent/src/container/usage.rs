//! How much a writable layer takes, counted aside: a walk over a million files must hold no report up.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::layers::Layer;
use crate::reaper::now_ns;

/// A layer is counted again after this many times the duration of its last count.
const REST: u32 = 10;

/// What a layer took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// On its file system.
    pub bytes: u64,
    /// Files, directories and all else.
    pub inodes: u64,
    /// When that was counted, in nanoseconds since 1970.
    pub at_ns: i64,
}

/// Counts one layer, once at a time.
#[derive(Debug, Default)]
pub struct UsageCounter {
    state: Mutex<State>,
    counted: Condvar,
}

#[derive(Debug, Default)]
struct State {
    last: Option<Usage>,
    counting: bool,
    not_before: Option<Instant>,
}

impl UsageCounter {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a count, unless one runs or the last one is too recent for what it cost.
    pub fn start(self: &Arc<Self>, layer: Layer) {
        {
            let mut state = self.lock();
            if state.counting || state.not_before.is_some_and(|at| Instant::now() < at) {
                return;
            }
            state.counting = true;
        }
        let counter = Arc::clone(self);
        let spawned = thread::Builder::new().name("layer-usage".into()).spawn(move || {
            let started = Instant::now();
            let (bytes, inodes) = layer.usage();
            let mut state = counter.lock();
            state.last = Some(Usage { bytes, inodes, at_ns: now_ns() });
            state.counting = false;
            state.not_before = Some(Instant::now() + started.elapsed() * REST);
            counter.counted.notify_all();
        });
        if spawned.is_err() {
            self.lock().counting = false;
        }
    }

    /// The result of the count that runs, if it ends before `deadline`; else the last one. Blocking.
    #[must_use]
    pub fn result(&self, deadline: Instant) -> Option<Usage> {
        let mut state = self.lock();
        while state.counting {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                break;
            }
            state = self.counted.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_counted_and_the_last_count_kept() {
        let directory = tempfile::tempdir().unwrap();
        let layer = Layer::create(directory.path(), "c").unwrap();
        std::fs::write(directory.path().join("c/upper/file"), vec![1; 8192]).unwrap();
        let counter = Arc::new(UsageCounter::default());
        assert_eq!(counter.result(Instant::now()), None);
        counter.start(layer);
        let usage = counter.result(Instant::now() + Duration::from_secs(60)).unwrap();
        assert_eq!(usage.inodes, 1);
        assert!(usage.bytes >= 8192 && usage.at_ns > 0);
        assert_eq!(counter.result(Instant::now()), Some(usage));
    }
}
