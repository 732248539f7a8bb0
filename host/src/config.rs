//! The daemon's configuration: one struct, read from a file and its drop-in folder.
//!
//! `/etc/bulkhead/config.toml` first, then `config.d/*.toml` beside it in lexical order; a later file's values win,
//! table by table. Unknown keys are errors that name file and line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::image::ImageStoreConfig;

/// Where the configuration is looked for when no `--config` is given.
pub const DEFAULT_PATH: &str = "/etc/bulkhead/config.toml";

/// Everything that can be set.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The process itself.
    pub daemon: DaemonConfig,
    /// What runs inside a VM.
    pub guest: GuestConfig,
    /// Runtime handlers by name.
    pub runtimes: BTreeMap<String, RuntimeHandlerConfig>,
    /// CNI.
    pub network: NetworkConfig,
    /// Image store and registries.
    pub image: ImageStoreConfig,
}

/// `[daemon]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DaemonConfig {
    /// What must outlive a reboot: state and images.
    pub root: PathBuf,
    /// What must not: sockets and one directory per sandbox.
    pub run: PathBuf,
    /// The CRI socket.
    pub socket: PathBuf,
    /// A tracing filter: "info", "bulkhead=debug".
    pub log: String,
    /// The handler of pods that name none.
    pub default_runtime: String,
}

/// `[guest]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GuestConfig {
    /// An ELF `vmlinux` with PVH entry.
    pub kernel: PathBuf,
    /// Holds the agent.
    pub initramfs: PathBuf,
    /// The `bulkhead-vmm` binary; empty: beside the daemon's own.
    pub vmm: PathBuf,
    /// The `bulkhead-fs` binary; empty: beside the daemon's own.
    pub file_server: PathBuf,
    /// Size of a pod's scratch drive in MiB; sparse.
    pub scratch_mib: u64,
    /// Longest time from the monitor's start to the agent's first word, in seconds.
    pub boot_timeout_s: u64,
}

/// `[runtimes.NAME]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuntimeHandlerConfig {
    /// What carries the pod.
    pub sandboxer: SandboxerKind,
    /// How QEMU runs guest code.
    #[serde(default)]
    pub accelerator: Accelerator,
    /// The QEMU binary, looked up in PATH when it has no slash.
    #[serde(default = "default_qemu")]
    pub qemu: PathBuf,
    /// Virtual CPUs of a pod.
    #[serde(default = "default_vcpus")]
    pub vcpus: u32,
    /// Memory of a pod's guest in MiB.
    #[serde(default = "default_memory_mib")]
    pub memory_mib: u64,
    /// Appended to the guest's kernel command line.
    #[serde(default)]
    pub kernel_arguments: String,
}

/// What carries a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SandboxerKind {
    /// QEMU's microvm machine.
    Qemu,
}

/// How QEMU runs guest code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// KVM where its self-test passes, else TCG.
    #[default]
    Auto,
    /// Hardware virtualisation.
    Kvm,
    /// Software emulation; no security boundary.
    Tcg,
}

/// `[network]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkConfig {
    /// CNI configuration lists; the first in lexical order is used.
    pub conf_dir: PathBuf,
    /// CNI plugins.
    pub bin_dirs: Vec<PathBuf>,
    /// Longest run of one plugin in seconds; its process group is killed then.
    pub timeout_s: u64,
}

impl Default for DaemonConfig {
    fn default() -> Self {
        Self {
            root: "/var/lib/bulkhead".into(),
            run: "/run/bulkhead".into(),
            socket: "/run/bulkhead/bulkhead.sock".into(),
            log: "info".into(),
            default_runtime: "qemu".into(),
        }
    }
}

impl Default for GuestConfig {
    fn default() -> Self {
        Self {
            kernel: "/usr/lib/bulkhead/vmlinux".into(),
            initramfs: "/usr/lib/bulkhead/initramfs".into(),
            vmm: PathBuf::new(),
            file_server: PathBuf::new(),
            scratch_mib: 10 * 1024,
            boot_timeout_s: 60,
        }
    }
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            timeout_s: 60,
        }
    }
}

fn default_qemu() -> PathBuf {
    "qemu-system-x86_64".into()
}

fn default_vcpus() -> u32 {
    1
}

fn default_memory_mib() -> u64 {
    256
}

