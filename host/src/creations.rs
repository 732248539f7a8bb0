//! Creations by name: a kubelet's retry joins the one that runs instead of starting another, and finds what one made whose
//! callers had all gone (a deadline, a closed connection).

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};

type Creation<E> = Shared<BoxFuture<'static, Result<String, E>>>;
type Shelf<E> = Arc<Mutex<Table<E>>>;

#[derive(Debug)]
struct Table<E: Clone> {
    running: HashMap<String, Creation<E>>,
    /// Ids of what was made and told to nobody yet, by name.
    untold: HashMap<String, String>,
}

/// What is being made, by the name that makes two requests the same.
#[derive(Debug)]
pub struct Creations<E: Clone> {
    table: Shelf<E>,
}

impl<E: Clone> Default for Creations<E> {
    fn default() -> Self {
        Self { table: Arc::new(Mutex::new(Table { running: HashMap::new(), untold: HashMap::new() })) }
    }
}

impl<E: Clone + Send + Sync + 'static> Creations<E> {
    /// Joins the creation of `key`, or starts it with `create`, on a task of its own: it ends in order even when every
    /// caller went away, and the next one gets its id if `exists` still holds for that. Should it panic, the answer is
    /// `interrupted`. `exists` must not wait.
    pub async fn join<F>(
        &self,
        key: &str,
        interrupted: E,
        exists: impl Fn(&str) -> bool,
        create: impl FnOnce() -> F,
    ) -> Result<String, E>
    where
        F: Future<Output = Result<String, E>> + Send + 'static,
    {
        let creation = {
            let mut table = lock(&self.table);
            table.untold.retain(|_, id| exists(id));
            if let Some(id) = table.untold.remove(key) {
                return Ok(id);
            }
            match table.running.get(key) {
                Some(creation) => creation.clone(),
                None => {
                    let creation = self.start(key, interrupted, create());
                    table.running.insert(key.to_owned(), creation.clone());
                    creation
                }
            }
        };
        let id = creation.await?;
        // Told now; a caller that went away while it waited never comes here.
        lock(&self.table).untold.remove(key);
        Ok(id)
    }

    fn start<F>(&self, key: &str, interrupted: E, create: F) -> Creation<E>
    where
        F: Future<Output = Result<String, E>> + Send + 'static,
    {
        let (table, key) = (self.table.clone(), key.to_owned());
        let task = tokio::spawn(async move {
            // On a task of its own, so that a panic in it does not leave its name behind.
            let result = tokio::spawn(create).await;
            let mut table = lock(&table);
            table.running.remove(&key);
            if let Ok(Ok(id)) = &result {
                table.untold.insert(key, id.clone());
            }
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

fn lock<E: Clone>(table: &Shelf<E>) -> MutexGuard<'_, Table<E>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
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
        let join = |create| creations.join("x", "no", |_| true, create);
        let (a, b) = tokio::join!(join(create), join(create));
        assert_eq!((a.unwrap().as_str(), b.unwrap().as_str()), ("0", "0"));
        assert_eq!(join(create).await.unwrap(), "1");
        assert!(lock(&creations.table).untold.is_empty());
        let panicked = creations.join("x", "interrupted", |_| true, || async { panic!("as the test wants") });
        assert_eq!(panicked.await, Err("interrupted"));
        assert!(lock(&creations.table).running.is_empty());
    }

    #[tokio::test]
    async fn what_was_made_for_nobody_is_found_once() {
        let creations = Creations::<&'static str>::default();
        let made = Arc::new(AtomicU32::new(0));
        let create = || {
            let made = made.clone();
            async move { Ok(made.fetch_add(1, Ordering::SeqCst).to_string()) }
        };
        for (still_there, expected) in [(true, ["0", "1"]), (false, ["3", "4"])] {
            // Its caller goes away at once.
            let _ = futures_util::poll!(Box::pin(creations.join("x", "no", |_| true, create)).as_mut());
            while !lock(&creations.table).running.is_empty() {
                tokio::task::yield_now().await;
            }
            for id in expected {
                assert_eq!(creations.join("x", "no", |_| still_there, create).await.unwrap(), id);
            }
        }
    }
}
