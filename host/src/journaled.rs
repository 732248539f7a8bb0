//! A record that is published only after it stands in the journal.

use std::sync::{Arc, RwLock};

use serde::Serialize;

use crate::serial::Serial;
use crate::store::{Kind, Store, StoreError};

/// One object's record. Readers get the last durable version without waiting; writers queue.
#[derive(Debug)]
pub struct Journaled<R> {
    kind: Kind,
    id: String,
    current: Arc<RwLock<Arc<R>>>,
    changed: tokio::sync::watch::Sender<()>,
    writers: Serial,
    store: Store,
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
        }
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
        let changed = self.writers.run(async move {
            let mut record = (*read(&current)).clone();
            change(&mut record)?;
            store.put(kind, &id, &record).await?;
            let record = Arc::new(record);
            *current.write().unwrap_or_else(std::sync::PoisonError::into_inner) = record.clone();
            Ok::<_, E>(record)
        });
        let record = changed
            .await
            .unwrap_or_else(|| Err(E::from(StoreError::Interrupted { kind: self.kind, id: self.id.clone() })))?;
        self.changed.send_replace(());
        Ok(record)
    }

    /// Removes the record from the journal. Idempotent.
    pub async fn forget(&self) -> Result<(), StoreError> {
        self.store.delete(self.kind, &self.id).await
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
}
