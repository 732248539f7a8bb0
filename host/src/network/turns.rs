//! One operation at a time per pod.

use std::collections::HashMap;
use std::sync::{Arc, Mutex as StdMutex, PoisonError, Weak};

use tokio::sync::{Mutex, OwnedMutexGuard};

/// Locks by id; those that nobody holds or awaits are forgotten.
#[derive(Debug, Default)]
pub(super) struct Turns {
    locks: StdMutex<HashMap<String, Weak<Mutex<()>>>>,
}

impl Turns {
    /// Waits until no other operation on `id` runs.
    pub(super) async fn take(&self, id: &str) -> OwnedMutexGuard<()> {
        let lock = self.lock(id);
        lock.lock_owned().await
    }

    fn lock(&self, id: &str) -> Arc<Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(id).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::default();
        locks.insert(id.to_owned(), Arc::downgrade(&lock));
        lock
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    #[tokio::test]
    async fn a_second_operation_waits_and_others_do_not() {
        let turns = Turns::default();
        let first = turns.take("a").await;
        drop(turns.take("b").await);
        let mut second = pin!(turns.take("a"));
        let mut context = Context::from_waker(Waker::noop());
        assert!(second.as_mut().poll(&mut context).is_pending());
        drop(first);
        drop(second.await);
        drop(turns.take("c").await);
        assert_eq!(turns.locks.lock().unwrap_or_else(PoisonError::into_inner).len(), 1);
    }
}
