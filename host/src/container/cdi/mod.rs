//! The Container Device Interface: a name stands for a device with all that a container needs to use it. Vendors say what that
//! is in files of the configured directories, which are read anew for every container that asks for a device.

mod apply;
mod registry;
mod spec;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bulkhead_proto::cri;

pub(crate) use self::apply::Resolved;
use self::registry::Registry;
use crate::blocking::{self, Hung};

/// Most devices of one container.
const MAX_DEVICES: usize = 1024;
/// Annotations with this prefix list devices, separated by commas.
pub(super) const ANNOTATION: &str = "cdi.k8s.io/";

/// Why a container's devices are not to be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CdiError {
    /// No VENDOR/CLASS=DEVICE.
    #[error("{field} asks for the CDI device {name:?}, which is no VENDOR/CLASS=DEVICE: {why}")]
    Name {
        /// As asked for.
        name: String,
        /// Where.
        field: String,
        /// What is wrong.
        why: String,
    },
    /// Nobody describes it.
    #[error("no file in {directories} describes the CDI device {name:?}{broken}")]
    Unknown {
        /// As asked for.
        name: String,
        /// That were read.
        directories: String,
        /// Files that say nothing because they are wrong.
        broken: String,
    },
    /// More than one file of one directory describes it.
    #[error(
        "the CDI device {name:?} is described by {} and by {}, and neither comes before the other; remove one",
        first.display(), second.display()
    )]
    Conflict {
        /// As asked for.
        name: String,
        /// One file.
        first: PathBuf,
        /// Another one.
        second: PathBuf,
    },
    /// It needs what this host or this runtime does not give.
    #[error("the CDI device {name:?} of {}: containerEdits: {why}", path.display())]
    Edit {
        /// As asked for.
        name: String,
        /// The file.
        path: PathBuf,
        /// Which edit, and what is wrong.
        why: String,
    },
    /// More than one container uses.
    #[error("the container asks for more than {MAX_DEVICES} CDI devices")]
    TooMany,
    /// One of the directories, or what a device needs.
    #[error("CDI devices: {0}")]
    Hung(#[from] Hung),
}

/// The devices that a container asks for: those of CDI_devices, then those of annotations, each once.
pub(super) fn names(config: &cri::ContainerConfig) -> Result<Vec<String>, CdiError> {
    let of_field = config.cdi_devices.iter().map(|device| ("CDI_devices".to_owned(), device.name.as_str()));
    let annotations: BTreeMap<_, _> =
        config.annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATION)).collect();
    let of_annotations = annotations
        .into_iter()
        .flat_map(|(key, value)| value.split(',').map(move |name| (format!("the annotation {key}"), name.trim())));
    let mut names: Vec<String> = Vec::new();
    for (field, name) in of_field.chain(of_annotations) {
        spec::check_qualified(name).map_err(|why| CdiError::Name { name: name.to_owned(), field, why })?;
        if names.len() >= MAX_DEVICES {
            return Err(CdiError::TooMany);
        }
        if names.iter().all(|other| other != name) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Whether `name` can be one of a device at all.
///
/// # Errors
/// What is wrong, in words.
pub(super) fn check(name: &str) -> Result<(), String> {
    spec::check_qualified(name).map_err(|why| format!("no VENDOR/CLASS=DEVICE: {why}"))
}

/// What the devices `names` change in a container, by the files that are in `directories` now.
pub(super) async fn resolve(names: Vec<String>, directories: &[PathBuf]) -> Result<Resolved, CdiError> {
    if names.is_empty() {
        return Ok(Resolved::default());
    }
    let directories = directories.to_vec();
    let first = directories.first().cloned().unwrap_or_default();
    blocking::on_path(Path::new(&first), move || Registry::read(&directories).resolve(&names)).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_by_field_and_annotation() {
        let mut config = cri::ContainerConfig::default();
        config.cdi_devices.push(cri::CdiDevice { name: "a.b/c=1".into() });
        config.annotations.insert("cdi.k8s.io/plugin".into(), "a.b/c=2,a.b/c=1".into());
        config.annotations.insert("other/plugin".into(), "x".into());
        assert_eq!(names(&config).unwrap(), ["a.b/c=1", "a.b/c=2"]);
        config.annotations.insert("cdi.k8s.io/wrong".into(), "a.b/c".into());
        let text = names(&config).unwrap_err().to_string();
        assert!(text.contains("annotation cdi.k8s.io/wrong") && text.contains("VENDOR/CLASS=DEVICE"), "{text}");
    }
}
