//! What most suites stand on: a daemon, a registry filled with images, a network, and proof that nothing stays.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process;
use std::rc::Rc;

use anyhow::{Context, Result};
use bulkhead_proto::cri;
use tempfile::TempDir;

use crate::cni::Network;
use crate::cri::{CallError, Cri};
use crate::crictl::Crictl;
use crate::daemon::{Daemon, Settings, tail};
use crate::environment::Environment;
use crate::images::busybox;
use crate::images::catalogue::Catalogue;
use crate::leaks::{self, Scope, Snapshot, sweep};
use crate::pod::{Pod, Spec};
use crate::registry::Registry;
use crate::suite::SuiteFixture;

/// One suite's world.
#[derive(Debug)]
pub struct Fixture {
    /// Where the binaries are.
    pub environment: Environment,
    /// The daemon.
    pub daemon: Daemon,
    /// A registry with the images of the [`Catalogue`].
    pub registry: Registry,
    /// The pods' network.
    pub network: Network,
    /// Everything is below it.
    pub directory: TempDir,
    /// Parent of the pods' cgroups.
    pub cgroup: String,
    before: Snapshot,
    kept: BTreeSet<String>,
    pods: Cell<u32>,
    /// Length of the daemon's log before the present case.
    logged: u64,
}

impl Fixture {
    /// Typed requests to the daemon.
    #[must_use]
    pub fn cri(&self) -> &Rc<Cri> {
        &self.daemon.cri
    }

    /// Below the fixture's directory; removed with it.
    #[must_use]
    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    /// crictl for the daemon.
    ///
    /// # Errors
    /// [`crate::suite::Skipped`] when there is none.
    pub fn crictl(&self) -> Result<Crictl> {
        Crictl::new(self.environment.crictl()?, &self.daemon.settings.socket(), self.directory.path())
    }

    /// The full name of an image of the catalogue, which is pulled if need be.
    ///
    /// # Errors
    /// When the pull fails.
    pub fn image(&self, name: &str) -> Result<String, CallError> {
        let full = self.registry.image(name);
        if self.cri().find_image(&full)?.is_none() {
            self.cri().pull(&full)?;
        }
        Ok(full)
    }

    /// A container with `sh -c SCRIPT` in busybox.
    ///
    /// # Errors
    /// When the pull fails.
    pub fn shell(&self, script: &str) -> Result<Spec, CallError> {
        Ok(Spec::shell(&self.image("busybox")?, script))
    }

    /// A sandbox's configuration: names, log directory and cgroup parent.
    #[must_use]
    pub fn pod_config(&self, name: &str) -> cri::PodSandboxConfig {
        let number = self.pods.replace(self.pods.get() + 1);
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-{number}"),
                namespace: "tests".into(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: self.path("logs").join(format!("{name}-{number}")).to_string_lossy().into_owned(),
            linux: Some(cri::LinuxPodSandboxConfig { cgroup_parent: self.cgroup.clone(), ..Default::default() }),
            ..Default::default()
        }
    }

    /// Runs a sandbox that is removed after the case.
    ///
    /// # Errors
    /// The daemon's status.
    pub fn pod(&self, name: &str) -> Result<Pod, CallError> {
        Pod::run(self.cri(), self.pod_config(name), "")
    }

    /// Keeps a sandbox for the cases that follow.
    pub fn keep(&mut self, pod: &Pod) {
        self.kept.insert(pod.id.clone());
    }

    /// Removes every sandbox but the kept ones.
    ///
    /// # Errors
    /// The daemon's status.
    pub fn remove_pods(&self, kept: &BTreeSet<String>) -> Result<()> {
        for pod in self.cri().pods()?.into_iter().filter(|pod| !kept.contains(&pod.id)) {
            self.cri().remove_pod(&pod.id)?;
        }
        Ok(())
    }

