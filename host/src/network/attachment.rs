//! Attaching a pod to a network: ADD of every plugin in order, CHECK, and DEL in reverse.
//!
//! A record per pod stands on disk from before the first ADD until after the last DEL. It holds the configuration as it
//! was run, so DEL is complete after a crash, a restart or a changed configuration; no record means nothing to undo.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::config::{Network, Plugin};
use super::plugin::{Call, PluginError, Runner, excerpt};
use super::record_file;
use super::result::Answer;
use crate::sys::netns;

const FORMAT: u32 = 1;

/// A pod could not be attached to or detached from its network.
#[derive(Debug, thiserror::Error)]
pub enum AttachmentError {
    /// A plugin's failure.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// Plugins of one list share no version.
    #[error("network {network} ({file}): its plugins support no common version of {versions}")]
    Version {
        /// The network.
        network: String,
        /// Its configuration file.
        file: PathBuf,
        /// Those the network names.
        versions: String,
    },
    /// The record on disk.
    #[error("cannot {action} the CNI record {path}")]
    Record {
        /// What was tried.
        action: &'static str,
        /// The record.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An id that is no file name.
    #[error("{id:?} is no pod sandbox id (letters, digits, '-', '_' and '.')")]
    Id {
        /// As given.
        id: String,
    },
    /// CHECK of a pod that was never attached.
    #[error("pod sandbox {id} is attached to no network")]
    NotAttached {
        /// The pod sandbox.
        id: String,
    },
}

/// What is attached where; everything that DEL needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    format: u32,
    /// CNI_CONTAINERID.
    pub sandbox_id: String,
    /// The network as it was when ADD ran.
    pub network: Network,
    /// The version that its plugins are run with; set before the first ADD.
    pub version: String,
    /// Path of the pod's network namespace.
    pub netns: PathBuf,
    /// CNI_IFNAME.
    pub interface: String,
    /// CNI_ARGS.
    pub arguments: String,
    /// Values for `runtimeConfig`, by capability.
    pub capabilities: Map<String, Value>,
    /// Plugins whose ADD was begun.
    begun: usize,
    /// The answer of the last ADD that succeeded.
    result: Option<Value>,
}

impl Attachment {
    /// Nothing has been run yet.
    #[must_use]
    pub fn new(
        sandbox_id: &str,
        network: &Network,
        netns: &Path,
        interface: &str,
        arguments: String,
        capabilities: Map<String, Value>,
    ) -> Self {
        Self {
            format: FORMAT,
            sandbox_id: sandbox_id.to_owned(),
            network: network.clone(),
            version: String::new(),
            netns: netns.to_owned(),
            interface: interface.to_owned(),
            arguments,
            capabilities,
            begun: 0,
            result: None,
        }
    }

    fn call(&self, command: &'static str, plugin: &Plugin) -> Call {
        call(command, plugin, &self.network)
    }

    fn environment(&self) -> Vec<(&'static str, OsString)> {
        // A namespace that is gone is told by an empty path, as the specification has it for DEL.
        let netns = if netns::exists(&self.netns) { self.netns.clone().into_os_string() } else { OsString::new() };
        vec![
            ("CNI_CONTAINERID", self.sandbox_id.clone().into()),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", self.interface.clone().into()),
            ("CNI_ARGS", self.arguments.clone().into()),
        ]
    }

    fn input(&self, plugin: &Plugin, previous: Option<&Value>) -> Vec<u8> {
        let wanted = self.capabilities.iter().filter(|(name, _)| plugin.capabilities.contains(*name));
        let runtime: Map<String, Value> = wanted.map(|(name, value)| (name.clone(), value.clone())).collect();
        let mut input = base_input(plugin, &self.network, &self.version);
        if !runtime.is_empty() {
            input.insert("runtimeConfig".to_owned(), Value::Object(runtime));
        }
        if let Some(previous) = previous {
            input.insert("prevResult".to_owned(), previous.clone());
        }
        Value::Object(input).to_string().into_bytes()
    }

    // Before 0.4.0 DEL and CHECK knew no previous result.
    fn previous(&self) -> Option<&Value> {
        self.result.as_ref().filter(|_| !self.version.starts_with("0.3."))
    }
}

fn call(command: &'static str, plugin: &Plugin, network: &Network) -> Call {
    Call {
        command,
        plugin: plugin.kind.as_str().into(),
        network: network.name.as_str().into(),
        file: network.file.as_path().into(),
    }
}

