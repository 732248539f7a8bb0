//! RemoveContainer: everything it had is given back.

use std::sync::Arc;
use std::time::Duration;

use super::state::Event;
use super::{Container, ContainerError};
use crate::sandbox::Sandbox;

/// Longest wait for a creation that was told to undo itself.
const CREATION_LIMIT: Duration = Duration::from_secs(20);

/// Removes a container, or does nothing when there is none. One that is being created, for a caller that waits no longer,
/// is undone by its creation. Blocking.
///
/// # Errors
/// What could not be given back; another try goes on from there.
pub fn remove(sandbox: &Sandbox, id: &str) -> Result<(), ContainerError> {
    let Ok(container) = sandbox.container(id) else { return Ok(()) };
    container.advance(Event::RemoveRequested)?;
    if !container.wait_for_creation(Duration::ZERO) {
        // A helper that hangs in the middle of its mounts; one that has not joined the cgroup yet is refused later.
        let _ = container.cgroup.kill();
        if !container.wait_for_creation(CREATION_LIMIT) {
            return Err(ContainerError::StillCreating { id: id.into(), waited: CREATION_LIMIT });
        }
        // Undone by now, unless its creation had just succeeded.
        if !sandbox.container(id).is_ok_and(|found| Arc::ptr_eq(&found, &container)) {
            return Ok(());
        }
    }
    match release(sandbox, &container).into_iter().next() {
        Some(error) => Err(error),
        None => {
            sandbox.forget(id);
            Ok(())
        }
    }
}

/// Gives back all that a container holds; goes on after a failure and returns every one.
pub(super) fn release(sandbox: &Sandbox, container: &Container) -> Vec<ContainerError> {
    // A process that waits for its start ends when its control socket does.
    let holdings = {
        let mut inner = container.lock();
        inner.control = None;
        std::mem::take(&mut inner.holdings)
    };
    let mut errors = Vec::new();
    errors.extend(container.cgroup.remove().err().map(ContainerError::from));
    let mut kept = super::Holdings::default();
    if let Some(layer) = holdings.layer
        && let Err(error) = layer.remove()
    {
        errors.push(error.into());
        kept.layer = Some(layer);
    }
    for image in holdings.images {
        if let Err(error) = sandbox.images.release(&image) {
            errors.push(error.into());
        }
    }
    container.lock().holdings = kept;
    errors
}

impl Sandbox {
    /// See [`remove`].
    ///
    /// # Errors
    /// See [`remove`].
    pub fn remove_container(&self, id: &str) -> Result<(), ContainerError> {
        remove(self, id)
    }
}
