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
mod writer;

use writer::Writer;

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
    Write { kind: Kind, id: String, source: Arc<redb::Error> },
    #[error("cannot read the {kind:?} records of the state database")]
    Read { kind: Kind, source: Box<redb::Error> },
    #[error("the record of {kind:?} {id} cannot be understood; was it written by a newer version?")]
    Format { kind: Kind, id: String, source: serde_json::Error },
    #[error("writing the record of {kind:?} {id} was interrupted")]
    Interrupted { kind: Kind, id: String },
    #[error("the writing thread of the state database cannot be started")]
    Thread(#[source] std::io::Error),
}

/// Handle to the journal; cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    database: Arc<Database>,
    writer: Arc<Writer>,
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
        let database = Arc::new(database);
        let writer = Writer::start(database.clone()).map_err(StoreError::Thread)?;
        Ok(Self { database, writer: Arc::new(writer) })
    }

    /// Writes a record durably; it stands when this returns.
    pub async fn put<T: Serialize>(&self, kind: Kind, id: &str, record: &T) -> Result<(), StoreError> {
        let bytes =
            serde_json::to_vec(record).map_err(|source| StoreError::Format { kind, id: id.to_owned(), source })?;
        match self.writer.write(kind, id, bytes).await {
            Some(outcome) => outcome.map_err(|source| StoreError::Write { kind, id: id.to_owned(), source }),
            None => Err(StoreError::Interrupted { kind, id: id.to_owned() }),
        }
    }

    /// Removes a record soon: after what was written before, and at the latest before the journal is closed. Idempotent.
    ///
    /// # Errors
    /// When the journal is closed. What the disk says later is logged.
    pub fn delete(&self, kind: Kind, id: &str) -> Result<(), StoreError> {
        self.writer.delete(kind, id).ok_or_else(|| StoreError::Interrupted { kind, id: id.to_owned() })
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
        store.delete(Kind::Sandbox, "b").unwrap();
        drop(store);
        let store = Store::open(&path).unwrap();
        assert_eq!(store.load::<String>(Kind::Sandbox).unwrap(), ["one"]);
        assert_eq!(store.load::<String>(Kind::Container).unwrap(), ["three"]);
    }

    #[tokio::test]
    async fn changes_of_many_callers_stand_in_the_order_of_the_calls() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let store = Store::open(&path).unwrap();
        let names: Vec<String> = (0..1000).map(|number| format!("{:03}", number / 2)).collect();
        let mut changes = Vec::new();
        for (number, name) in names.iter().enumerate() {
            let (store, last) = (&store, number % 2 == 1);
            changes.push(async move {
                match (last, number % 3) {
                    (true, 0) => store.delete(Kind::Sandbox, name),
                    _ => store.put(Kind::Sandbox, name, &number).await,
                }
            });
        }
        futures_util::future::try_join_all(changes).await.unwrap();
        drop(store);
        let left = Store::open(&path).unwrap().load::<usize>(Kind::Sandbox).unwrap();
        let expected: Vec<usize> = (0..1000).filter(|number| number % 2 == 1 && number % 3 != 0).collect();
        assert_eq!(left, expected);
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
