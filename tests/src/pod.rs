//! Pods and containers as a test thinks of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use bulkhead_proto::cri;

use crate::cri::{CallError, Cri};
use crate::logs::{self, Line};
use crate::wait;

/// A container of a test ends within this time.
pub const END: Duration = Duration::from_secs(60);

/// A running sandbox.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its id.
    pub id: String,
    /// As it was asked for.
    pub config: cri::PodSandboxConfig,
    cri: Rc<Cri>,
}

/// A container that was created.
#[derive(Debug, Clone)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// On the host.
    pub log: PathBuf,
    cri: Rc<Cri>,
}

/// What a container that ran to its end left.
#[derive(Debug)]
pub struct Outcome {
    /// Its exit code.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// The status after its end.
    pub status: cri::ContainerStatus,
}

/// A container to be made.
#[derive(Debug, Clone)]
pub struct Spec(
    /// Goes to the daemon as it is.
    pub cri::ContainerConfig,
);

impl Spec {
    /// `command` in `image`; an empty command leaves the image's own.
    #[must_use]
    pub fn new(image: &str, command: &[&str]) -> Self {
        Self(cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "main".into(), attempt: 0 }),
            image: Some(cri::ImageSpec { image: image.to_owned(), ..Default::default() }),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            log_path: "main_0.log".into(),
            linux: Some(cri::LinuxContainerConfig::default()),
            ..Default::default()
        })
    }

    /// `sh -c SCRIPT`
    #[must_use]
    pub fn shell(image: &str, script: &str) -> Self {
        Self::new(image, &["sh", "-c", script])
    }

    /// Gives it a name and a log of that name.
    #[must_use]
    pub fn named(self, name: &str) -> Self {
        self.with(|config| {
            config.metadata = Some(cri::ContainerMetadata { name: name.to_owned(), attempt: 0 });
            config.log_path = format!("{name}_0.log");
        })
    }

    /// Changes the request itself.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut cri::ContainerConfig)) -> Self {
        change(&mut self.0);
        self
    }

    /// Changes its Linux part.
    #[must_use]
    pub fn linux(self, change: impl FnOnce(&mut cri::LinuxContainerConfig)) -> Self {
        self.with(|config| change(config.linux.get_or_insert_default()))
    }

    /// Changes its security context.
    #[must_use]
    pub fn security(self, change: impl FnOnce(&mut cri::LinuxContainerSecurityContext)) -> Self {
        self.linux(|linux| change(linux.security_context.get_or_insert_default()))
    }

    /// Changes its limits.
    #[must_use]
    pub fn resources(self, change: impl FnOnce(&mut cri::LinuxContainerResources)) -> Self {
        self.linux(|linux| change(linux.resources.get_or_insert_default()))
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn env(self, key: &str, value: &str) -> Self {
        self.with(|config| config.envs.push(cri::KeyValue { key: key.to_owned(), value: value.into() }))
    }

    /// Adds a volume.
    #[must_use]
    pub fn mount(self, host: &Path, container: &str, readonly: bool) -> Self {
        self.with(|config| {
            config.mounts.push(cri::Mount {
                host_path: host.to_string_lossy().into_owned(),
                container_path: container.to_owned(),
                readonly,
                ..Default::default()
            });
        })
    }
}

impl Pod {
    /// Runs a sandbox.
    ///
    /// # Errors
    /// The daemon's status.
    pub fn run(cri: &Rc<Cri>, config: cri::PodSandboxConfig, handler: &str) -> Result<Self, CallError> {
        let request = cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.to_owned() };
        let id = cri.run_pod_sandbox(request)?.pod_sandbox_id;
        Ok(Self { id, config, cri: cri.clone() })
    }

    /// Creates a container.
    ///
    /// # Errors
    /// The daemon's status.
    pub fn create(&self, spec: &Spec) -> Result<Container, CallError> {
        let id = self.cri.create_container(self.creation(spec))?.container_id;
        let log = Path::new(&self.config.log_directory).join(&spec.0.log_path);
        Ok(Container { id, log, cri: self.cri.clone() })
    }

    /// What [`Self::create`] asks for.
    #[must_use]
    pub fn creation(&self, spec: &Spec) -> cri::CreateContainerRequest {
        cri::CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(spec.0.clone()),
            sandbox_config: Some(self.config.clone()),
        }
    }

    /// Creates a container and starts it.
    ///
    /// # Errors
    /// The daemon's status.
    pub fn start(&self, spec: &Spec) -> Result<Container, CallError> {
        let container = self.create(spec)?;
        container.start()?;
        Ok(container)
    }

    /// Runs a container to its end and removes it.
    ///
    /// # Errors
    /// The daemon's status, or when it does not end.
    pub fn once(&self, spec: &Spec) -> Result<Outcome> {
        let container = self.start(spec)?;
        let outcome = container.finish()?;
        container.remove()?;
        fs::remove_file(&container.log).with_context(|| format!("no log at {}", container.log.display()))?;
        Ok(outcome)
    }

    /// Its first address.
    ///
    /// # Errors
    /// When it has none.
    pub fn address(&self) -> Result<String> {
        let network = self.status()?.network.context("the sandbox's status has no network")?;
        Ok(network.ip)
    }

    /// PodSandboxStatus
    ///
    /// # Errors
    /// The daemon's status.
    pub fn status(&self) -> Result<cri::PodSandboxStatus> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: self.id.clone(), verbose: false };
        self.cri.pod_sandbox_status(request)?.status.context("an empty PodSandboxStatus")
    }

    /// Stops it and removes it.
    ///
    /// # Errors
    /// The daemon's status.
    pub fn remove(&self) -> Result<(), CallError> {
        self.cri.remove_pod(&self.id)
    }
}

