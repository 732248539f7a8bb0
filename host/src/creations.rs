//! Creations in flight, by name: a kubelet's retry joins the one that runs instead of starting another.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};

type Creation<E> = Shared<BoxFuture<'static, Result<String, E>>>;
type Running<E> = Arc<Mutex<HashMap<String, Creation<E>>>>;

/// What is being made, by the name that makes two requests the same.
#[derive(Debug)]
pub struct Creations<E: Clone> {
    running: Running<E>,
}

impl<E: Clone> Default for Creations<E> {
    fn default() -> Self {
        Self { running: Arc::default() }
    }
}

impl<E: Clone + Send + Sync + 'static> Creations<E> {
    /// Joins the creation of `key`, or starts it with `create`, on a task of its own: it ends in order even when every
    /// caller went away. Should it panic, the answer is `interrupted`.
    pub async fn join<F>(&self, key: &str, interrupted: E, create: impl FnOnce() -> F) -> Result<String, E>
    where
        F: Future<Output = Result<String, E>> + Send + 'static,
    {
        let creation = {
            let mut running = lock(&self.running);
            match running.get(key) {
                Some(creation) => creation.clone(),
                None => {
                    let creation = self.start(key, interrupted, create());
                    running.insert(key.to_owned(), creation.clone());
                    creation
                }
            }
        };
        creation.await
    }

    fn start<F>(&self, key: &str, interrupted: E, create: F) -> Creation<E>
    where
        F: Future<Output = Result<String, E>> + Send + 'static,
    {
        let (running, key) = (self.running.clone(), key.to_owned());
        let task = tokio::spawn(async move {
            // On a task of its own, so that a panic in it does not leave its name behind.
            let result = tokio::spawn(create).await;
            lock(&running).remove(&key);
            result
        });
        async move {
            match task.await {
                Ok(Ok(result)) => result,
                _ => Err(interrupted),
            }
        }
        .boxed()
        .shared()
    }
}

fn lock<E: Clone>(running: &Running<E>) -> MutexGuard<'_, HashMap<String, Creation<E>>> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn retries_join_and_nothing_stale_is_kept() {
        let creations = Creations::<&'static str>::default();
        let made = Arc::new(AtomicU32::new(0));
        let create = || {
            let made = made.clone();
            async move {
                tokio::task::yield_now().await;
                Ok(made.fetch_add(1, Ordering::SeqCst).to_string())
            }
        };
        let (a, b) = tokio::join!(creations.join("x", "no", create), creations.join("x", "no", create));
        assert_eq!((a.unwrap().as_str(), b.unwrap().as_str()), ("0", "0"));
        assert_eq!(creations.join("x", "no", create).await.unwrap(), "1");
        // A caller that goes away leaves nothing either.
        let abandoned = creations.join("x", "no", create);
        let _ = futures_util::poll!(Box::pin(abandoned).as_mut());
        while !lock(&creations.running).is_empty() {
            tokio::task::yield_now().await;
        }
        let panicked = creations.join("x", "interrupted", || async { panic!("as the test wants") });
        assert_eq!(panicked.await, Err("interrupted"));
        assert!(lock(&creations.running).is_empty());
    }
}