fn base_input(plugin: &Plugin, network: &Network, version: &str) -> Map<String, Value> {
    let mut input = plugin.configuration.clone();
    input.insert("name".to_owned(), Value::String(network.name.clone()));
    input.insert("cniVersion".to_owned(), Value::String(version.to_owned()));
    input
}

/// Runs networks' plugins and keeps the records.
#[derive(Debug)]
pub struct Attacher {
    runner: Runner,
    records: PathBuf,
    // The last network that needed asking, and the version its plugins agreed on.
    agreed: Mutex<Option<(Network, String)>>,
}

impl Attacher {
    /// `records` is a directory below the daemon's root, kept over reboots: address plugins keep theirs too.
    #[must_use]
    pub fn new(runner: Runner, records: &Path) -> Self {
        Self { runner, records: records.to_owned(), agreed: Mutex::new(None) }
    }

    /// ADD of every plugin. On failure what was begun is undone by DEL in reverse; should that fail too, the record stays
    /// for [`Attacher::delete`].
    ///
    /// # Errors
    /// The failing plugin's, or the record's.
    pub async fn add(&self, mut attachment: Attachment) -> Result<(Value, Answer), AttachmentError> {
        attachment.version = self.agree(&attachment.network).await?;
        match self.add_all(&mut attachment).await {
            Ok(done) => Ok(done),
            Err(error) => {
                if let Err(undo) = self.delete(&attachment.sandbox_id).await {
                    let id = &attachment.sandbox_id;
                    tracing::warn!(sandbox = %id, error = %undo, "undoing a failed CNI ADD failed too; it will be tried again");
                }
                Err(error)
            }
        }
    }

    async fn add_all(&self, attachment: &mut Attachment) -> Result<(Value, Answer), AttachmentError> {
        let plugins = attachment.network.plugins.clone();
        let mut last = (Value::Null, Answer::default());
        // A missing plugin could not clean up either: found out while there is nothing to clean up.
        for plugin in &plugins {
            self.runner.find(&attachment.call("ADD", plugin))?;
        }
        for plugin in &plugins {
            attachment.begun += 1;
            self.save(attachment).await?;
            let call = attachment.call("ADD", plugin);
            let input = attachment.input(plugin, attachment.result.as_ref());
            let output = self.runner.run(&call, &attachment.environment(), &input).await?;
            last = read_answer(call, &output)?;
            attachment.result = Some(last.0.clone());
        }
        self.save(attachment).await?;
        Ok(last)
    }

    /// CHECK of every plugin. Nothing to do where the network disables it or its version has none (before 0.4.0).
    ///
    /// # Errors
    /// The first plugin that finds the pod's network changed.
    pub async fn check(&self, id: &str) -> Result<(), AttachmentError> {
        let attachment = self.load(id).await?.ok_or_else(|| AttachmentError::NotAttached { id: id.to_owned() })?;
        if attachment.network.disable_check || attachment.version.starts_with("0.3.") {
            return Ok(());
        }
        for plugin in &attachment.network.plugins {
            let call = attachment.call("CHECK", plugin);
            let input = attachment.input(plugin, attachment.previous());
            self.runner.run(&call, &attachment.environment(), &input).await?;
        }
        Ok(())
    }

    /// DEL of every plugin whose ADD was begun, in reverse. A plugin that fails does not keep the others from cleaning up;
    /// the record then stays, so that it can be repeated. Without a record there is nothing to do.
    ///
    /// # Errors
    /// The first failure.
    pub async fn delete(&self, id: &str) -> Result<(), AttachmentError> {
        // Without a record nothing was begun, but a daemon that was killed may have left half of one.
        let Some(attachment) = self.load(id).await? else { return self.forget(id).await };
        let mut first = None;
        for plugin in attachment.network.plugins.iter().take(attachment.begun).rev() {
            let call = attachment.call("DEL", plugin);
            let input = attachment.input(plugin, attachment.previous());
            if let Err(error) = self.runner.run(&call, &attachment.environment(), &input).await {
                tracing::warn!(sandbox = %id, %error, "a CNI plugin could not clean up");
                first.get_or_insert(error);
            }
        }
        match first {
            Some(error) => Err(error.into()),
            None => self.forget(id).await,
        }
    }

    /// STATUS of every plugin, where the version has it (1.1.0).
    ///
    /// # Errors
    /// The first plugin that is not ready for ADD.
    pub async fn status(&self, network: &Network) -> Result<(), AttachmentError> {
        let version = self.agree(network).await?;
        if version != "1.1.0" {
            return Ok(());
        }
        for plugin in &network.plugins {
            let input = Value::Object(base_input(plugin, network, &version)).to_string();
            self.runner.run(&call("STATUS", plugin, network), &[], input.as_bytes()).await?;
        }
        Ok(())
    }

