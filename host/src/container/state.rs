//! The life of a container.
//!
//! ```text
//! Creating --Built--> Created --Started--> Running
//!    |                   |                    |
//!    |                 Ended                Ended
//!    v                   v                    v
//! Removing <--Remove-- Exited <---------------+
//!                      (Started may still arrive: a short command ends before its start is recorded)
//! ```

use serde::{Deserialize, Serialize};

/// Where a container stands. Times are nanoseconds since 1970 on the host's clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Being built in the guest; listed nowhere.
    Creating,
    /// Built, its command not yet executed.
    Created,
    /// Its command runs.
    Running {
        /// When it started.
        started_at: i64,
    },
    /// It ended, or its pod did.
    Exited {
        /// 0 when it never ran.
        started_at: i64,
        /// How it ended.
        exit: Exit,
    },
    /// Everything goes, the record last.
    Removing,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// 0 to 255.
    pub code: i32,
    /// "Completed", "Error", "OOMKilled", "ContainerCannotRun"; the kubelet shows it.
    pub reason: String,
    /// For people; may be empty.
    pub message: String,
    /// When it ended.
    pub finished_at: i64,
}

/// What happens to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerEvent {
    /// The agent built it.
    Built,
    /// The agent executed its command.
    Started {
        /// Nanoseconds since 1970.
        at: i64,
    },
    /// It ended, or its machine did.
    Ended(Exit),
    /// Its command could not be executed.
    StartFailed(Exit),
    /// Somebody wants it gone.
    Remove,
}

/// An event that cannot happen in a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a container that is {state} cannot take {event:?}")]
#[allow(missing_docs)]
pub struct InvalidTransition {
    pub state: &'static str,
    pub event: ContainerEvent,
}

impl ContainerState {
    /// The only way from one state to another.
    pub fn next(self, event: ContainerEvent) -> Result<Self, InvalidTransition> {
        use ContainerEvent as E;
        use ContainerState as S;
        Ok(match (self, event) {
            (S::Creating, E::Built) => S::Created,
            (S::Created, E::Started { at }) => S::Running { started_at: at },
            (S::Created, E::Ended(exit)) => S::Exited { started_at: 0, exit },
            (S::Running { started_at }, E::Ended(exit)) => S::Exited { started_at, exit },
            // A short command may be over before its start is recorded.
            (S::Exited { started_at: 0, exit }, E::Started { at }) => S::Exited { started_at: at, exit },
            // The reason is better than the exit that the stream reports of the same failure.
            (S::Created | S::Exited { started_at: 0, .. }, E::StartFailed(exit)) => S::Exited { started_at: 0, exit },
            (kept @ S::Exited { .. }, E::Ended(_)) => kept,
            (S::Removing, E::Ended(_)) => S::Removing,
            (_, E::Remove) => S::Removing,
            (state, event) => return Err(InvalidTransition { state: state.name(), event }),
        })
    }

    /// For messages.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running { .. } => "running",
            Self::Exited { .. } => "exited",
            Self::Removing => "being removed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ContainerEvent as E;
    use ContainerState as S;

    #[test]
    fn every_state_meets_every_event() {
        let exit = |code| Exit { code, reason: "Error".into(), message: String::new(), finished_at: 9 };
        let exited = |started_at, code| S::Exited { started_at, exit: exit(code) };
        let states = [S::Creating, S::Created, S::Running { started_at: 5 }, exited(0, 1), exited(4, 1), S::Removing];
        let events = [E::Built, E::Started { at: 5 }, E::Ended(exit(2)), E::StartFailed(exit(3)), E::Remove];
        #[rustfmt::skip]
        let expected = [
            [Some(S::Created), None, None, None, Some(S::Removing)],
            [None, Some(S::Running { started_at: 5 }), Some(exited(0, 2)), Some(exited(0, 3)), Some(S::Removing)],
            [None, None, Some(exited(5, 2)), None, Some(S::Removing)],
            [None, Some(exited(5, 1)), Some(exited(0, 1)), Some(exited(0, 3)), Some(S::Removing)],
            [None, None, Some(exited(4, 1)), None, Some(S::Removing)],
            [None, None, Some(S::Removing), None, Some(S::Removing)],
        ];
        for (state, row) in states.iter().zip(expected) {
            for (event, want) in events.iter().zip(row) {
                assert_eq!(state.clone().next(event.clone()).ok(), want, "{state:?} {event:?}");
            }
        }
    }
}
