//! A question that may never be answered, asked once at a time.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::node::now_ns;

/// What was answered, and when.
#[derive(Debug)]
pub struct Answer<T> {
    /// Nanoseconds since 1970, by the host's clock.
    pub at: i64,
    /// The answer.
    pub value: Arc<T>,
    came: Instant,
}

impl<T> Clone for Answer<T> {
    fn clone(&self) -> Self {
        Self { at: self.at, value: self.value.clone(), came: self.came }
    }
}

/// Asks one source, and keeps its last answer.
#[derive(Debug)]
pub struct Probe<T> {
    state: Mutex<State<T>>,
    /// Grows with every question that has ended.
    ended: watch::Sender<u64>,
}

#[derive(Debug)]
struct State<T> {
    last: Option<Answer<T>>,
    asked: Option<Instant>,
    trouble: Option<String>,
}

impl<T> Default for Probe<T> {
    fn default() -> Self {
        let state = State { last: None, asked: None, trouble: None };
        Self { state: Mutex::new(state), ended: watch::Sender::new(0) }
    }
}

impl<T: Send + Sync + 'static> Probe<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks `question`, unless one is being asked, and returns when that has ended, or `patience` after it began. It
    /// goes on by itself then: its answer is there for the next caller.
    pub async fn ask<F>(self: &Arc<Self>, patience: Duration, question: F)
    where
        F: Future<Output = Result<T, String>> + Send + 'static,
    {
        let mut ended = self.ended.subscribe();
        let before = *ended.borrow_and_update();
        let asked = {
            let mut state = self.lock();
            match state.asked {
                Some(asked) => asked,
                None => {
                    let now = Instant::now();
                    state.asked = Some(now);
                    tokio::spawn(self.clone().keep(question));
                    now
                }
            }
        };
        let deadline = tokio::time::Instant::from_std(asked + patience);
        if tokio::time::timeout_at(deadline, ended.wait_for(|count| *count > before)).await.is_err() {
            let mut state = self.lock();
            if state.asked == Some(asked) {
                state.trouble = Some(format!("no answer within {patience:?}"));
            }
        }
    }

    async fn keep<F>(self: Arc<Self>, question: F)
    where
        F: Future<Output = Result<T, String>> + Send + 'static,
    {
        // On a task of its own, so that a panic ends the question like an error.
        let result = tokio::spawn(question).await.unwrap_or_else(|error| Err(error.to_string()));
        {
            let mut state = self.lock();
            state.asked = None;
            match result {
                Ok(value) => {
                    state.last = Some(Answer { at: now_ns(), value: Arc::new(value), came: Instant::now() });
                    state.trouble = None;
                }
                Err(why) => state.trouble = Some(why),
            }
        }
        self.ended.send_modify(|count| *count += 1);
    }

    /// The last answer, unless it is older than `limit`.
    #[must_use]
    pub fn last(&self, limit: Duration) -> Option<Answer<T>> {
        self.lock().last.as_ref().filter(|answer| answer.came.elapsed() <= limit).cloned()
    }

    /// Why the last question has no answer.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.lock().trouble.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    #[tokio::test]
    async fn a_source_that_hangs_is_asked_once_and_leaves_its_last_answer() {
        let probe = Arc::new(Probe::<u32>::default());
        probe.ask(LONG, async { Ok(7) }).await;
        assert!(probe.trouble().is_none());
        let (release, released) = tokio::sync::oneshot::channel::<()>();
        let hanging = async move {
            let _ = released.await;
            Ok(8)
        };
        probe.ask(Duration::from_millis(20), hanging).await;
        assert_eq!(*probe.last(LONG).unwrap().value, 7);
        assert!(probe.trouble().unwrap().contains("no answer"));
        // Nobody waits for it again, and nothing more is asked.
        probe.ask(Duration::from_millis(20), async { panic!("asked twice") }).await;
        assert_eq!(*probe.last(LONG).unwrap().value, 7);
        let mut ended = probe.ended.subscribe();
        let before = *ended.borrow_and_update();
        release.send(()).unwrap();
        ended.wait_for(|count| *count > before).await.unwrap();
        assert_eq!((*probe.last(LONG).unwrap().value, probe.trouble()), (8, None));
        assert!(probe.last(Duration::ZERO).is_none());
    }

    #[tokio::test]
    async fn errors_and_panics_are_trouble() {
        let probe = Arc::new(Probe::<u32>::default());
        probe.ask(LONG, async { Err("gone".to_owned()) }).await;
        assert_eq!(probe.trouble().as_deref(), Some("gone"));
        probe.ask(LONG, async { panic!("as the test wants") }).await;
        assert!(probe.trouble().is_some() && probe.last(LONG).is_none());
    }

    #[tokio::test]
    async fn callers_share_one_question() {
        let probe = Arc::new(Probe::<u32>::default());
        let (release, released) = tokio::sync::oneshot::channel::<()>();
        let first = probe.ask(LONG, async move {
            let _ = released.await;
            Ok(1)
        });
        let second = async {
            probe.ask(LONG, async { Ok(2) }).await;
        };
        let third = async {
            release.send(()).unwrap();
        };
        tokio::join!(first, second, third);
        assert_eq!(*probe.last(LONG).unwrap().value, 1);
    }
}
