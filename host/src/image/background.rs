//! Blocking work that goes on after whoever began it is gone.

use std::sync::{Mutex, PoisonError};

use tokio::task::JoinHandle;

/// Tasks that nobody awaits at the moment.
#[derive(Debug)]
pub(crate) struct Background<T>(Mutex<Vec<JoinHandle<T>>>);

impl<T> Default for Background<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Background<T> {
    /// Adds a task.
    pub fn push(&self, task: JoinHandle<T>) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.retain(|task| !task.is_finished());
        tasks.push(task);
    }

    /// Waits for the tasks there are now.
    pub async fn wait(&self) {
        let tasks = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        for task in tasks {
            // Nobody wants its result any more, however it went.
            let _ = task.await;
        }
    }
}
