//! The one thread that writes: what waits when it gets to it is made durable by one commit, so that ten pods that are made at
//! the same time wait for the disk once and not ten times.

use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use redb::Database;
use tokio::sync::oneshot;

use super::Kind;

/// Most changes of one commit.
const BATCH: usize = 256;

type Outcome = Result<(), Arc<redb::Error>>;

/// A record to be put in its place, or to be removed.
struct Change {
    kind: Kind,
    id: String,
    bytes: Option<Vec<u8>>,
    done: oneshot::Sender<Outcome>,
}

/// The queue in front of the writing thread, which ends with this.
pub(super) struct Writer {
    queue: Option<mpsc::Sender<Change>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

impl Writer {
    /// Starts the thread.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub(super) fn start(database: Arc<Database>) -> std::io::Result<Self> {
        let (queue, changes) = mpsc::channel();
        let thread = std::thread::Builder::new().name("journal".into()).spawn(move || run(&database, &changes))?;
        Ok(Self { queue: Some(queue), thread: Mutex::new(Some(thread)) })
    }

    /// Puts a record in its place; it stands when this returns. Changes are made in the order of the calls. `None` when the thread
    /// is gone.
    pub(super) async fn write(&self, kind: Kind, id: &str, bytes: Vec<u8>) -> Option<Outcome> {
        self.queue(kind, id, Some(bytes))?.await.ok()
    }

    /// Removes a record in its turn, and does not wait for it. `None` when the thread is gone.
    pub(super) fn delete(&self, kind: Kind, id: &str) -> Option<()> {
        self.queue(kind, id, None).map(drop)
    }

    fn queue(&self, kind: Kind, id: &str, bytes: Option<Vec<u8>>) -> Option<oneshot::Receiver<Outcome>> {
        let (done, outcome) = oneshot::channel();
        self.queue.as_ref()?.send(Change { kind, id: id.to_owned(), bytes, done }).ok()?;
        Some(outcome)
    }
}

impl Drop for Writer {
    /// Returns when all that was queued is written and the database is closed.
    fn drop(&mut self) {
        self.queue = None;
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        // A thread that panicked has told so.
        let _ = thread.map(JoinHandle::join);
    }
}

fn run(database: &Database, changes: &mpsc::Receiver<Change>) {
    while let Ok(first) = changes.recv() {
        let batch: Vec<Change> = std::iter::once(first).chain(changes.try_iter().take(BATCH - 1)).collect();
        let outcome = commit(database, &batch).map_err(Arc::new);
        for Change { kind, id, done, .. } in batch {
            // Nobody waits for a removal, and whoever waited may have gone.
            if let Err(Err(error)) = done.send(outcome.clone()) {
                tracing::error!(?kind, id, "cannot write to the state database: {error}");
            }
        }
    }
}

fn commit(database: &Database, batch: &[Change]) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    for Change { kind, id, bytes, .. } in batch {
        let mut table = transaction.open_table(kind.table())?;
        match bytes {
            Some(bytes) => table.insert(id.as_str(), bytes.as_slice())?,
            None => table.remove(id.as_str())?,
        };
    }
    transaction.commit()?;
    Ok(())
}
