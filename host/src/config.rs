//! The daemon's configuration: one struct, read from a file and its drop-in folder.
//!
//! `/etc/bulkhead/config.toml` first, then `config.d/*.toml` beside it in lexical order; a later file's values win,
//! table by table. Unknown keys are errors that name file and line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::image::ImageStoreConfig;
use crate::nri::NriConfig;
use crate::streaming::StreamingConfig;

mod handler;

pub use handler::{Accelerator, MICROVM, QEMU, RuntimeHandlerConfig, SandboxerKind};

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
    /// Jails of machines.
    pub jail: JailConfig,
    /// Runtime handlers by name.
    pub runtimes: BTreeMap<String, RuntimeHandlerConfig>,
    /// CNI.
    pub network: NetworkConfig,
    /// The Container Device Interface.
    pub cdi: CdiConfig,
    /// Exec, attach and port-forward.
    pub streaming: StreamingConfig,
    /// NRI plugins.
    pub nri: NriConfig,
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
    /// Who makes pods' cgroups; the kubelet learns it by RuntimeConfig.
    pub cgroup_driver: CgroupDriver,
    /// A tracing filter: "info", "bulkhead=debug".
    pub log: String,
    /// The handler of pods that name none; empty: "microvm" where the KVM self-test passes, else "qemu", as far as there are
    /// handlers of these names.
    pub default_runtime: String,
    /// Whether a crash of the daemon may leave a core dump. It would hold pull secrets.
    pub core_dumps: bool,
}

/// Who makes the cgroups of pods. The kubelet must use the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// The daemon, below the directory that the kubelet made.
    #[default]
    Cgroupfs,
    /// systemd, as scopes in the slice that the kubelet made.
    Systemd,
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
    /// The agent as a program of the host, for handlers of the sandboxer `native`.
    pub agent: PathBuf,
    /// Size of a pod's scratch drive in MiB; sparse.
    pub scratch_mib: u64,
    /// Longest time from the monitor's start to the agent's first word, in seconds.
    pub boot_timeout_s: u64,
}

/// `[jail]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JailConfig {
    /// Whether machines of bulkhead-vmm's own are jailed.
    pub enabled: bool,
    /// The first user id (and group id) that machines run as; nobody else on the host may have it.
    pub first_user: u32,
    /// How many there are, and so how many pods at a time.
    pub users: u32,
}

impl JailConfig {
    /// All ids.
    #[must_use]
    pub fn users(&self) -> std::ops::Range<u32> {
        self.first_user..self.first_user.saturating_add(self.users)
    }
}

impl Default for JailConfig {
    fn default() -> Self {
        Self { enabled: true, first_user: 2_000_000_000, users: 65_536 }
    }
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

/// `[cdi]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CdiConfig {
    /// Where files describe devices; a later directory's come before an earlier one's. None: there are no CDI devices.
    pub spec_dirs: Vec<PathBuf>,
}

impl Default for CdiConfig {
    fn default() -> Self {
        Self { spec_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()] }
    }
}

impl Default for DaemonConfig {
    fn default() -> Self {
        Self {
            root: "/var/lib/bulkhead".into(),
            run: "/run/bulkhead".into(),
            socket: "/run/bulkhead/bulkhead.sock".into(),
            cgroup_driver: CgroupDriver::default(),
            log: "info".into(),
            default_runtime: String::new(),
            core_dumps: false,
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
            agent: "/usr/lib/bulkhead/bulkhead-agent".into(),
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
    /// For messages about what only the host's own kernel can give: which runtime handler can.
    #[must_use]
    pub fn native_handlers(&self) -> String {
        let native = self.runtimes.iter().filter(|(_, handler)| handler.sandboxer.shares_host());
        let names: Vec<String> = native.map(|(name, _)| format!("{name:?}")).collect();
        if names.is_empty() {
            return "a runtime handler with sandboxer = \"native\" could, but none is configured".to_owned();
        }
        format!("runtime handler {} can", names.join(" or "))
    }

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
            config.runtimes.extend(RuntimeHandlerConfig::defaults());
        }
        if !own_image_root {
            config.image.root = config.daemon.root.join("images");
        }
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |text: String| Err(ConfigError::Invalid(text));
        let named = &self.daemon.default_runtime;
        if named.is_empty() && !self.runtimes.contains_key(MICROVM) && !self.runtimes.contains_key(QEMU) {
            let text = "daemon.default_runtime is empty, and there is neither [runtimes.microvm] nor [runtimes.qemu]";
            return invalid(text.to_owned());
        }
        if !named.is_empty() && !self.runtimes.contains_key(named) {
            let known: Vec<_> = self.runtimes.keys().map(String::as_str).collect();
            return invalid(format!(
                "daemon.default_runtime is {:?}, but only [runtimes.{}] exist",
                self.daemon.default_runtime,
                known.join("], [runtimes.")
            ));
        }
        for (name, handler) in &self.runtimes {
            handler.check(name).map_err(ConfigError::Invalid)?;
        }
        if let Err(text) = self.streaming.validate() {
            return invalid(text);
        }
        if let Err(text) = self.nri.validate() {
            return invalid(text);
        }
        if self.jail.first_user == 0 || self.jail.users == 0 {
            return invalid("jail.first_user and jail.users are 1 or more: machines do not run as root".into());
        }
        if let Some(path) = self.cdi.spec_dirs.iter().find(|path| !path.is_absolute()) {
            return invalid(format!("cdi.spec_dirs has {:?}; an absolute path is needed", path.display()));
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
        default.runtimes.extend(RuntimeHandlerConfig::defaults());
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
