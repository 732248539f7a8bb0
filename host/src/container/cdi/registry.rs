//! All devices that the files in the configured directories describe.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::spec::Specification;
use super::{CdiError, Resolved};

/// Most files read of one directory.
const MAX_FILES: usize = 1024;

#[derive(Debug)]
struct File {
    path: PathBuf,
    specification: Specification,
}

/// Where a device is described.
#[derive(Debug)]
enum Entry {
    One { file: Arc<File>, device: usize },
    Conflict { first: PathBuf, second: PathBuf },
}

/// What the files say.
#[derive(Debug, Default)]
pub(super) struct Registry {
    directories: Vec<PathBuf>,
    /// With the position of the directory.
    devices: HashMap<String, (usize, Entry)>,
    broken: Vec<String>,
}

impl Registry {
    /// Reads the directories; a device of a later one comes before one of an earlier. A file that is wrong costs its own
    /// devices only. Blocking.
    pub(super) fn read(directories: &[PathBuf]) -> Self {
        let mut registry = Self { directories: directories.to_vec(), ..Self::default() };
        for (position, directory) in directories.iter().enumerate() {
            let paths = files(directory).unwrap_or_else(|why| {
                registry.broken.push(format!("{}: {why}", directory.display()));
                Vec::new()
            });
            for path in paths {
                match Specification::read(&path) {
                    Ok(specification) => registry.add(position, Arc::new(File { path, specification })),
                    Err(why) => registry.broken.push(format!("{}: {why}", path.display())),
                }
            }
        }
        registry
    }

    fn add(&mut self, position: usize, file: Arc<File>) {
        for (at, device) in file.specification.devices.iter().enumerate() {
            let name = format!("{}={}", file.specification.kind, device.name);
            let entry = match self.devices.remove(&name) {
                Some((other, Entry::One { file: first, .. })) if other == position => {
                    Entry::Conflict { first: first.path.clone(), second: file.path.clone() }
                }
                Some((other, conflict @ Entry::Conflict { .. })) if other == position => conflict,
                _ => Entry::One { file: Arc::clone(&file), device: at },
            };
            self.devices.insert(name, (position, entry));
        }
    }

    /// All edits that the devices `names` take: a file's own once, before those of its devices. Blocking.
    pub(super) fn resolve(&self, names: &[String]) -> Result<Resolved, CdiError> {
        let mut used: Vec<&Path> = Vec::new();
        let mut resolved = Resolved::default();
        for name in names {
            let (file, device) = match self.devices.get(name) {
                Some((_, Entry::One { file, device })) => (file, *device),
                Some((_, Entry::Conflict { first, second })) => {
                    return Err(CdiError::Conflict {
                        name: name.clone(),
                        first: first.clone(),
                        second: second.clone(),
                    });
                }
                None => return Err(self.unknown(name)),
            };
            let of_file = (!used.contains(&file.path.as_path())).then_some(&file.specification.container_edits);
            let of_device = file.specification.devices.get(device).map(|device| &device.container_edits);
            used.push(&file.path);
            for edits in of_file.into_iter().chain(of_device) {
                let failed = |why| CdiError::Edit { name: name.clone(), path: file.path.clone(), why };
                resolved.add(edits).map_err(failed)?;
            }
        }
        Ok(resolved)
    }

    fn unknown(&self, name: &str) -> CdiError {
        let directories = match self.directories.as_slice() {
            [] => "the directories of cdi.spec_dirs, which names none,".to_owned(),
            all => all.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "),
        };
        let broken = match self.broken.as_slice() {
            [] => String::new(),
            all => format!("; not usable are {}", all.join("; ")),
        };
        CdiError::Unknown { name: name.to_owned(), directories, broken }
    }
}

/// The specification's files in a directory, which need not exist; nothing below it counts.
fn files(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.to_string()),
    };
    let named = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "json" || extension == "yaml");
    let mut files: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(named).take(MAX_FILES + 1).collect();
    if files.len() > MAX_FILES {
        return Err(format!("more than {MAX_FILES} files"));
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use bulkhead_proto::agent::ContainerSpec;

    use super::*;
    use crate::container::edits::Editor;
    use crate::container::volumes::Plan;

    fn write(directory: &Path, file: &str, device: &str, variable: &str) {
        fs::create_dir_all(directory).unwrap();
        let text = format!(
            "cdiVersion: 0.6.0\nkind: vendor.com/class\ncontainerEdits: {{env: [FILE={file}]}}\ndevices:\n- name: {device}\n  \
             containerEdits: {{env: [{variable}]}}\n- name: other\n  containerEdits: {{env: [OTHER=1]}}\n"
        );
        fs::write(directory.join(file), text).unwrap();
    }

    fn variables(registry: &Registry, names: &[&str]) -> Result<Vec<String>, CdiError> {
        let names: Vec<String> = names.iter().map(|name| format!("vendor.com/class={name}")).collect();
        let (mut spec, mut volumes) = (ContainerSpec::new(), Plan::default());
        registry.resolve(&names)?.apply(&mut Editor::new(&mut spec, &mut volumes));
        Ok(spec.process.env.iter().map(|line| String::from_utf8(line.clone()).unwrap()).collect())
    }

    #[test]
    fn a_later_directory_wins_and_equals_conflict() {
        let root = tempfile::tempdir().unwrap();
        let directories = [root.path().join("first"), root.path().join("second"), root.path().join("absent")];
        write(&directories[0], "a.yaml", "gpu", "GPU=first");
        write(&directories[1], "b.yaml", "gpu", "GPU=second");
        fs::write(directories[0].join("bad.json"), "{").unwrap();
        fs::write(directories[0].join("notes.txt"), "{").unwrap();
        let registry = Registry::read(&directories);
        assert_eq!(variables(&registry, &["gpu", "other"]).unwrap(), ["FILE=b.yaml", "GPU=second", "OTHER=1"]);
        let text = variables(&registry, &["none"]).unwrap_err().to_string();
        assert!(text.contains("class=none") && text.contains("bad.json") && !text.contains("notes.txt"), "{text}");
        assert!(directories.iter().all(|directory| text.contains(directory.to_str().unwrap())), "{text}");
        write(&directories[1], "c.yaml", "gpu", "GPU=third");
        let text = variables(&Registry::read(&directories), &["gpu"]).unwrap_err().to_string();
        assert!(text.contains("b.yaml") && text.contains("c.yaml"), "{text}");
        let directories = [&directories[1..], &directories[..1]].concat();
        assert_eq!(variables(&Registry::read(&directories), &["gpu"]).unwrap(), ["FILE=a.yaml", "GPU=first"]);
    }

    #[test]
    fn what_cannot_be_done_names_device_and_file() {
        let root = tempfile::tempdir().unwrap();
        let text = "cdiVersion: 1.1.0\nkind: a.b/c\ndevices:\n- name: x\n  containerEdits: {intelRdt: {closID: y}}\n";
        fs::write(root.path().join("x.yaml"), text).unwrap();
        let registry = Registry::read(&[root.path().to_owned()]);
        let text = registry.resolve(&["a.b/c=x".to_owned()]).unwrap_err().to_string();
        assert!(text.contains("a.b/c=x") && text.contains("x.yaml") && text.contains("intelRdt"), "{text}");
    }
}
