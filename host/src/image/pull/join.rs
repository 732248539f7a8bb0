//! Work that several callers want is done once.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};

type Work<T> = Shared<BoxFuture<'static, T>>;

/// Work under way, by what it makes. It goes on as long as one caller waits, and is cancelled with the last one.
pub(super) struct Joined<K, T: Clone> {
    under_way: Arc<Mutex<HashMap<K, WeakShared<BoxFuture<'static, T>>>>>,
}

impl<K: Eq + Hash + Clone + Send + 'static, T: Clone + Send + Sync + 'static> Joined<K, T> {
    pub fn new() -> Self {
        Self { under_way: Arc::default() }
    }

    /// The work for `key`, begun with `begin` unless it is under way; true if it was.
    pub fn join(&self, key: K, begin: impl FnOnce() -> BoxFuture<'static, T>) -> (Work<T>, bool) {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(work) = under_way.get(&key).and_then(WeakShared::upgrade) {
            return (work, true);
        }
        under_way.retain(|_, work| work.upgrade().is_some());
        let (all, done) = (self.under_way.clone(), key.clone());
        let work = begin();
        let work = async move {
            let result = work.await;
            // Whoever comes from now on begins anew.
            all.lock().unwrap_or_else(PoisonError::into_inner).remove(&done);
            result
        };
        let work = work.boxed().shared();
        if let Some(weak) = work.downgrade() {
            under_way.insert(key, weak);
        }
        (work, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn one_run_for_all_who_wait_and_a_new_one_later() {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let joined = Joined::new();
        let begin = || async { RUNS.fetch_add(1, Ordering::SeqCst) }.boxed();
        let (first, was) = joined.join("k", begin);
        assert!(!was);
        let (second, was) = joined.join("k", begin);
        assert!(was);
        assert_eq!(futures_util::join!(first, second), (0, 0));
        let (third, was) = joined.join("k", begin);
        assert!(!was);
        assert_eq!(third.await, 1);
        let (dropped, _) = joined.join("k", begin);
        drop(dropped);
        assert!(!joined.join("k", begin).1);
    }
}
