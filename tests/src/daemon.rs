//! The real daemon with directories, socket and configuration of its own.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bulkhead_proto::cri::VersionRequest;
use rustix::process::{Pid, Signal, kill_process};

use crate::cni::Network;
use crate::command::{self, Output};
use crate::cri::Cri;
use crate::environment::{Environment, Handler};
use crate::wait;

/// From start to the first answer; the first start also makes the scratch drive's template.
const READY: Duration = Duration::from_secs(120);
const STOPPED: Duration = Duration::from_secs(30);
/// For a guest to boot, in seconds: the lab's host is emulated, and its guests with it.
const BOOT_TIMEOUT_S: u64 = 150;

/// How long the daemon lets a network plugin run, in seconds: enough for an emulated machine.
pub const CNI_TIMEOUT_S: u64 = 15;

/// What a configuration file is made of.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Everything of this daemon is below it.
    pub directory: PathBuf,
    /// `daemon.root`
    pub root: PathBuf,
    /// `daemon.run`
    pub run: PathBuf,
    /// `guest.kernel`
    pub kernel: PathBuf,
    /// `guest.initramfs`
    pub initramfs: PathBuf,
    /// `guest.agent`
    pub agent: PathBuf,
    /// `daemon.default_runtime`
    pub handler: Handler,
    /// `daemon.log`
    pub log: String,
    /// `network.conf_dir`
    pub conf_dir: PathBuf,
    /// `network.bin_dirs`
    pub bin_dirs: Vec<PathBuf>,
    /// Lines put at the end of `[image]`.
    pub image: String,
    /// Whole tables put at the end.
    pub more: String,
    /// Searched for programs before all others.
    pub programs: Option<PathBuf>,
}

impl Settings {
    /// Those of a daemon that works, below `directory`.
    #[must_use]
    pub fn new(environment: &Environment, network: &Network, directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            root: directory.join("root"),
            run: directory.join("run"),
            kernel: environment.kernel.clone(),
            initramfs: environment.initramfs.clone(),
            agent: environment.agent.clone(),
            handler: environment.handler,
            log: "info,bulkhead=debug".into(),
            conf_dir: network.conf_dir.clone(),
            bin_dirs: network.bin_dirs.to_vec(),
            // A test of a broken registry should not wait as long as a node would.
            image: "attempts = 2\nretry_delay_ms = 50\nstall_timeout_s = 3\n".into(),
            more: String::new(),
            programs: None,
        }
    }

    /// The CRI socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run.join("bulkhead.sock")
    }

    /// The configuration file.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.directory.join("config.toml")
    }

    /// The file's content.
    #[must_use]
    pub fn text(&self) -> String {
        let Self { root, run, kernel, initramfs, agent, log, conf_dir, bin_dirs, image, more, .. } = self;
        let (socket, handler) = (self.socket(), self.handler.name());
        let more_handlers = match self.handler {
            Handler::Microvm => {
                "[runtimes.microvm]\nsandboxer = \"microvm\"\n\n\
                 [runtimes.open]\nsandboxer = \"microvm\"\ndebug_console = true\nmax_memory_mib = 1024\n\n"
            }
            Handler::Qemu => "[runtimes.open]\nsandboxer = \"qemu\"\ndebug_console = true\n\n",
            Handler::Native => "",
        };
        format!(
            "[daemon]\nroot = {root:?}\nrun = {run:?}\nsocket = {socket:?}\nlog = {log:?}\n\
             default_runtime = {handler:?}\n\n\
             [guest]\nkernel = {kernel:?}\ninitramfs = {initramfs:?}\nagent = {agent:?}\nboot_timeout_s = {BOOT_TIMEOUT_S}\n\n\
             [runtimes.qemu]\nsandboxer = \"qemu\"\naccelerator = \"auto\"\n\n\
             [runtimes.native]\nsandboxer = \"native\"\n\n{more_handlers}\
             [network]\nconf_dir = {conf_dir:?}\nbin_dirs = {bin_dirs:?}\ntimeout_s = {CNI_TIMEOUT_S}\n\n\
             [image]\nroot = {:?}\n{image}\n{more}",
            root.join("images")
        )
    }

    /// Writes the file and its directories.
    ///
    /// # Errors
    /// When that fails.
    pub fn write(&self) -> Result<()> {
        for directory in [&self.directory, &self.root, &self.run] {
            fs::create_dir_all(directory)?;
        }
        Ok(fs::write(self.file(), self.text())?)
    }
}

/// A daemon that answers. Killed when dropped; its pods are the fixture's affair.
#[derive(Debug)]
pub struct Daemon {
    /// As it was started.
    pub settings: Settings,
    /// Typed requests.
    pub cri: Rc<Cri>,
    program: PathBuf,
    child: Option<Child>,
}

