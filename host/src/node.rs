//! What every verb works on: the host's services and the sandboxes and containers that exist.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};

use crate::config::Config;
use crate::container::{Container, ContainerError};
use crate::creations::Creations;
use crate::events::Events;
use crate::image::Images;
use crate::network::PodNetwork;
use crate::nri::Nri;
use crate::sandbox::users::Users;
use crate::sandbox::{Sandbox, SandboxError, scratch::ScratchTemplate};
use crate::sandboxer::monitor::HostAbilities;
use crate::store::Store;
use crate::streaming::Endpoint;
use crate::sys::cgroup::Hierarchy;

/// One node: shared by all verbs. Its maps are locked for look-ups only.
#[derive(Debug)]
pub struct Node {
    /// As read at start.
    pub config: Config,
    /// The journal.
    pub store: Store,
    /// The image store.
    pub images: Images,
    /// CNI.
    pub network: PodNetwork,
    /// What the host can do.
    pub abilities: HostAbilities,
    /// What scratch drives are copied from.
    pub scratch: ScratchTemplate,
    /// Makes the URLs of exec, attach and port-forward.
    pub streaming: Endpoint,
    /// The cgroup v2 hierarchy, if the host has one.
    pub cgroups: Option<Hierarchy>,
    /// `bulkhead-vmm`.
    pub vmm: PathBuf,
    /// `bulkhead-fs`.
    pub file_server: PathBuf,
    /// User ids of jails that are in use.
    pub users: Users,
    /// Of this boot of the host; a record of another boot describes nothing that still runs.
    pub boot_id: String,
    /// The file system of writable layers, named as the image store's when both are one.
    pub container_file_system: PathBuf,
    /// Plugins that watch and change containers.
    pub nri: Nri,
    /// Who listens to what happens.
    pub events: Events,
    /// Sandboxes by id.
    pub sandboxes: Registry<Sandbox>,
    /// Containers by id.
    pub containers: Registry<Container>,
    /// Sandboxes being made, by pod.
    pub sandbox_creations: Creations<SandboxError>,
    /// Containers being made, by sandbox, name and attempt.
    pub container_creations: Creations<ContainerError>,
}

/// Something that stands in a [`Registry`].
pub trait Registered {
    /// Its full id.
    fn id(&self) -> &str;
}

/// Objects by id. Every method takes the lock for a map operation and nothing else.
#[derive(Debug)]
pub struct Registry<T> {
    objects: RwLock<HashMap<String, Arc<T>>>,
}

impl<T> Default for Registry<T> {
    fn default() -> Self {
        Self { objects: RwLock::default() }
    }
}

/// No object, or more than one, has this id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum LookupError {
    #[error("no {kind} has the id {id:?}")]
    NotFound { kind: &'static str, id: String },
    #[error("{count} {kind}s have ids that begin with {id:?}; give more of it")]
    Ambiguous { kind: &'static str, id: String, count: usize },
}

impl<T: Registered> Registry<T> {
    /// Adds or replaces.
    pub fn insert(&self, object: Arc<T>) {
        self.write().insert(object.id().to_owned(), object);
    }

    /// Takes out.
    pub fn remove(&self, id: &str) {
        self.write().remove(id);
    }

    /// Every object.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<T>> {
        self.read().values().cloned().collect()
    }

    /// By full id or unambiguous prefix, as people type them; `kind` is for the error.
    pub fn find(&self, kind: &'static str, id: &str) -> Result<Arc<T>, LookupError> {
        let objects = self.read();
        if let Some(object) = objects.get(id) {
            return Ok(object.clone());
        }
        let mut matching = objects.iter().filter(|(full, _)| !id.is_empty() && full.starts_with(id));
        match (matching.next(), matching.count()) {
            (Some((_, object)), 0) => Ok(object.clone()),
            (Some(_), more) => Err(LookupError::Ambiguous { kind, id: id.to_owned(), count: more + 1 }),
            (None, _) => Err(LookupError::NotFound { kind, id: id.to_owned() }),
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, HashMap<String, Arc<T>>> {
        self.objects.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<String, Arc<T>>> {
        self.objects.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A new id: 128 random bits in hexadecimal, short enough for socket paths below the run directory.
#[must_use]
pub fn new_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Nanoseconds since 1970.
#[must_use]
pub fn now_ns() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Thing(&'static str);
    impl Registered for Thing {
        fn id(&self) -> &str {
            self.0
        }
    }

    #[test]
    fn ids_are_found_by_unambiguous_prefix() {
        let registry = Registry::default();
        for id in ["abc1", "abd2", "abd"] {
            registry.insert(Arc::new(Thing(id)));
        }
        assert_eq!(registry.find("thing", "abc").unwrap().0, "abc1");
        assert_eq!(registry.find("thing", "abd").unwrap().0, "abd");
        assert!(matches!(registry.find("thing", "ab"), Err(LookupError::Ambiguous { count: 3, .. })));
        assert!(matches!(registry.find("thing", ""), Err(LookupError::NotFound { .. })));
    }
}