impl Container {
    /// StartContainer
    ///
    /// # Errors
    /// The daemon's status.
    pub fn start(&self) -> Result<(), CallError> {
        self.cri.start_container(cri::StartContainerRequest { container_id: self.id.clone() }).map(drop)
    }

    /// StopContainer with `seconds` of grace.
    ///
    /// # Errors
    /// The daemon's status.
    pub fn stop(&self, seconds: i64) -> Result<(), CallError> {
        let request = cri::StopContainerRequest { container_id: self.id.clone(), timeout: seconds };
        self.cri.stop_container(request).map(drop)
    }

    /// RemoveContainer
    ///
    /// # Errors
    /// The daemon's status.
    pub fn remove(&self) -> Result<(), CallError> {
        self.cri.remove_container(cri::RemoveContainerRequest { container_id: self.id.clone() }).map(drop)
    }

    /// ContainerStatus
    ///
    /// # Errors
    /// The daemon's status.
    pub fn status(&self) -> Result<cri::ContainerStatus> {
        let request = cri::ContainerStatusRequest { container_id: self.id.clone(), verbose: false };
        self.cri.container_status(request)?.status.context("an empty ContainerStatus")
    }

    /// ExecSync, at most 30 seconds.
    ///
    /// # Errors
    /// The daemon's status; a failure of the command is in the answer.
    pub fn exec(&self, command: &[&str]) -> Result<Executed, CallError> {
        let request = cri::ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout: 30,
        };
        let answer = self.cri.exec_sync(request)?;
        Ok(Executed {
            code: answer.exit_code,
            stdout: String::from_utf8_lossy(&answer.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&answer.stderr).into_owned(),
        })
    }

    /// Waits until it has ended; gives the status then.
    ///
    /// # Errors
    /// When it does not end.
    pub fn ended(&self, limit: Duration) -> Result<cri::ContainerStatus> {
        wait::until(&format!("the end of container {}", self.id), limit, || {
            let status = self.status()?;
            Ok((status.state == cri::ContainerState::ContainerExited as i32).then_some(status))
        })
    }

    /// Waits until it has ended; gives what it left.
    ///
    /// # Errors
    /// As [`Self::ended`], or when the log is not in CRI format.
    pub fn finish(&self) -> Result<Outcome> {
        let status = self.ended(END)?;
        let lines = self.lines()?;
        Ok(Outcome {
            code: status.exit_code,
            stdout: logs::text_of(&lines, "stdout"),
            stderr: logs::text_of(&lines, "stderr"),
            status,
        })
    }

    /// Its log until now.
    ///
    /// # Errors
    /// When there is none or it is not in CRI format.
    pub fn lines(&self) -> Result<Vec<Line>> {
        let text = fs::read(&self.log).with_context(|| format!("cannot read the log {}", self.log.display()))?;
        logs::parse(&String::from_utf8_lossy(&text))
    }

    /// Waits until its standard output has `text`.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn says(&self, text: &str) -> Result<()> {
        wait::until(&format!("{text:?} in the log of container {}", self.id), END, || {
            // A line may be half written at any moment.
            let log = String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned();
            Ok(log.contains(text).then_some(()))
        })
    }
}

/// What a command in a container left.
#[derive(Debug)]
pub struct Executed {
    /// Its exit code.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}