impl Daemon {
    /// Writes the configuration, starts the daemon and waits for its first answer.
    ///
    /// # Errors
    /// When it ends or does not answer in time; its log is in the message.
    pub fn start(environment: &Environment, settings: Settings) -> Result<Self> {
        settings.write()?;
        let cri = Rc::new(Cri::new(&settings.socket())?);
        let mut daemon = Self { settings, cri, program: environment.bulkhead.clone(), child: None };
        daemon.start_again()?;
        Ok(daemon)
    }

    /// Starts it after [`Self::kill`] or [`Self::stop`].
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_again(&mut self) -> Result<()> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log())?;
        let mut command = Command::new(&self.program);
        if let Some(programs) = &self.settings.programs {
            let path = std::env::var_os("PATH").unwrap_or_default();
            command
                .env("PATH", std::env::join_paths([programs.clone()].into_iter().chain(std::env::split_paths(&path)))?);
        }
        let child = command
            .args(["serve", "--config"])
            .arg(self.settings.file())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        let child = self.child.insert(child);
        let cri = self.cri.clone();
        let ready = wait::until("the daemon's first answer", READY, || {
            if let Some(status) = child.try_wait()? {
                bail!("the daemon ended with {status}");
            }
            Ok(cri.version(VersionRequest::default()).ok())
        });
        ready.map(drop).with_context(|| format!("its log says:\n{}", self.log_tail(20)))
    }

    /// Runs a daemon that must not start; gives what it said.
    ///
    /// # Errors
    /// When it starts.
    pub fn refused(environment: &Environment, settings: &Settings) -> Result<String> {
        settings.write()?;
        let file = settings.file();
        let arguments = ["serve".as_ref(), "--config".as_ref(), file.as_os_str()];
        command::run(&environment.bulkhead, &arguments, READY)?.failure()
    }

    /// Tries to start one; gives what it said if it would not, and nothing if it answered (it is ended again).
    ///
    /// # Errors
    /// When it does neither.
    pub fn refused_or_started(environment: &Environment, settings: &Settings) -> Result<Option<String>> {
        match Self::start(environment, settings.clone()) {
            Ok(mut daemon) => daemon.stop().map(|()| None),
            Err(error) => Ok(Some(format!("{error:#}"))),
        }
    }

    /// The daemon's process.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// SIGKILL, as the kernel would when memory is short.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> Result<()> {
        let status = self.signal(Signal::KILL)?;
        ensure!(status.signal() == Some(9), "the daemon had ended with {status} before it was killed");
        Ok(())
    }

    /// SIGTERM, as a service manager would.
    ///
    /// # Errors
    /// When it does not end in order.
    pub fn stop(&mut self) -> Result<()> {
        let status = self.signal(Signal::TERM)?;
        ensure!(status.success(), "the daemon ended with {status} when it was told to stop:\n{}", self.log_tail(20));
        Ok(())
    }

    /// SIGHUP; waits until the log, from here on, has `word`.
    ///
    /// # Errors
    /// When it does not run or says nothing of the kind.
    pub fn reload(&self, word: &str) -> Result<()> {
        let offset = fs::metadata(self.log())?.len();
        let pid = self.pid().and_then(|pid| Pid::from_raw(pid.cast_signed())).context("the daemon does not run")?;
        kill_process(pid, Signal::HUP)?;
        wait::until(&format!("{word:?} in the daemon's log"), STOPPED, || {
            Ok(tail(&self.log(), offset, usize::MAX).contains(word).then_some(()))
        })
    }

    fn signal(&mut self, signal: Signal) -> Result<ExitStatus> {
        let mut child = self.child.take().context("the daemon does not run")?;
        let pid = Pid::from_child(&child);
        // A failure means that it has ended, which its status tells.
        let _ = kill_process(pid, signal);
        let ended = wait::until("the end of the daemon", STOPPED, || Ok(child.try_wait()?));
        if ended.is_err() {
            child.kill()?;
            child.wait()?;
        }
        ended
    }

    /// Runs the client's side of the daemon's program.
    ///
    /// # Errors
    /// When it cannot be started or takes longer than two minutes.
    pub fn client(&self, arguments: &[&str]) -> Result<Output> {
        command::run(&self.program, arguments, Duration::from_secs(120))
    }

    /// Its log file.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.settings.directory.join("daemon.log")
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.log(), 0, lines)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It has ended already when this fails.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The last lines of a file after its first `offset` bytes.
#[must_use]
pub fn tail(path: &Path, offset: u64, lines: usize) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let from = usize::try_from(offset).unwrap_or(0).min(bytes.len());
    let text = String::from_utf8_lossy(&bytes[from..]).into_owned();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
