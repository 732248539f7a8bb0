//! One task per object runs the object's operations one after another.
//!
//! An operation that was queued runs to its end even when its caller went away (a kubelet's deadline, a closed
//! connection), so that no external step is left half taken; and no lock is held while it runs.

use std::future::Future;
use std::pin::Pin;

use tokio::sync::{mpsc, oneshot};

type Operation = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The queue in front of one object's driver task. Dropping the last clone ends the task after what was queued.
#[derive(Debug, Clone)]
pub struct Serial {
    queue: mpsc::UnboundedSender<Operation>,
}

impl Default for Serial {
    fn default() -> Self {
        Self::new()
    }
}

impl Serial {
    /// Starts the driver task.
    #[must_use]
    pub fn new() -> Self {
        let (queue, mut operations) = mpsc::unbounded_channel::<Operation>();
        tokio::spawn(async move {
            while let Some(operation) = operations.recv().await {
                operation.await;
            }
        });
        Self { queue }
    }

    /// Queues an operation and waits for its result. `None` when the operation panicked.
    pub async fn run<T, F>(&self, operation: F) -> Option<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let (answer, result) = oneshot::channel();
        // A panic in an operation must cost that operation only, not the queue behind it.
        let guarded = async move {
            if let Ok(value) = tokio::spawn(operation).await {
                let _ = answer.send(value);
            }
        };
        self.queue.send(Box::pin(guarded)).ok()?;
        result.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[tokio::test]
    async fn operations_run_in_order_and_alone() {
        let serial = Serial::new();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let all = (0..20).map(|n| {
            let seen = seen.clone();
            serial.run(async move {
                seen.lock().unwrap().push(n);
                tokio::task::yield_now().await;
                seen.lock().unwrap().push(n);
            })
        });
        futures_util::future::join_all(all).await;
        let expected: Vec<i32> = (0..20).flat_map(|n| [n, n]).collect();
        assert_eq!(*seen.lock().unwrap(), expected);
    }

    #[tokio::test]
    async fn an_abandoned_operation_still_ends() {
        let serial = Serial::new();
        let (done, waited) = oneshot::channel();
        {
            let future = serial.run(async move {
                tokio::task::yield_now().await;
                let _ = done.send(());
            });
            let mut future = Box::pin(future);
            let _ = futures_util::poll!(&mut future);
        }
        waited.await.unwrap();
    }

    #[tokio::test]
    async fn a_panic_costs_one_operation() {
        let serial = Serial::new();
        assert_eq!(serial.run(async { panic!("as the test wants") }).await, None::<()>);
        assert_eq!(serial.run(async { 7 }).await, Some(7));
    }
}
