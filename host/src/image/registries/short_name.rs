//! Short names: which whole names `busybox` may stand for.

use super::conf::{Conf, ShortNameMode};
use crate::image::reference::{Reference, ReferenceError};

/// Searched when no registry is configured, as the peers of Docker's lineage do.
const DEFAULT_SEARCH: &str = "docker.io";

/// Why a name stands for none that can be pulled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Grammar.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// `unqualified-search-registries = []`
    #[error(
        "short name {name:?} has no alias, and no registry is to be searched (unqualified-search-registries is empty): \
         write the whole name, registry/repository"
    )]
    NoSearch {
        /// As asked for.
        name: String,
    },
    /// Mode enforcing, without a terminal.
    #[error(
        "short name {name:?} is ambiguous, and short-name-mode is enforcing: it may be any of {}; write the whole name, \
         or give it an alias in registries.conf", .candidates.join(", ")
    )]
    Ambiguous {
        /// As asked for.
        name: String,
        /// Whole names.
        candidates: Vec<String>,
    },
}

/// The names to pull, in order of preference; never none.
pub(super) fn to_pull(conf: &Conf, name: &str) -> Result<Vec<Reference>, NameError> {
    let all = candidates(conf, name)?;
    match all.as_slice() {
        [] => Err(NameError::NoSearch { name: name.to_owned() }),
        [_] => Ok(all),
        _ if conf.short_name_mode.unwrap_or_default() == ShortNameMode::Enforcing => {
            let candidates = all.iter().map(ToString::to_string).collect();
            Err(NameError::Ambiguous { name: name.to_owned(), candidates })
        }
        _ => Ok(all),
    }
}

/// All names that `name` may stand for, in order of preference.
pub(super) fn candidates(conf: &Conf, name: &str) -> Result<Vec<Reference>, ReferenceError> {
    if !Reference::is_short(name) {
        return Reference::parse(name).map(|whole| vec![whole]);
    }
    // A short name must be well formed before anybody's registry is put before it.
    Reference::parse(name)?;
    let (short, suffix) = Reference::split_suffix(name);
    if let Some(whole) = conf.aliases.get(short) {
        return Reference::parse(&format!("{whole}{suffix}")).map(|whole| vec![whole]);
    }
    let default = [DEFAULT_SEARCH.to_owned()];
    let search = conf.unqualified_search_registries.as_deref().unwrap_or(&default);
    let whole = search.iter().map(|registry| Reference::parse(&format!("{}/{name}", registry.trim_end_matches('/'))));
    whole.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pulled(conf: &str, name: &str) -> Result<Vec<String>, String> {
        let conf = Conf::parse(conf).unwrap();
        let found = to_pull(&conf, name).map_err(|error| error.to_string())?;
        Ok(found.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn aliases_then_registries_in_order() {
        let one = |conf, name, whole: &str| assert_eq!(pulled(conf, name).unwrap(), [whole]);
        one("", "busybox", "docker.io/library/busybox:latest");
        one("", "a.org/x", "a.org/x:latest");
        one("unqualified-search-registries = [\"quay.io\"]", "busybox:1", "quay.io/busybox:1");
        let two = "unqualified-search-registries = [\"quay.io\", \"docker.io\"]\n";
        let alias = format!("{two}[aliases]\n\"team/app\" = \"a.org/other/app\"\n");
        one(&alias, "team/app:3", "a.org/other/app:3");
        let disabled = format!("{two}short-name-mode = \"disabled\"");
        assert_eq!(pulled(&disabled, "x").unwrap(), ["quay.io/x:latest", "docker.io/library/x:latest"]);
        assert_eq!(pulled(&format!("{two}short-name-mode = \"permissive\""), "x").unwrap().len(), 2);
    }

    #[test]
    fn refuses_with_the_reason() {
        let two = "unqualified-search-registries = [\"quay.io\", \"docker.io\"]\n";
        let why = pulled(two, "x").unwrap_err();
        assert!(why.contains("enforcing") && why.contains("quay.io/x:latest, docker.io/library/x:latest"), "{why}");
        assert!(
            pulled("unqualified-search-registries = []", "x").unwrap_err().contains("no registry is to be searched")
        );
        assert!(pulled(two, "UPPER").unwrap_err().contains("upper-case"));
    }
}
