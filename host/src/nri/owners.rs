//! Which plugin set what. A field belongs to the first that sets it; another one may set it only after it has cleared it by
//! a removal of its own, as in the reference (containerd/nri, pkg/api/owners.go).

use bulkhead_proto::nri::{self, Field};
use protobuf::Enum;

use super::error::NriError;
use super::merge::Claim;

/// What stands before the name of what is to be removed.
const REMOVAL: char = '-';

/// The name without the mark, and whether it was marked for removal.
pub(crate) fn unmarked(name: &str) -> (&str, bool) {
    name.strip_prefix(REMOVAL).map_or((name, false), |name| (name, true))
}

/// The name with the mark.
pub(super) fn marked(name: &str) -> String {
    format!("{REMOVAL}{name}")
}

/// Owners of fields by container, in the form that validators get.
#[derive(Debug, Clone, Default)]
pub(crate) struct Owners(pub(super) nri::OwningPlugins);

impl Owners {
    /// Makes `plugin` the owner of a field; `key` is empty for what a container has one of.
    fn claim(&mut self, container: &str, field: Field, key: &str, plugin: &str) -> Result<(), NriError> {
        if let Some(owner) = self.noted(container, field, key) {
            let (other, cleared) = unmarked(owner);
            if !(cleared && other == plugin) {
                let (plugin, other) = (plugin.to_owned(), other.to_owned());
                return Err(NriError::Conflict { plugin, other, field: words(field, key) });
            }
        }
        self.note(container, field, key, plugin.to_owned());
        Ok(())
    }

    /// What a plugin does to a field of a container.
    pub(super) fn take(&mut self, container: &str, plugin: &str, claim: Claim<'_>) -> Result<(), NriError> {
        match claim {
            Claim::Set(field, key) => self.claim(container, field, key, plugin),
            Claim::Removed(field, key) => {
                self.note(container, field, key, marked(plugin));
                Ok(())
            }
        }
    }

    /// The plugin that set a field.
    pub(crate) fn of(&self, container: &str, field: Field, key: &str) -> String {
        unmarked(self.noted(container, field, key).unwrap_or_default()).0.to_owned()
    }

    fn noted(&self, container: &str, field: Field, key: &str) -> Option<&str> {
        let owners = self.0.owners.get(container)?;
        let owner = match key {
            "" => owners.simple.get(&field.value()),
            key => owners.compound.get(&field.value())?.owners.get(key),
        };
        owner.map(String::as_str)
    }

    fn note(&mut self, container: &str, field: Field, key: &str, owner: String) {
        let owners = self.0.owners.entry(container.to_owned()).or_default();
        match key {
            "" => owners.simple.insert(field.value(), owner),
            key => owners.compound.entry(field.value()).or_default().owners.insert(key.to_owned(), owner),
        };
    }
}

/// A field for people.
fn words(field: Field, key: &str) -> String {
    if key.is_empty() { format!("{field:?}") } else { format!("{field:?} {key}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_has_one_owner() {
        let mut owners = Owners::default();
        owners.claim("c", Field::Env, "A", "10-x").unwrap();
        owners.claim("c", Field::Env, "B", "20-y").unwrap();
        owners.claim("other", Field::Env, "A", "20-y").unwrap();
        let text = owners.claim("c", Field::Env, "A", "20-y").unwrap_err().to_string();
        assert!(text.contains("20-y and 10-x") && text.contains("Env A"), "{text}");
        // Even itself, as in the reference.
        assert!(owners.claim("c", Field::Env, "A", "10-x").is_err());
        assert_eq!(owners.of("c", Field::Env, "A"), "10-x");
    }

    #[test]
    fn what_is_removed_can_be_set_by_who_removed_it() {
        let mut owners = Owners::default();
        owners.claim("c", Field::Args, "", "10-x").unwrap();
        owners.take("c", "20-y", Claim::Removed(Field::Args, "")).unwrap();
        assert!(owners.claim("c", Field::Args, "", "30-z").is_err());
        owners.claim("c", Field::Args, "", "20-y").unwrap();
        assert_eq!(owners.of("c", Field::Args, ""), "20-y");
    }
}
