//! Where the artifacts under test are.
//!
//! `BULKHEAD_BIN` (or the directory `BULKHEAD_BIN_DIR`), `BULKHEAD_KERNEL`, `BULKHEAD_INITRAMFS`, `BULKHEAD_CRICTL`,
//! `BULKHEAD_CRITEST`, `BULKHEAD_NRI`; what is not set is looked for in the build's target directory and in PATH.
//! `BULKHEAD_TEST_HANDLER` is the runtime handler of pods that name none; `BULKHEAD_LAB` is set where the machine is the lab's.

use std::env;
use std::path::{Path, PathBuf};

use crate::suite::Skipped;

/// Programs and files that the suites drive; those of the host are checked to exist.
#[derive(Debug, Clone)]
pub struct Environment {
    /// The daemon.
    pub bulkhead: PathBuf,
    /// The guest kernel.
    pub kernel: PathBuf,
    /// The guest's initramfs.
    pub initramfs: PathBuf,
    /// The agent as a program of the host.
    pub agent: PathBuf,
    /// crictl, where there is one.
    pub crictl: Option<PathBuf>,
    /// critest, where there is one.
    pub critest: Option<PathBuf>,
    /// The directory of NRI plugins, where there is one.
    pub nri: Option<PathBuf>,
    /// The runtime handler under test.
    pub handler: Handler,
    /// This machine is emulated, and its seconds say little about any other's.
    pub emulated: bool,
}

/// A runtime handler, called like its sandboxer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handler {
    /// VMs in QEMU.
    Qemu,
    /// VMs in our own monitor.
    Microvm,
    /// The host's own kernel.
    Native,
}

impl Handler {
    /// Its name in configurations.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Microvm => "microvm",
            Self::Native => "native",
        }
    }

    /// A second handler of its kind: its guests' consoles take input, and those that can have room to grow.
    #[must_use]
    pub fn open(self) -> &'static str {
        "open"
    }

    /// Whether its pods are VMs.
    #[must_use]
    pub fn is_machine(self) -> bool {
        self != Self::Native
    }

    fn from_environment() -> Result<Self, Skipped> {
        let Some(name) = env::var_os("BULKHEAD_TEST_HANDLER") else { return Ok(Self::Qemu) };
        let known = [Self::Qemu, Self::Microvm, Self::Native];
        let found = known.into_iter().find(|handler| name == handler.name());
        found.ok_or_else(|| Skipped(format!("BULKHEAD_TEST_HANDLER is {name:?}, not qemu, microvm or native")))
    }
}

impl Environment {
    /// Finds everything, or says what is absent.
    ///
    /// # Errors
    /// [`Skipped`] with the path that was looked for and what makes it.
    pub fn find() -> Result<Self, Skipped> {
        if !rustix::process::geteuid().is_root() {
            return Err(Skipped::because("the suites make namespaces, mounts and devices: root is needed"));
        }
        let bulkhead = match (env::var_os("BULKHEAD_BIN"), env::var_os("BULKHEAD_BIN_DIR")) {
            (Some(program), _) => program.into(),
            (None, Some(directory)) => Path::new(&directory).join("bulkhead"),
            (None, None) => profile_directory().join("bulkhead"),
        };
        let guest = |variable, name| {
            let beside = profile_directory().parent().unwrap_or(Path::new("/")).join("guest").join(name);
            env::var_os(variable).map_or(beside, PathBuf::from)
        };
        let found = Self {
            bulkhead,
            kernel: guest("BULKHEAD_KERNEL", "vmlinux"),
            initramfs: guest("BULKHEAD_INITRAMFS", "initramfs"),
            agent: agent(),
            crictl: crictl(),
            critest: env::var_os("BULKHEAD_CRITEST").map(PathBuf::from).filter(|path| path.exists()),
            nri: env::var_os("BULKHEAD_NRI").map(PathBuf::from).filter(|path| path.exists()),
            handler: Handler::from_environment()?,
            emulated: env::var_os("BULKHEAD_LAB").is_some(),
        };
        let directory = found.bulkhead.parent().unwrap_or(Path::new("/")).to_owned();
        needed(&found.bulkhead, "make build")?;
        needed(&directory.join("bulkhead-vmm"), "make build")?;
        if found.handler == Handler::Qemu && in_path("qemu-system-x86_64").is_none() {
            return Err(Skipped::because("qemu-system-x86_64 is not in PATH (package qemu-system-x86)"));
        }
        if found.handler.is_machine() {
            needed(&found.kernel, "make guest")?;
            needed(&found.initramfs, "make guest")?;
        } else {
            needed(&found.agent, "make guest")?;
        }
        for (program, package) in
            [("docker-registry", "docker-registry"), ("ip", "iproute2"), ("setpriv", "util-linux")]
        {
            if in_path(program).is_none() {
                return Err(Skipped(format!("{program} is not in PATH (package {package})")));
            }
        }
        Ok(found)
    }

