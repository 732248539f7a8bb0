//! The real crictl with a configuration file of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use bulkhead_proto::cri;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::command::{self, Output};

const LIMIT: Duration = Duration::from_secs(200);

/// crictl for one daemon.
#[derive(Debug)]
pub struct Crictl {
    program: PathBuf,
    config: PathBuf,
    directory: PathBuf,
}

/// What `crictl ps -o json` says of a container.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedContainer {
    /// Full.
    pub id: String,
    /// "CONTAINER_RUNNING"
    pub state: String,
    /// Full.
    pub pod_sandbox_id: String,
    /// As it was asked for.
    pub metadata: Metadata,
}

/// What `crictl pods -o json` says of a sandbox.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedPod {
    /// Full.
    pub id: String,
    /// "SANDBOX_READY"
    pub state: String,
    /// As it was asked for.
    pub metadata: Metadata,
    /// As they were asked for.
    #[serde(default)]
    pub labels: std::collections::BTreeMap<String, String>,
}

/// The part of metadata that pods and containers share.
#[derive(Debug, Deserialize)]
pub struct Metadata {
    /// Of the pod or container.
    pub name: String,
}

impl Crictl {
    /// For the daemon at `socket`; files go below `directory`.
    ///
    /// # Errors
    /// When the configuration cannot be written.
    pub fn new(program: &Path, socket: &Path, directory: &Path) -> Result<Self> {
        let directory = directory.join("crictl");
        fs::create_dir_all(&directory)?;
        let config = directory.join("crictl.yaml");
        let socket = socket.display();
        let text = format!("runtime-endpoint: unix://{socket}\nimage-endpoint: unix://{socket}\ntimeout: 180\n");
        fs::write(&config, text)?;
        Ok(Self { program: program.to_owned(), config, directory })
    }

    /// Runs crictl.
    ///
    /// # Errors
    /// When it cannot be started or does not end; a failure of crictl is in the output.
    pub fn run(&self, arguments: &[&str]) -> Result<Output> {
        command::run_command(&mut self.command(arguments), LIMIT)
    }

    /// Runs crictl with `input` to read.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_with_input(&self, arguments: &[&str], input: &[u8]) -> Result<Output> {
        let path = self.directory.join("input");
        fs::write(&path, input)?;
        command::run_with_input(&mut self.command(arguments), fs::File::open(path)?, LIMIT)
    }

    /// The command line, not yet started.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(&self.config).args(arguments);
        command
    }

    /// Starts a crictl that does not end by itself; what it says goes to `output`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, arguments: &[&str], output: fs::File) -> Result<std::process::Child> {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(&self.config).args(arguments).stdin(std::process::Stdio::null());
        Ok(command.stderr(output.try_clone()?).stdout(output).spawn()?)
    }

    /// What a successful run printed, without white space around it.
    ///
    /// # Errors
    /// When crictl fails.
    pub fn ok(&self, arguments: &[&str]) -> Result<String> {
        Ok(self.run(arguments)?.success()?.stdout.trim().to_owned())
    }

    /// A successful run's JSON.
    ///
    /// # Errors
    /// When crictl fails or prints something else.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.ok(arguments)?;
        serde_json::from_str(&text).with_context(|| format!("crictl {arguments:?} printed no JSON: {text}"))
    }

    /// `crictl ps -a`
    ///
    /// # Errors
    /// When crictl fails.
    pub fn containers(&self) -> Result<Vec<ListedContainer>> {
        let mut listed = self.json(&["ps", "-a", "-o", "json"])?;
        Ok(serde_json::from_value(listed["containers"].take())?)
    }

    /// `crictl pods`
    ///
    /// # Errors
    /// When crictl fails.
    pub fn pods(&self) -> Result<Vec<ListedPod>> {
        let mut listed = self.json(&["pods", "-o", "json"])?;
        Ok(serde_json::from_value(listed["items"].take())?)
    }

    /// Writes a request as a file that crictl takes.
    ///
    /// # Errors
    /// When that fails.
    pub fn file(&self, name: &str, content: &Value) -> Result<String> {
        let path = self.directory.join(name);
        fs::write(&path, content.to_string())?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// Writes a sandbox's configuration.
    ///
    /// # Errors
    /// When that fails.
    pub fn pod_file(&self, config: &cri::PodSandboxConfig) -> Result<String> {
        let metadata = config.metadata.clone().unwrap_or_default();
        let parent = config.linux.as_ref().map_or("", |linux| linux.cgroup_parent.as_str());
        let content = json!({
            "metadata": { "name": metadata.name, "uid": metadata.uid, "namespace": metadata.namespace, "attempt": metadata.attempt },
            "hostname": config.hostname,
            "log_directory": config.log_directory,
            "labels": config.labels,
            "annotations": config.annotations,
            "linux": { "cgroup_parent": parent },
        });
        self.file(&format!("pod-{}.json", metadata.name), &content)
    }
}
