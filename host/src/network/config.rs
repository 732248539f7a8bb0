//! The node's CNI configuration: the first valid file of the directory, in lexical order, is the pods' network.
//!
//! A file holds a list (`plugins`) or a single plugin (`type`), whatever its extension. The directory is looked at on
//! each use and read again when a file in it has changed.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Versions of the CNI specification that this runtime speaks, oldest first.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// Longest configuration file in bytes.
const MAX_FILE: u64 = 1 << 20;
/// Most plugins in one network.
const MAX_PLUGINS: usize = 64;
const EXTENSIONS: [&str; 3] = ["conflist", "conf", "json"];

/// A configuration file that cannot be used.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// Reading the file or the directory.
    #[error("cannot read CNI configuration {path}: {why}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The system's words.
        why: String,
    },
    /// It is readable and wrong.
    #[error("CNI configuration {path}, line {line}: {why}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong and what would be right.
        why: String,
    },
}

/// A network: a list of plugins that are run one after the other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// Where it was read from.
    pub file: PathBuf,
    /// Its name, as plugins see it.
    pub name: String,
    /// Versions it may be run with, newest first, never empty; all are in [`VERSIONS`].
    pub versions: Vec<String>,
    /// CHECK is never to be run.
    pub disable_check: bool,
    /// GC is never to be run.
    pub disable_gc: bool,
    /// In the order of ADD.
    pub plugins: Vec<Plugin>,
}

/// One plugin of a network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plugin {
    /// Name of its binary.
    pub kind: String,
    /// Capabilities it declares, those set to true.
    pub capabilities: BTreeSet<String>,
    /// Its configuration but for `capabilities`.
    pub configuration: Map<String, Value>,
}

#[derive(Deserialize)]
struct File {
    #[serde(rename = "cniVersion")]
    version: Option<String>,
    #[serde(rename = "cniVersions", default)]
    versions: Vec<String>,
    name: Option<String>,
    #[serde(rename = "disableCheck", default, deserialize_with = "flag")]
    disable_check: bool,
    #[serde(rename = "disableGC", default, deserialize_with = "flag")]
    disable_gc: bool,
    #[serde(rename = "loadOnlyInlinedPlugins", default, deserialize_with = "flag")]
    load_only_inlined_plugins: bool,
    plugins: Option<Vec<Map<String, Value>>>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

// The specification allows these as strings too.
fn flag<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Bool(value) => Ok(value),
        Value::String(text) if text.eq_ignore_ascii_case("true") => Ok(true),
        Value::String(text) if text.eq_ignore_ascii_case("false") => Ok(false),
        other => Err(serde::de::Error::custom(format!("{other} where true or false belongs"))),
    }
}

impl Network {
    /// Reads one file, and the folder of plugin files beside it that is named as the network, unless it says
    /// `loadOnlyInlinedPlugins`.
    ///
    /// # Errors
    /// When it cannot be read, is no JSON, or breaks the specification.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read(path)?;
        let file: File = parse(path, &text)?;
        let wrong = |key: &str, why: String| invalid(path, &text, key, why);
        let name = file.name.unwrap_or_default();
        if !is_name(&name) {
            let why = format!(
                "network name {name:?} must start with a letter or digit and go on with those, '_', '.' or '-'"
            );
            return Err(wrong("name", why));
        }
        let versions = supported(file.version.as_deref(), &file.versions).map_err(|why| wrong("cniVersion", why))?;
        let mut sources = match (file.plugins, file.kind) {
            (Some(plugins), _) => plugins,
            (None, Some(_)) => vec![parse(path, &text)?],
            (None, None) => Vec::new(),
        };
        if !file.load_only_inlined_plugins
            && let Some(directory) = path.parent()
        {
            sources.extend(plugin_files(&directory.join(&name))?);
        }
        if sources.is_empty() || sources.len() > MAX_PLUGINS {
            let why = format!("network {name} has {} plugins; 1 to {MAX_PLUGINS} belong in \"plugins\"", sources.len());
            return Err(wrong("plugins", why));
        }
        let plugins = sources.into_iter().map(Plugin::new).collect::<Result<_, _>>();
        Ok(Self {
            file: path.to_owned(),
            versions,
            disable_check: file.disable_check,
            disable_gc: file.disable_gc,
            plugins: plugins.map_err(|why| wrong("type", why))?,
            name,
        })
    }

    /// Whether a plugin of the list declares `capability`.
    #[must_use]
    pub fn has_capability(&self, capability: &str) -> bool {
        self.plugins.iter().any(|plugin| plugin.capabilities.contains(capability))
    }
}

