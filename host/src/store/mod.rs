//! The durable journal: what the daemon must know again after `kill -9`.
//!
//! One record per sandbox and container in a redb database. A record is written *before* the external step that it
//! announces; every name a step uses follows from the record, so that the next start can finish or undo it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub mod proto_text;

const SANDBOXES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("sandboxes-1");
const CONTAINERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("containers-1");

/// Which table a record stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A pod sandbox.
    Sandbox,
    /// A container.
    Container,
}

impl Kind {
    fn table(self) -> TableDefinition<'static, &'static str, &'static [u8]> {
        match self {
            Self::Sandbox => SANDBOXES,
            Self::Container => CONTAINERS,
        }
    }
}

/// Why the journal could not be read or written.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum StoreError {
    #[error("cannot open the state database {}", path.display())]
    Open { path: PathBuf, source: Box<redb::Error> },
    #[error("cannot write the record of {kind:?} {id} to the state database")]
    Write { kind: Kind, id: String, source: Box<redb::Error> },
    #[error("cannot read the {kind:?} records of the state database")]
    Read { kind: Kind, source: Box<redb::Error> },
    #[error("the record of {kind:?} {id} cannot be understood; was it written by a newer version?")]
    Format { kind: Kind, id: String, source: serde_json::Error },
    #[error("writing the record of {kind:?} {id} was interrupted")]
    Interrupted { kind: Kind, id: String },
    #[error("the writing task of the state database ended: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// Handle to the journal; cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    database: Arc<Database>,
}

impl Store {
    /// Opens or creates the database at `path`.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let fail = |source: redb::Error| StoreError::Open { path: path.to_owned(), source: Box::new(source) };
        let database = Database::create(path).map_err(|e| fail(e.into()))?;
        let transaction = database.begin_write().map_err(|e| fail(e.into()))?;
        for kind in [Kind::Sandbox, Kind::Container] {
            transaction.open_table(kind.table()).map_err(|e| fail(e.into()))?;
        }
        transaction.commit().map_err(|e| fail(e.into()))?;
        Ok(Self { database: Arc::new(database) })
    }

    /// Writes a record durably; it stands when this returns.
    pub async fn put<T: Serialize>(&self, kind: Kind, id: &str, record: &T) -> Result<(), StoreError> {
        let bytes =
            serde_json::to_vec(record).map_err(|source| StoreError::Format { kind, id: id.to_owned(), source })?;
        self.write(kind, id.to_owned(), Some(bytes)).await
    }

    /// Removes a record durably. Idempotent.
    pub async fn delete(&self, kind: Kind, id: &str) -> Result<(), StoreError> {
        self.write(kind, id.to_owned(), None).await
    }

    async fn write(&self, kind: Kind, id: String, bytes: Option<Vec<u8>>) -> Result<(), StoreError> {
        let database = self.database.clone();
        tokio::task::spawn_blocking(move || {
            write_now(&database, kind, &id, bytes.as_deref()).map_err(|source| StoreError::Write {
                kind,
                id,
                source: Box::new(source),
            })
        })
        .await?
    }

    /// Every record of a kind; used once, at start.
    pub fn load<T: DeserializeOwned>(&self, kind: Kind) -> Result<Vec<T>, StoreError> {
        let fail = |source: redb::Error| StoreError::Read { kind, source: Box::new(source) };
        let transaction = self.database.begin_read().map_err(|e| fail(e.into()))?;
        let table = transaction.open_table(kind.table()).map_err(|e| fail(e.into()))?;
        let mut records = Vec::new();
        for entry in table.iter().map_err(|e| fail(e.into()))? {
            let (id, bytes) = entry.map_err(|e| fail(e.into()))?;
            let record = serde_json::from_slice(bytes.value()).map_err(|source| StoreError::Format {
                kind,
                id: id.value().to_owned(),
                source,
            })?;
            records.push(record);
        }
        Ok(records)
    }
}

fn write_now(database: &Database, kind: Kind, id: &str, bytes: Option<&[u8]>) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(kind.table())?;
        match bytes {
            Some(bytes) => table.insert(id, bytes)?,
            None => table.remove(id)?,
        };
    }
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn records_stand_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let store = Store::open(&path).unwrap();
        store.put(Kind::Sandbox, "a", &"one").await.unwrap();
        store.put(Kind::Sandbox, "b", &"two").await.unwrap();
        store.put(Kind::Container, "a", &"three").await.unwrap();
        store.delete(Kind::Sandbox, "b").await.unwrap();
        drop(store);
        let store = Store::open(&path).unwrap();
        assert_eq!(store.load::<String>(Kind::Sandbox).unwrap(), ["one"]);
        assert_eq!(store.load::<String>(Kind::Container).unwrap(), ["three"]);
    }

    #[tokio::test]
    async fn a_record_of_another_shape_names_its_id() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state.redb")).unwrap();
        store.put(Kind::Container, "c0ffee", &"text").await.unwrap();
        let text = store.load::<Vec<u32>>(Kind::Container).unwrap_err().to_string();
        assert!(text.contains("c0ffee"), "{text}");
    }
}
