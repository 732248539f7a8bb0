//! What happens to sandboxes and containers, told to whoever listens.
//!
//! Events follow from changes of the journaled records, so nothing can happen without one. Each carries the records as
//! they stood then. A listener that falls behind loses its place and is told so; nobody waits for it.

use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use tokio::sync::broadcast;

use crate::container::{self, ContainerRecord, ContainerState};
use crate::journaled::Observer;
use crate::node::{Node, now_ns};
use crate::sandbox::{SandboxRecord, SandboxState};

/// Events kept for a listener that reads more slowly than they come.
const BACKLOG: usize = 1024;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// It exists.
    Created,
    /// It runs.
    Started,
    /// It has ended.
    Stopped,
    /// Nothing of it is left.
    Deleted,
}

/// One thing that happened to a container, or to a sandbox, which counts as one.
#[derive(Debug, Clone)]
pub struct Event {
    /// Of the container or of the sandbox.
    pub id: String,
    /// What happened.
    pub kind: EventKind,
    /// Nanoseconds since 1970.
    pub at: i64,
    /// The sandbox as it stood then; `None` when it is gone.
    pub sandbox: Option<Arc<SandboxRecord>>,
    /// All containers of the sandbox as they stood then.
    pub containers: Vec<Arc<ContainerRecord>>,
}

/// Where events are sent. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Events(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// `None` once the daemon stops.
    sender: Mutex<Option<broadcast::Sender<Arc<Event>>>>,
    node: OnceLock<Weak<Node>>,
}

impl Default for Inner {
    fn default() -> Self {
        Self { sender: Mutex::new(Some(broadcast::channel(BACKLOG).0)), node: OnceLock::new() }
    }
}

impl Events {
    /// Says on which node events happen; before that there are none.
    pub fn attach(&self, node: &Arc<Node>) {
        // A second call names the same node.
        let _ = self.0.node.set(Arc::downgrade(node));
    }

    /// Every event from now on; `None` when the daemon stops.
    #[must_use]
    pub fn listen(&self) -> Option<broadcast::Receiver<Arc<Event>>> {
        self.sender().map(|sender| sender.subscribe())
    }

    /// Ends every listener's stream.
    pub fn close(&self) {
        self.0.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn sender(&self) -> Option<broadcast::Sender<Arc<Event>>> {
        self.0.sender.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes events of the changes of a container's record.
    #[must_use]
    pub fn of_container(&self) -> Observer<ContainerRecord> {
        let events = self.clone();
        Arc::new(move |was, is| {
            if let Some(kind) = container_event(&was.state, is.map(|is| &is.state)) {
                events.tell(&was.id, kind, &was.sandbox_id, None);
            }
        })
    }

    /// Makes events of the changes of a sandbox's record.
    #[must_use]
    pub fn of_sandbox(&self) -> Observer<SandboxRecord> {
        let events = self.clone();
        Arc::new(move |was, is| {
            for kind in sandbox_events(was.state, is.map(|is| is.state)) {
                events.tell(&was.id, *kind, &was.id, Some(is.unwrap_or(was)));
            }
        })
    }

    /// `known` is a sandbox that the node does not know yet or any more.
    fn tell(&self, id: &str, kind: EventKind, sandbox_id: &str, known: Option<&Arc<SandboxRecord>>) {
        let Some(sender) = self.sender().filter(|sender| sender.receiver_count() > 0) else { return };
        let Some(node) = self.0.node.get().and_then(Weak::upgrade) else { return };
        let sandbox = match known {
            Some(record) => Some(record.clone()),
            None => node.sandboxes.find("sandbox", sandbox_id).ok().map(|sandbox| sandbox.record.get()),
        };
        let mut containers: Vec<_> =
            container::of_sandbox(&node, sandbox_id).iter().map(|container| container.record.get()).collect();
        containers.retain(|record| !matches!(record.state, ContainerState::Creating | ContainerState::Removing));
        let event = Event { id: id.to_owned(), kind, at: now_ns(), sandbox, containers };
        // Nobody may be listening by now.
        let _ = sender.send(Arc::new(event));
    }
}

fn container_event(was: &ContainerState, is: Option<&ContainerState>) -> Option<EventKind> {
    use ContainerState as S;
    match (was, is) {
        (S::Creating, Some(S::Created)) => Some(EventKind::Created),
        (S::Created, Some(S::Running { .. })) => Some(EventKind::Started),
        // A short command ended before its start was recorded.
        (S::Exited { started_at: 0, .. }, Some(S::Exited { started_at: 1.., .. })) => Some(EventKind::Started),
        (S::Created | S::Running { .. }, Some(S::Exited { .. })) => Some(EventKind::Stopped),
        (_, None) => Some(EventKind::Deleted),
        _ => None,
    }
}

fn sandbox_events(was: SandboxState, is: Option<SandboxState>) -> &'static [EventKind] {
    use SandboxState as S;
    match (was, is) {
        (S::Creating, Some(S::Ready)) => &[EventKind::Created, EventKind::Started],
        (S::Ready, Some(S::Dead | S::Stopping | S::Removing)) => &[EventKind::Stopped],
        (_, None) => &[EventKind::Deleted],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::Exit;

    #[test]
    fn a_life_has_four_events() {
        let exit = Exit { code: 0, reason: "Completed".into(), message: String::new(), finished_at: 9 };
        let states = [
            ContainerState::Creating,
            ContainerState::Created,
            ContainerState::Running { started_at: 5 },
            ContainerState::Exited { started_at: 5, exit: exit.clone() },
            ContainerState::Removing,
        ];
        let kinds: Vec<_> = states.windows(2).filter_map(|two| container_event(&two[0], Some(&two[1]))).collect();
        assert_eq!(kinds, [EventKind::Created, EventKind::Started, EventKind::Stopped]);
        assert_eq!(container_event(&ContainerState::Removing, None), Some(EventKind::Deleted));
        let short = ContainerState::Exited { started_at: 0, exit };
        assert_eq!(container_event(&short, Some(&states[3])), Some(EventKind::Started));
        assert_eq!(container_event(&states[3], Some(&states[3])), None);
    }

    #[test]
    fn a_sandbox_stops_once() {
        use SandboxState as S;
        let life = [S::Creating, S::Ready, S::Dead, S::Stopping, S::Stopped, S::Removing];
        let kinds: Vec<_> = life.windows(2).flat_map(|two| sandbox_events(two[0], Some(two[1]))).collect();
        assert_eq!(kinds, [&EventKind::Created, &EventKind::Started, &EventKind::Stopped]);
        assert_eq!(sandbox_events(S::Ready, Some(S::Stopping)), [EventKind::Stopped]);
        assert_eq!(sandbox_events(S::Removing, None), [EventKind::Deleted]);
    }

    #[test]
    fn closing_ends_the_listeners() {
        let events = Events::default();
        let mut listener = events.listen().unwrap();
        events.close();
        assert!(events.listen().is_none());
        assert!(matches!(listener.try_recv(), Err(broadcast::error::TryRecvError::Closed)));
    }
}