impl Plugin {
    fn new(mut configuration: Map<String, Value>) -> Result<Self, String> {
        let kind = configuration.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        if kind.is_empty() || kind.contains(['/', '\0']) || kind.starts_with('.') {
            return Err(format!("plugin \"type\" {kind:?} is no name of a binary"));
        }
        let capabilities = match configuration.remove("capabilities") {
            Some(Value::Object(flags)) => {
                flags.into_iter().filter(|(_, on)| on == true).map(|(name, _)| name).collect()
            }
            None | Some(Value::Null) => BTreeSet::new(),
            Some(other) => {
                return Err(format!("plugin {kind}: \"capabilities\" is {other}, not an object of booleans"));
            }
        };
        Ok(Self { kind, capabilities, configuration })
    }
}

fn plugin_files(directory: &Path) -> Result<Vec<Map<String, Value>>, ConfigError> {
    let mut plugins = Vec::new();
    for path in list(directory, &["conf"])? {
        plugins.push(parse(&path, &read(&path)?)?);
    }
    Ok(plugins)
}

fn supported(version: Option<&str>, more: &[String]) -> Result<Vec<String>, String> {
    let named: BTreeSet<&str> = version.into_iter().chain(more.iter().map(String::as_str)).collect();
    let usable: Vec<String> =
        VERSIONS.iter().rev().filter(|known| named.contains(**known)).map(|known| (*known).to_owned()).collect();
    if !usable.is_empty() {
        return Ok(usable);
    }
    let named = if named.is_empty() { "is missing".to_owned() } else { format!("{named:?} is not supported") };
    Err(format!("cniVersion {named}; use one of {}", VERSIONS.join(", ")))
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let failed = |why: String| ConfigError::Read { path: path.to_owned(), why };
    let size = fs::metadata(path).map_err(|e| failed(e.to_string()))?.len();
    if size > MAX_FILE {
        return Err(failed(format!("it has {size} bytes, more than {MAX_FILE}")));
    }
    fs::read_to_string(path).map_err(|e| failed(e.to_string()))
}

fn parse<T: for<'de> Deserialize<'de>>(path: &Path, text: &str) -> Result<T, ConfigError> {
    serde_json::from_str(text).map_err(|e| {
        let why = e.to_string();
        let why = why.rsplit_once(" at line ").map_or(why.as_str(), |(why, _)| why).to_owned();
        ConfigError::Invalid { path: path.to_owned(), line: e.line(), why }
    })
}

// serde_json keeps no positions of values, so the line is where the key first stands.
fn invalid(path: &Path, text: &str, key: &str, why: String) -> ConfigError {
    let quoted = format!("\"{key}\"");
    let line = text.lines().position(|line| line.contains(&quoted)).map_or(1, |index| index + 1);
    ConfigError::Invalid { path: path.to_owned(), line, why }
}

fn list(directory: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, ConfigError> {
    let failed = |e: io::Error| ConfigError::Read { path: directory.to_owned(), why: e.to_string() };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        if extensions.contains(&extension) && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// What a look at the directory found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Loaded {
    /// The pods' network.
    pub network: Option<Arc<Network>>,
    /// Files that were passed over, and why.
    pub problems: Vec<ConfigError>,
}

/// The configuration directory.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    seen: Mutex<Option<(Fingerprint, Loaded)>>,
}

type Fingerprint = Vec<(PathBuf, u64, i64, i64, u64)>;

impl Directory {
    /// Nothing is read yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), seen: Mutex::new(None) }
    }

    /// Where it looks.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The configuration as it is on disk now.
    #[must_use]
    pub fn current(&self) -> Loaded {
        let fingerprint = self.fingerprint();
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((before, loaded)) = seen
            && before == fingerprint
        {
            return loaded;
        }
        let loaded = self.load();
        for problem in &loaded.problems {
            tracing::warn!(%problem, "a CNI configuration file is not used");
        }
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some((fingerprint, loaded.clone()));
        loaded
    }

    fn load(&self) -> Loaded {
        let mut loaded = Loaded::default();
        let files = list(&self.path, &EXTENSIONS).unwrap_or_else(|problem| {
            loaded.problems.push(problem);
            Vec::new()
        });
        for file in files {
            match Network::load(&file) {
                Ok(network) => {
                    loaded.network = Some(Arc::new(network));
                    break;
                }
                Err(problem) => loaded.problems.push(problem),
            }
        }
        loaded
    }

    fn fingerprint(&self) -> Fingerprint {
        let mut files = Vec::new();
        let mut directories = vec![self.path.clone()];
        // Plugin files lie one level below, in folders named as the networks.
        directories
            .extend(fs::read_dir(&self.path).into_iter().flatten().flatten().map(|e| e.path()).filter(|p| p.is_dir()));
        for path in directories.iter().flat_map(|directory| list(directory, &EXTENSIONS).unwrap_or_default()) {
            if let Ok(data) = fs::metadata(&path) {
                files.push((path, data.ino(), data.mtime(), data.mtime_nsec(), data.len()));
            }
        }
        files
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
