//! Blocking work that goes on after whoever began it is gone.

use std::sync::{Arc, Mutex, PoisonError};

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

/// Blocking work with an owner; when that is dropped, the work goes to the background.
#[derive(Debug)]
pub(crate) struct Blocking<T> {
    task: Option<JoinHandle<T>>,
    background: Arc<Background<T>>,
}

impl<T: Send + 'static> Blocking<T> {
    /// Starts `work` on a thread that may block.
    pub fn start(background: &Arc<Background<T>>, work: impl FnOnce() -> T + Send + 'static) -> Self {
        Self { task: Some(tokio::task::spawn_blocking(work)), background: background.clone() }
    }

    /// What became of it; the reason if it died.
    pub async fn finish(mut self) -> Result<T, String> {
        let Some(task) = &mut self.task else { return Err("it was awaited twice".into()) };
        let result = task.await.map_err(|error| error.to_string());
        self.task = None;
        result
    }
}

impl<T> Drop for Blocking<T> {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            // Helps only before it has begun.
            task.abort();
            self.background.push(task);
        }
    }
}
