//! Holds processors up and lets them go on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A signal that comes just before a processor enters the guest has no effect, so the next must come soon.
const KICK_INTERVAL: Duration = Duration::from_millis(1);

/// What processors are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    Run,
    Pause,
    Stop,
}

#[derive(Debug)]
struct State {
    want: Want,
    /// Threads that have not ended.
    alive: usize,
    /// Of them, those that wait in [`Gate::pass`].
    parked: usize,
}

/// Shared by all processors and whoever controls them.
#[derive(Debug)]
pub struct Gate {
    /// Looked at on every way into the guest; set while `want` is not `Run`.
    closed: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

impl Gate {
    /// A closed one, for this many processors.
    #[must_use]
    pub fn new(processors: usize) -> Self {
        let state = State { want: Want::Pause, alive: processors, parked: 0 };
        Self { closed: AtomicBool::new(true), state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Whether a processor must call [`pass`](Self::pass) before it enters the guest.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// A processor waits here until it may run; false when it is to end.
    #[must_use]
    pub fn pass(&self) -> bool {
        let mut state = self.state();
        state.parked += 1;
        self.changed.notify_all();
        while state.want == Want::Pause {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.parked -= 1;
        state.want == Want::Run
    }

    /// A processor that has nothing to run any more waits here until all are to end.
    pub fn wait_for_stop(&self) {
        let mut state = self.state();
        state.parked += 1;
        self.changed.notify_all();
        while state.want != Want::Stop {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.parked -= 1;
    }

    /// A processor's thread ends.
    pub fn leave(&self) {
        self.state().alive -= 1;
        self.changed.notify_all();
    }

    /// Lets processors run.
    pub fn open(&self) {
        let mut state = self.state();
        if state.want == Want::Pause {
            state.want = Want::Run;
            self.closed.store(false, Ordering::Release);
            self.changed.notify_all();
        }
    }

    /// Whether processors may run.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state().want == Want::Run
    }

    /// Holds processors up, and returns when all wait. `kick` gets them out of the guest. False when they end instead.
    pub fn close(&self, kick: impl Fn()) -> bool {
        let mut state = self.state();
        if state.want == Want::Stop {
            return false;
        }
        state.want = Want::Pause;
        self.closed.store(true, Ordering::Release);
        while state.parked < state.alive && state.want == Want::Pause {
            kick();
            state = self.changed.wait_timeout(state, KICK_INTERVAL).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.want == Want::Pause
    }

    /// Ends all processors' threads.
    pub fn stop(&self, kick: impl Fn()) {
        let mut state = self.state();
        state.want = Want::Stop;
        self.closed.store(true, Ordering::Release);
        self.changed.notify_all();
        while state.alive > 0 {
            kick();
            state = self.changed.wait_timeout(state, KICK_INTERVAL).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn processors_are_held_up_let_go_and_ended() {
        let gate = Arc::new(Gate::new(3));
        let rounds: Arc<[AtomicU64; 3]> = Arc::default();
        let threads: Vec<_> = (0..3)
            .map(|id| {
                let (gate, rounds) = (gate.clone(), rounds.clone());
                std::thread::spawn(move || {
                    while !gate.is_closed() || gate.pass() {
                        rounds[id].fetch_add(1, Ordering::Relaxed);
                        std::thread::yield_now();
                    }
                    gate.leave();
                })
            })
            .collect();
        let count = || rounds.each_ref().map(|rounds| rounds.load(Ordering::Relaxed));
        assert!(gate.close(|| {}));
        assert_eq!(count(), [0; 3]);
        gate.open();
        while count().contains(&0) {
            std::thread::yield_now();
        }
        assert!(gate.close(|| {}) && !gate.is_open());
        let held = count();
        std::thread::yield_now();
        assert_eq!(count(), held);
        gate.open();
        gate.stop(|| {});
        assert!(!gate.close(|| {}));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