    /// Leaves a case that makes sense in VMs only.
    ///
    /// # Errors
    /// [`Skipped`] with `why` when the handler under test has none.
    pub fn needs_machine(&self, why: &str) -> Result<(), Skipped> {
        if self.handler.is_machine() { Ok(()) } else { Err(Skipped::because(why)) }
    }

    /// Leaves a case about limits of a pod on a host that has no cgroup v2 controller for them.
    ///
    /// # Errors
    /// [`Skipped`] when the host lacks one and the handler under test has no kernel of its own.
    pub fn needs_controllers(&self, controllers: &[&str]) -> Result<(), Skipped> {
        let offered = crate::leaks::host::cgroup_controllers();
        let absent = controllers.iter().find(|controller| !offered.iter().any(|offer| offer == *controller));
        match absent {
            Some(absent) if !self.handler.is_machine() => {
                Err(Skipped(format!("this host's cgroup v2 has no controller {absent} (cgroup v1 may hold it)")))
            }
            _ => Ok(()),
        }
    }

    /// crictl, or why what needs it is skipped.
    ///
    /// # Errors
    /// [`Skipped`] when there is none.
    pub fn crictl(&self) -> Result<&Path, Skipped> {
        self.crictl
            .as_deref()
            .ok_or_else(|| Skipped::because("there is no crictl (scripts/tools.sh builds one where Go is found)"))
    }
}

fn needed(path: &Path, maker: &str) -> Result<(), Skipped> {
    if path.exists() {
        return Ok(());
    }
    Err(Skipped(format!("{} does not exist (`{maker}` makes it)", path.display())))
}

/// Built with a target of its own, whose directory does not depend on the profile.
fn agent() -> PathBuf {
    let target = profile_directory().parent().unwrap_or(Path::new("/")).to_owned();
    let built = target.join("x86_64-unknown-linux-gnu/agent/bulkhead-agent");
    env::var_os("BULKHEAD_AGENT").map_or(built, PathBuf::from)
}

fn crictl() -> Option<PathBuf> {
    ["BULKHEAD_CRICTL", "CRICTL"]
        .into_iter()
        .find_map(|variable| env::var_os(variable).map(PathBuf::from).filter(|path| path.exists()))
        .or_else(|| in_path("crictl"))
}

/// `target/PROFILE` of the build that this program is part of.
#[must_use]
pub fn profile_directory() -> PathBuf {
    let program = env::current_exe().unwrap_or_default();
    let directory = program.parent().unwrap_or(Path::new("/"));
    if directory.ends_with("deps") { directory.parent().unwrap_or(directory).to_owned() } else { directory.to_owned() }
}

/// Looks a program up in PATH and in the system's own directories, which PATH of an ordinary user lacks.
#[must_use]
pub fn in_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    directories.map(|directory| directory.join(program)).find(|candidate| candidate.is_file())
}