    /// Ids of all pods that have a record.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn attached(&self) -> Result<Vec<String>, AttachmentError> {
        let failed = |source| AttachmentError::Record { action: "list", path: self.records.clone(), source };
        let entries = match std::fs::read_dir(&self.records) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            ids.extend(name.to_str().and_then(|name| name.strip_suffix(".json")).map(str::to_owned));
        }
        Ok(ids)
    }

    // With a choice of versions, the newest that every plugin claims.
    async fn agree(&self, network: &Network) -> Result<String, AttachmentError> {
        let failed = || AttachmentError::Version {
            network: network.name.clone(),
            file: network.file.clone(),
            versions: network.versions.join(", "),
        };
        if let [only] = network.versions.as_slice() {
            return Ok(only.clone());
        }
        let known = self.agreed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((asked, version)) = known
            && asked == *network
        {
            return Ok(version);
        }
        let mut common = network.versions.clone();
        for plugin in &network.plugins {
            let claimed = self.versions_of(network, plugin).await?;
            common.retain(|version| claimed.contains(version));
        }
        let version = common.into_iter().next().ok_or_else(failed)?;
        *self.agreed.lock().unwrap_or_else(PoisonError::into_inner) = Some((network.clone(), version.clone()));
        Ok(version)
    }

    async fn versions_of(&self, network: &Network, plugin: &Plugin) -> Result<Vec<String>, AttachmentError> {
        #[derive(Deserialize)]
        struct Claim {
            #[serde(rename = "supportedVersions")]
            supported: Vec<String>,
        }
        let call = call("VERSION", plugin, network);
        let newest = network.versions.first().map(String::as_str).unwrap_or_default();
        let input = Value::Object(base_input(plugin, network, newest)).to_string();
        let output = self.runner.run(&call, &[], input.as_bytes()).await?;
        let claim: Claim = serde_json::from_slice(&output).map_err(|e| broken(call, &e.to_string(), &output))?;
        Ok(claim.supported)
    }

    fn path(&self, id: &str) -> Result<PathBuf, AttachmentError> {
        if !record_file::is_plain(id) {
            return Err(AttachmentError::Id { id: id.to_owned() });
        }
        Ok(self.records.join(format!("{id}.json")))
    }

    async fn load(&self, id: &str) -> Result<Option<Attachment>, AttachmentError> {
        let path = self.path(id)?;
        let failed = |source| AttachmentError::Record { action: "read", path: path.clone(), source };
        let bytes = match tokio::fs::read(&path).await {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.map_err(failed)?,
        };
        let attachment: Attachment = serde_json::from_slice(&bytes).map_err(|e| failed(e.into()))?;
        if attachment.format != FORMAT {
            let why = format!("its format {} is not {FORMAT}", attachment.format);
            return Err(failed(io::Error::new(io::ErrorKind::InvalidData, why)));
        }
        Ok(Some(attachment))
    }

    async fn save(&self, attachment: &Attachment) -> Result<(), AttachmentError> {
        let path = self.path(&attachment.sandbox_id)?;
        let failed = |source| AttachmentError::Record { action: "write", path: path.clone(), source };
        let bytes = serde_json::to_vec(attachment).map_err(|e| failed(e.into()))?;
        let (directory, target) = (self.records.clone(), path.clone());
        let write = tokio::task::spawn_blocking(move || record_file::replace(&directory, &target, &bytes));
        write.await.map_err(|e| failed(e.into()))?.map_err(failed)
    }

    async fn forget(&self, id: &str) -> Result<(), AttachmentError> {
        let path = self.path(id)?;
        let target = path.clone();
        let failed = |source| AttachmentError::Record { action: "remove", path, source };
        match tokio::task::spawn_blocking(move || record_file::remove(&target)).await {
            Ok(removed) => removed.map_err(failed)?,
            Err(error) => return Err(failed(error.into())),
        }
        Ok(())
    }
}

fn read_answer(call: Call, output: &[u8]) -> Result<(Value, Answer), PluginError> {
    let value: Value = serde_json::from_slice(output)
        .map_err(|e| broken(call.clone(), &format!("its answer is no JSON ({e})"), output))?;
    let answer = Answer::parse(&value).map_err(|why| broken(call, &why, output))?;
    Ok((value, answer))
}

fn broken(call: Call, why: &str, output: &[u8]) -> PluginError {
    PluginError::Broken { call, why: format!("{why}: {:?}", excerpt(output)), stderr: String::new() }
}
