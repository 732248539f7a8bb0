//! The life of a pod sandbox.
//!
//! ```text
//! Creating --Booted--> Ready --MachineEnded--> Dead
//!    |                   |                      |
//!  Failed               Stop                   Stop
//!    v                   v                      |
//! Removing <--Remove-- Stopping <---------------+
//!    ^                   | Released
//!    +------Remove---- Stopped
//! ```

use serde::{Deserialize, Serialize};

/// Where a sandbox stands. Journaled before the steps that a state announces are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SandboxState {
    /// Resources are being made; nobody but the creator knows the sandbox yet.
    Creating,
    /// The agent answers.
    Ready,
    /// The machine ended by itself; network and directories are still held.
    Dead,
    /// Machine and network are being released.
    Stopping,
    /// Only the record and the logs are left.
    Stopped,
    /// Everything goes, the record last.
    Removing,
}

/// What happens to a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SandboxEvent {
    /// The agent is configured and answers.
    Booted,
    /// Creation failed.
    Failed,
    /// The machine ended without being asked.
    MachineEnded,
    /// Somebody wants it stopped.
    Stop,
    /// Nothing external is held any more.
    Released,
    /// Somebody wants it gone.
    Remove,
}

/// An event that cannot happen in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a sandbox that is {state:?} cannot take {event:?}")]
#[allow(missing_docs)]
pub struct InvalidTransition {
    pub state: SandboxState,
    pub event: SandboxEvent,
}

impl SandboxState {
    /// The only way from one state to another.
    pub fn next(self, event: SandboxEvent) -> Result<Self, InvalidTransition> {
        use SandboxEvent as E;
        use SandboxState as S;
        Ok(match (self, event) {
            (S::Creating, E::Booted) => S::Ready,
            (S::Ready, E::MachineEnded) => S::Dead,
            (S::Dead | S::Stopping | S::Stopped | S::Removing, E::MachineEnded) => self,
            (S::Ready | S::Dead | S::Stopping, E::Stop) => S::Stopping,
            (S::Stopped, E::Stop) => S::Stopped,
            (S::Stopping, E::Released) => S::Stopped,
            (S::Creating, E::Failed) => S::Removing,
            (S::Creating | S::Ready | S::Dead | S::Stopping | S::Stopped | S::Removing, E::Remove) => S::Removing,
            (state, event) => return Err(InvalidTransition { state, event }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use SandboxEvent as E;
    use SandboxState as S;

    #[test]
    fn every_state_meets_every_event() {
        let states = [S::Creating, S::Ready, S::Dead, S::Stopping, S::Stopped, S::Removing];
        let events = [E::Booted, E::Failed, E::MachineEnded, E::Stop, E::Released, E::Remove];
        #[rustfmt::skip]
        let expected = [
            [Some(S::Ready), Some(S::Removing), None, None, None, Some(S::Removing)],
            [None, None, Some(S::Dead), Some(S::Stopping), None, Some(S::Removing)],
            [None, None, Some(S::Dead), Some(S::Stopping), None, Some(S::Removing)],
            [None, None, Some(S::Stopping), Some(S::Stopping), Some(S::Stopped), Some(S::Removing)],
            [None, None, Some(S::Stopped), Some(S::Stopped), None, Some(S::Removing)],
            [None, None, Some(S::Removing), None, None, Some(S::Removing)],
        ];
        for (state, row) in states.iter().zip(expected) {
            for (event, want) in events.iter().zip(row) {
                assert_eq!(state.next(*event).ok(), want, "{state:?} {event:?}");
            }
        }
    }
}
