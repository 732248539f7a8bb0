//! The life of a container.
//!
//! ```text
//! Creating --Built--> Created --StartRequested--> Starting --Executed--> Running
//!                        |                           |                      |
//!                        +-------------Exited--------+--------Exited--------+--> Stopped
//! Creating, Created, Starting, Running, Stopped --RemoveRequested--> Removing
//!
//! Removing allows no Built: a creation that ends there undoes itself.
//! ```

use thiserror::Error;

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its root, cgroup and first process are being made.
    Creating,
    /// The first process waits for its start.
    Created,
    /// The first process was told to exec.
    Starting,
    /// The command runs.
    Running,
    /// The first process has ended.
    Stopped,
    /// Everything is being taken away.
    Removing,
}

/// What happens to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Set-up is complete.
    Built,
    /// A caller wants it to run.
    StartRequested,
    /// The command was exec'd.
    Executed,
    /// The first process has ended.
    Exited,
    /// A caller wants it gone.
    RemoveRequested,
}

/// An event that does not fit the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("it is {state:?}, which does not allow {event:?}")]
pub struct InvalidTransition {
    /// Where it is.
    pub state: State,
    /// What does not fit.
    pub event: Event,
}

impl State {
    /// The state after `event`.
    ///
    /// # Errors
    /// When the event does not fit.
    pub fn next(self, event: Event) -> Result<Self, InvalidTransition> {
        match (self, event) {
            (Self::Creating, Event::Built) => Ok(Self::Created),
            (Self::Created, Event::StartRequested) => Ok(Self::Starting),
            (Self::Starting, Event::Executed) => Ok(Self::Running),
            // A command can end before its exec is known here.
            (Self::Stopped, Event::Executed) => Ok(Self::Stopped),
            (Self::Created | Self::Starting | Self::Running, Event::Exited) => Ok(Self::Stopped),
            // What a removal kills ends too.
            (Self::Removing, Event::Exited | Event::Executed) => Ok(Self::Removing),
            (_, Event::RemoveRequested) => Ok(Self::Removing),
            (state, event) => Err(InvalidTransition { state, event }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Event::*;
    use State::*;

    #[test]
    fn every_state_meets_every_event() {
        let events = [Built, StartRequested, Executed, Exited, RemoveRequested];
        let table = [
            (Creating, [Some(Created), None, None, None, Some(Removing)]),
            (Created, [None, Some(Starting), None, Some(Stopped), Some(Removing)]),
            (Starting, [None, None, Some(Running), Some(Stopped), Some(Removing)]),
            (Running, [None, None, None, Some(Stopped), Some(Removing)]),
            (Stopped, [None, None, Some(Stopped), None, Some(Removing)]),
            (Removing, [None, None, Some(Removing), Some(Removing), Some(Removing)]),
        ];
        for (state, row) in table {
            for (event, expected) in events.into_iter().zip(row) {
                let expected = expected.ok_or(InvalidTransition { state, event });
                assert_eq!(state.next(event), expected, "{state:?} x {event:?}");
            }
        }
    }
}
