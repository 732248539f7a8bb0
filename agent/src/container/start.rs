//! StartContainer: the exec of the command.

use super::state::Event;
use super::{Container, ContainerError};
use crate::reaper::now_ns;

impl Container {
    /// Lets the first process exec its command; returns when that has happened, in nanoseconds since 1970. Blocking.
    ///
    /// # Errors
    /// Why the command cannot be run; the container is stopped then.
    pub fn start(&self) -> Result<i64, ContainerError> {
        self.advance(Event::StartRequested)?;
        let control = self.lock().control.take();
        let control = control.ok_or_else(|| ContainerError::NotRunning { id: self.id.clone() })?;
        if let Err(error) = control.start() {
            if error.may_leave_process() {
                self.cgroup.kill()?;
            }
            return Err(ContainerError::Start(error));
        }
        self.advance(Event::Executed)?;
        Ok(now_ns())
    }
}
