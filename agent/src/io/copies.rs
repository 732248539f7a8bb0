//! Copies of a process's output for secondary connections.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use super::Frame;

/// Frames that a secondary connection may lag behind before the process waits for it.
const BACKLOG: usize = 64;
/// How long the process waits for one that takes nothing; it gets no more then.
const GRACE: Duration = Duration::from_secs(10);

/// Those that get a copy.
#[derive(Debug, Default)]
pub(super) struct Copies(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    senders: Vec<mpsc::Sender<Frame>>,
    ended: bool,
}

impl Copies {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frames from now on; the end comes at [`Self::end`], or early to one that is too slow.
    pub(super) fn subscribe(&self) -> mpsc::Receiver<Frame> {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let mut state = self.lock();
        if !state.ended {
            state.senders.push(sender);
        }
        receiver
    }

    /// Hands a frame to all.
    pub(super) async fn send(&self, frame: &Frame) {
        let senders = self.lock().senders.clone();
        for sender in senders {
            if sender.send_timeout(Frame::clone(frame), GRACE).await.is_err() {
                self.lock().senders.retain(|other| !other.same_channel(&sender));
            }
        }
    }

    /// Nothing follows.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        state.senders.clear();
    }

    /// See [`Self::end`].
    pub(super) fn have_ended(&self) -> bool {
        self.lock().ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn copies_wait_for_their_readers_and_end() {
        let copies = Copies::default();
        let mut receiver = copies.subscribe();
        let reading = async {
            let mut count = 0;
            while receiver.recv().await.is_some() {
                count += 1;
            }
            count
        };
        let sending = async {
            for _ in 0..3 * BACKLOG {
                copies.send(&Frame::from([0u8])).await;
            }
            copies.end();
        };
        assert_eq!(tokio::join!(reading, sending).0, 3 * BACKLOG);
        assert!(copies.have_ended() && copies.subscribe().recv().await.is_none());
    }
}