    /// What belongs to this suite; the daemon and the registry may stay.
    #[must_use]
    pub fn scope(&self) -> Scope {
        Scope {
            directory: self.directory.path().to_owned(),
            cgroup: self.cgroup.clone(),
            bridge: self.network.bridge.clone(),
            prefix: self.network.prefix.clone(),
            expected: self.daemon.pid().into_iter().chain([self.registry.pid()]).collect(),
        }
    }

    /// Proves that all that pods had is given back, while the daemon runs.
    ///
    /// # Errors
    /// What is left.
    pub fn assert_nothing_left(&self) -> Result<()> {
        leaks::assert_none(&self.scope(), None, &self.before)
    }

    fn show_logs(&self) {
        println!("    daemon's log:\n{}", tail(&self.daemon.log(), self.logged, 40));
        for sandbox in leaks::host::names(self.path("run/sandboxes")) {
            let directory = self.path("run/sandboxes").join(&sandbox);
            for name in ["vmm.log", "console.log"] {
                println!("    {sandbox}/{name}, last lines:\n{}", tail(&directory.join(name), 0, 15));
            }
        }
    }
}

impl Fixture {
    /// Starts one whose registry is filled, and whose settings are changed, by `prepare`.
    ///
    /// # Errors
    /// As [`SuiteFixture::start`].
    pub fn start_with(
        environment: &Environment,
        prepare: impl FnOnce(&Registry, &mut Settings) -> Result<()>,
    ) -> Result<Self> {
        sweep::sweep_abandoned()?;
        let directory = tempfile::Builder::new().prefix(sweep::PREFIX).tempdir()?;
        let cgroup = format!("/bulkhead-tests-{}", process::id());
        fs::write(directory.path().join(sweep::OWNER), process::id().to_string())?;
        fs::write(directory.path().join("cgroup"), &cgroup)?;
        let registry = Registry::start(&make(directory.path(), "registry")?)?;
        let network = Network::create(directory.path())?;
        let mut settings = Settings::new(environment, &network, directory.path());
        prepare(&registry, &mut settings)?;
        let daemon = Daemon::start(environment, settings)?;
        let mut fixture = Self {
            environment: environment.clone(),
            daemon,
            registry,
            network,
            directory,
            cgroup,
            before: Snapshot::default(),
            kept: BTreeSet::new(),
            pods: Cell::new(0),
            logged: 0,
        };
        fixture.before = Snapshot::take(&fixture.scope(), fixture.daemon.pid());
        Ok(fixture)
    }
}

impl SuiteFixture for Fixture {
    fn start(environment: &Environment) -> Result<Self> {
        let busybox = busybox::find()?;
        Self::start_with(environment, |registry, _| Catalogue::new(&busybox)?.push(&registry.target()))
    }

    fn after_case(&mut self, failed: bool) -> Result<()> {
        if failed {
            self.show_logs();
        }
        if self.daemon.pid().is_none() {
            self.daemon.start_again()?;
        }
        let removed = self.remove_pods(&self.kept);
        self.logged = fs::metadata(self.daemon.log())?.len();
        removed
    }

    fn finish(mut self) -> Result<()> {
        let left = self
            .remove_pods(&BTreeSet::new())
            .and_then(|()| leaks::assert_none(&self.scope(), self.daemon.pid(), &self.before));
        if left.is_err() {
            self.show_logs();
        }
        let stopped = self.daemon.stop();
        let scope = Scope { expected: BTreeSet::from([self.registry.pid()]), ..self.scope() };
        let after = leaks::assert_none(&scope, None, &self.before);
        let Self { directory, registry, network, daemon, .. } = self;
        drop((registry, network, daemon));
        // Also after a failure: one suite's leftovers must not become the next one's.
        let swept = sweep::sweep(&directory.keep());
        left.and(stopped).and(after.context("after the daemon's end")).and(swept)
    }
}

fn make(directory: &Path, name: &str) -> Result<std::path::PathBuf> {
    let path = directory.join(name);
    fs::create_dir_all(&path)?;
    Ok(path)
}