impl RuntimeHandlerConfig {
    /// The handler that stands when the file names none.
    #[must_use]
    pub fn qemu() -> Self {
        Self {
            sandboxer: SandboxerKind::Qemu,
            accelerator: Accelerator::Auto,
            qemu: default_qemu(),
            vcpus: default_vcpus(),
            memory_mib: default_memory_mib(),
            kernel_arguments: String::new(),
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ConfigError {
    #[error("cannot read configuration {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("configuration {} is not valid:\n{detail}", path.display())]
    Parse { path: PathBuf, detail: String },
    #[error("configuration: {0}")]
    Invalid(String),
}

impl Config {
    /// Reads `path` and its drop-ins. An explicitly named file must exist; the default one need not.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let main = path.unwrap_or(Path::new(DEFAULT_PATH));
        let mut merged = toml::Table::new();
        if path.is_some() || main.exists() {
            merge(&mut merged, read_checked(main)?);
        }
        for drop_in in drop_ins(main)? {
            merge(&mut merged, read_checked(&drop_in)?);
        }
        let own_image_root = merged.get("image").and_then(|image| image.get("root")).is_some();
        let mut config: Self = merged
            .try_into()
            .map_err(|e: toml::de::Error| ConfigError::Parse { path: main.to_owned(), detail: e.to_string() })?;
        if config.runtimes.is_empty() {
            config.runtimes.insert("qemu".into(), RuntimeHandlerConfig::qemu());
        }
        if !own_image_root {
            config.image.root = config.daemon.root.join("images");
        }
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |text: String| Err(ConfigError::Invalid(text));
        if !self.runtimes.contains_key(&self.daemon.default_runtime) {
            let known: Vec<_> = self.runtimes.keys().map(String::as_str).collect();
            return invalid(format!(
                "daemon.default_runtime is {:?}, but only [runtimes.{}] exist",
                self.daemon.default_runtime,
                known.join("], [runtimes.")
            ));
        }
        for (name, handler) in &self.runtimes {
            if handler.vcpus == 0 || handler.vcpus > 64 {
                return invalid(format!("runtimes.{name}.vcpus is {}; 1 to 64 are possible", handler.vcpus));
            }
            if handler.memory_mib < 96 {
                return invalid(format!(
                    "runtimes.{name}.memory_mib is {}; a guest needs at least 96",
                    handler.memory_mib
                ));
            }
        }
        for (key, path) in [("root", &self.daemon.root), ("run", &self.daemon.run), ("socket", &self.daemon.socket)] {
            if !path.is_absolute() {
                return invalid(format!("daemon.{key} is {:?}; an absolute path is needed", path.display()));
            }
        }
        Ok(())
    }
}

/// Parses one file on its own first, so that an error names its line in its file.
fn read_checked(path: &Path) -> Result<toml::Table, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let parse = |e: toml::de::Error| ConfigError::Parse { path: path.to_owned(), detail: e.to_string() };
    toml::from_str::<Config>(&text).map_err(parse)?;
    toml::from_str(&text).map_err(parse)
}

fn drop_ins(main: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let folder = main.with_file_name("config.d");
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(ConfigError::Read { path: folder, source }),
    };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .collect();
    files.sort();
    Ok(files)
}

fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn the_printed_default_is_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), "config.toml", crate::cli::config::DEFAULT_TEXT);
        let read = toml::to_string(&Config::load(Some(&path)).unwrap()).unwrap();
        let mut default = Config::default();
        default.runtimes.insert("qemu".into(), RuntimeHandlerConfig::qemu());
        assert_eq!(read, toml::to_string(&default).unwrap());
    }

    #[test]
    fn unknown_keys_name_file_and_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), "config.toml", "[daemon]\nlog = \"info\"\nsokcet = \"/x\"\n");
        let text = Config::load(Some(&path)).unwrap_err().to_string();
        assert!(text.contains("line 3") && text.contains("sokcet") && text.contains("config.toml"), "{text}");
    }

    #[test]
    fn drop_ins_win_table_by_table() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), "config.toml", "[daemon]\nlog = \"warn\"\nroot = \"/a\"\n");
        write(dir.path(), "config.d/10-x.toml", "[daemon]\nlog = \"debug\"\n");
        let config = Config::load(Some(&path)).unwrap();
        assert_eq!((config.daemon.log.as_str(), config.daemon.root), ("debug", PathBuf::from("/a")));
    }

    #[test]
    fn images_follow_the_root_unless_told_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), "config.toml", "[daemon]\nroot = \"/a\"\n");
        assert_eq!(Config::load(Some(&path)).unwrap().image.root, PathBuf::from("/a/images"));
        write(dir.path(), "config.d/10-x.toml", "[image]\nroot = \"/b\"\n");
        assert_eq!(Config::load(Some(&path)).unwrap().image.root, PathBuf::from("/b"));
    }

    #[test]
    fn an_unknown_default_handler_lists_those_there_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), "config.toml", "[daemon]\ndefault_runtime = \"kata\"\n");
        let text = Config::load(Some(&path)).unwrap_err().to_string();
        assert!(text.contains("kata") && text.contains("[runtimes.qemu]"), "{text}");
    }
}
