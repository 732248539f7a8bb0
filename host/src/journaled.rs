//! A record that is published only after it stands in the journal.

use std::sync::{Arc, RwLock};

use serde::Serialize;

use crate::serial::Serial;
use crate::store::{Kind, Store, StoreError};

/// Told of every change once it is durable and visible: what was, and what is now (`None`: forgotten). Called in the
/// changes' order; it must not wait.
pub type Observer<R> = Arc<dyn Fn(&Arc<R>, Option<&Arc<R>>) + Send + Sync>;

/// One object's record. Readers get the last durable version without waiting; writers queue.
pub struct Journaled<R> {
    kind: Kind,
    id: String,
    current: Arc<RwLock<Arc<R>>>,
    changed: tokio::sync::watch::Sender<()>,
    writers: Serial,
    store: Store,
    observer: Option<Observer<R>>,
}

impl<R: std::fmt::Debug> std::fmt::Debug for Journaled<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journaled").field("id", &self.id).field("current", &self.current).finish_non_exhaustive()
    }
}

impl<R: Serialize + Clone + Send + Sync + 'static> Journaled<R> {
    /// Wraps a record that stands in the journal already.
    #[must_use]
    pub fn new(store: Store, kind: Kind, id: &str, record: R) -> Self {
        Self {
            kind,
            id: id.to_owned(),
            current: Arc::new(RwLock::new(Arc::new(record))),
            changed: tokio::sync::watch::Sender::new(()),
            writers: Serial::new(),
            store,
            observer: None,
        }
    }

    /// Tells `observer` of every change from now on.
    #[must_use]
    pub fn observed(self, observer: Observer<R>) -> Self {
        Self { observer: Some(observer), ..self }
    }

    /// Writes a new object's first record.
    pub async fn create(store: Store, kind: Kind, id: &str, record: R) -> Result<Self, StoreError> {
        store.put(kind, id, &record).await?;
        Ok(Self::new(store, kind, id, record))
    }

    /// The last durable version.
    #[must_use]
    pub fn get(&self) -> Arc<R> {
        read(&self.current)
    }

    /// Changes the record: durable first, visible then. Changes are applied one after the other; when `change`
    /// refuses, nothing happens.
    pub async fn change<E, F>(&self, change: F) -> Result<Arc<R>, E>
    where
        E: From<StoreError> + Send + 'static,
        F: FnOnce(&mut R) -> Result<(), E> + Send + 'static,
    {
        let (current, store, id, kind) = (self.current.clone(), self.store.clone(), self.id.clone(), self.kind);
        let observer = self.observer.clone();
        let changed = self.writers.run(async move {
            let before = read(&current);
            let mut record = (*before).clone();
            change(&mut record)?;
            store.put(kind, &id, &record).await?;
            let record = Arc::new(record);
            *current.write().unwrap_or_else(std::sync::PoisonError::into_inner) = record.clone();
            if let Some(observer) = observer {
                observer(&before, Some(&record));
            }
            Ok::<_, E>(record)
        });
        let record = changed
            .await
            .unwrap_or_else(|| Err(E::from(StoreError::Interrupted { kind: self.kind, id: self.id.clone() })))?;
        self.changed.send_replace(());
        Ok(record)
    }

    /// Removes the record from the journal, without waiting for the disk: a daemon that is killed before finds a record of something
    /// that is being made or removed, and undoes once more what is undone already. Idempotent.
    ///
    /// # Errors
    /// When the journal is closed.
    pub fn forget(&self) -> Result<(), StoreError> {
        self.store.delete(self.kind, &self.id)?;
        if let Some(observer) = &self.observer {
            observer(&self.get(), None);
        }
        Ok(())
    }

    /// Returns once `condition` holds for the current version.
    pub async fn wait_until(&self, condition: impl Fn(&R) -> bool) -> Arc<R> {
        let mut changed = self.changed.subscribe();
        loop {
            let record = self.get();
            if condition(&record) || changed.changed().await.is_err() {
                return record;
            }
        }
    }
}

fn read<R>(current: &RwLock<Arc<R>>) -> Arc<R> {
    current.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_is_durable_before_it_is_visible() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s.redb")).unwrap();
        let record = Journaled::create(store.clone(), Kind::Sandbox, "a", 1u32).await.unwrap();
        record
            .change(|n| {
                *n += 1;
                Ok::<_, StoreError>(())
            })
            .await
            .unwrap();
        assert_eq!(*record.wait_until(|n| *n == 2).await, 2);
        assert_eq!(store.load::<u32>(Kind::Sandbox).unwrap(), [2]);
        let refused = record.change(|n| {
            *n = 9;
            Err(StoreError::Interrupted { kind: Kind::Sandbox, id: "a".into() })
        });
        assert!(refused.await.is_err());
        assert_eq!(*record.get(), 2);
    }

    #[tokio::test]
    async fn an_observer_is_told_of_what_was_done_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s.redb")).unwrap();
        let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
        let told = seen.clone();
        let observer =
            move |was: &Arc<u32>, is: Option<&Arc<u32>>| told.lock().unwrap().push((**was, is.map(|is| **is)));
        let record = Journaled::create(store, Kind::Sandbox, "a", 1u32).await.unwrap().observed(Arc::new(observer));
        let set = |value: u32| {
            record.change(move |n| {
                *n = value;
                if value == 9 { Err(StoreError::Interrupted { kind: Kind::Sandbox, id: "a".into() }) } else { Ok(()) }
            })
        };
        set(2).await.unwrap();
        set(9).await.unwrap_err();
        record.forget().unwrap();
        assert_eq!(*seen.lock().unwrap(), [(1, Some(2)), (2, None)]);
    }
}
