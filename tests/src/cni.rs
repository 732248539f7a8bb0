//! A CNI network of a suite's own: a bridge and a subnet that nothing else uses.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use crate::command;
use crate::suite::Skipped;

/// Where distributions put the reference plugins.
const PLUGIN_DIRECTORIES: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// Files and names of one network. Its bridge is removed when dropped.
#[derive(Debug)]
pub struct Network {
    /// `network.conf_dir`
    pub conf_dir: PathBuf,
    /// `network.bin_dirs`: first a directory for plugins of a suite's own.
    pub bin_dirs: [PathBuf; 2],
    /// The host's end of every pod's cable.
    pub bridge: String,
    /// "10.1.2", without the last number.
    pub prefix: String,
    directory: PathBuf,
}

impl Network {
    /// Writes the configuration below `directory`.
    ///
    /// # Errors
    /// [`Skipped`] without the reference plugins; else when files cannot be written.
    pub fn create(directory: &Path) -> Result<Self> {
        let plugins =
            PLUGIN_DIRECTORIES.iter().find(|d| ["bridge", "host-local"].iter().all(|p| Path::new(d).join(p).exists()));
        let plugins = plugins
            .ok_or_else(|| Skipped::because("no CNI plugins are installed (package containernetworking-plugins)"))?;
        let own = directory.join("cni-bin");
        let network = Self {
            conf_dir: directory.join("cni"),
            bin_dirs: [own.clone(), plugins.into()],
            bridge: format!("bt{}", process::id()),
            prefix: free_prefix()?,
            directory: directory.to_owned(),
        };
        fs::create_dir_all(&network.conf_dir)?;
        fs::create_dir_all(own)?;
        // What an interrupted run leaves is found by these two files.
        fs::write(directory.join("bridge"), &network.bridge)?;
        network.configure(&network.bridge_list())?;
        Ok(network)
    }

    /// The configuration that works.
    #[must_use]
    pub fn bridge_list(&self) -> serde_json::Value {
        json!({
            "cniVersion": "1.0.0",
            "name": self.bridge,
            "plugins": [{
                "type": "bridge",
                "bridge": self.bridge,
                "isGateway": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": self.address_directory(),
                    "ranges": [[{ "subnet": format!("{}.0/24", self.prefix) }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
                "dns": { "nameservers": [self.gateway()] },
            }],
        })
    }

    /// Replaces the configuration by `list`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn configure(&self, list: &serde_json::Value) -> Result<()> {
        let written = self.conf_dir.join("10-test.conflist.new");
        fs::write(&written, format!("{list:#}\n"))?;
        Ok(fs::rename(written, self.conf_dir.join("10-test.conflist"))?)
    }

    /// Takes the configuration away.
    ///
    /// # Errors
    /// When it is not there.
    pub fn unconfigure(&self) -> Result<()> {
        Ok(fs::remove_file(self.conf_dir.join("10-test.conflist"))?)
    }

    /// Installs a plugin of a suite's own: a shell script.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn plugin(&self, name: &str, script: &str) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let path = self.bin_dirs[0].join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n"))?;
        Ok(fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?)
    }

    /// The bridge's own address.
    #[must_use]
    pub fn gateway(&self) -> String {
        format!("{}.1", self.prefix)
    }

    /// Addresses that the plugin host-local holds as taken.
    #[must_use]
    pub fn taken_addresses(&self) -> Vec<String> {
        let entries = fs::read_dir(self.address_directory().join(&self.bridge)).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with(&self.prefix)).collect()
    }

    fn address_directory(&self) -> PathBuf {
        self.directory.join("addresses")
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        remove_bridge(&self.bridge);
    }
}

/// Deletes a bridge, if it exists.
pub fn remove_bridge(name: &str) {
    if Path::new("/sys/class/net").join(name).exists() {
        // A bridge that stays is found by the next suite's look at the links.
        let _ = command::run("ip", &["link", "delete", name], Duration::from_secs(10));
    }
}

/// A /24 of 10.128.0.0/9 that no route of this host touches.
fn free_prefix() -> Result<String> {
    let routes =
        command::run("ip", &["-4", "route", "show", "table", "all"], Duration::from_secs(10))?.success()?.stdout;
    let seed = process::id() as usize;
    (0..1000)
        .map(|attempt| (seed + attempt * 7) % (128 * 256))
        .map(|number| format!("10.{}.{}", 128 + number / 256, number % 256))
        .find(|prefix| !routes.contains(&format!("{prefix}.")))
        .context("no free subnet in 10.128.0.0/9")
}
