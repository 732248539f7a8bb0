//! containerd with runc, below the fixture's directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bulkhead_proto::cri::VersionRequest;
use bulkhead_tests::cri::Cri;
use bulkhead_tests::daemon::tail;
use bulkhead_tests::fixture::Fixture;
use bulkhead_tests::images::critest::REGISTRIES;
use bulkhead_tests::wait;

/// From start to the first answer.
const READY: Duration = Duration::from_secs(60);

/// A containerd that answers; ends when dropped.
#[derive(Debug)]
pub struct Containerd {
    directory: PathBuf,
    child: Child,
}

impl Containerd {
    /// Starts the one in `programs` with the registry and the CNI network of `fixture`.
    ///
    /// # Errors
    /// When it does not answer; its log is in the message.
    pub fn start(fixture: &Fixture, programs: &Path) -> Result<Self> {
        let directory = fixture.path("containerd");
        fs::create_dir_all(&directory)?;
        mirrors(&directory.join("certs.d"), &fixture.registry.address)?;
        let file = directory.join("config.toml");
        fs::write(&file, configuration(fixture, &directory, programs))?;
        let log = fs::File::create(directory.join("containerd.log"))?;
        let path = std::env::var("PATH").unwrap_or_default();
        // It looks its shim up in PATH.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(programs.join("containerd"))
            .arg("--config")
            .arg(&file)
            .env("PATH", format!("{}:{path}", programs.display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start containerd")?;
        let mut started = Self { directory, child };
        let cri = Cri::new(&started.socket())?;
        let ready = wait::until("containerd's first answer", READY, || {
            if let Some(status) = started.child.try_wait()? {
                bail!("containerd ended with {status}");
            }
            Ok(cri.version(VersionRequest::default()).ok())
        });
        ready.with_context(|| format!("its log says:\n{}", tail(&started.directory.join("containerd.log"), 0, 20)))?;
        Ok(started)
    }

    /// Where it serves the CRI.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.join("containerd.sock")
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        // It has ended already when this fails.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

fn configuration(fixture: &Fixture, directory: &Path, programs: &Path) -> String {
    let pause = format!("{}/registry.k8s.io/pause:3.9", fixture.registry.address);
    let bin_dirs = &fixture.network.bin_dirs;
    let conf_dir = &fixture.network.conf_dir;
    // Lowering the score for the OOM killer takes a capability that containers of CI systems lack.
    format!(
        "version = 3\nroot = {root:?}\nstate = {state:?}\n\
         [grpc]\naddress = {socket:?}\n\
         [ttrpc]\naddress = {ttrpc:?}\n\
         [plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'overlayfs'\n\
         [plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = {pause:?}\n\
         [plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = {mirrors:?}\n\
         [plugins.'io.containerd.cri.v1.runtime']\nrestrict_oom_score_adj = true\n\
         [plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dirs = {bin_dirs:?}\nconf_dir = {conf_dir:?}\n\
         [plugins.'io.containerd.cri.v1.runtime'.containerd]\ndefault_runtime_name = 'runc'\n\
         [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\n\
         [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\nBinaryName = {runc:?}\n",
        root = directory.join("root"),
        state = directory.join("state"),
        socket = directory.join("containerd.sock"),
        ttrpc = directory.join("containerd.sock.ttrpc"),
        mirrors = directory.join("certs.d"),
        runc = programs.join("runc"),
    )
}

/// Sends the registries that critest names to folders of the local one.
fn mirrors(directory: &Path, registry: &str) -> Result<()> {
    for name in REGISTRIES {
        let folder = directory.join(name);
        fs::create_dir_all(&folder)?;
        let server = format!("http://{registry}/v2/{name}");
        fs::write(
            folder.join("hosts.toml"),
            format!(
                "server = {server:?}\n[host.{server:?}]\ncapabilities = ['pull', 'resolve']\noverride_path = true\n"
            ),
        )?;
    }
    Ok(())
}
