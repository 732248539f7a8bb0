//! Where the artifacts under test are.
//!
//! `BULKHEAD_BIN` (or the directory `BULKHEAD_BIN_DIR`), `BULKHEAD_KERNEL`, `BULKHEAD_INITRAMFS`, `BULKHEAD_CRICTL`; what is
//! not set is looked for in the build's target directory and in PATH.

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
    /// crictl, where there is one.
    pub crictl: Option<PathBuf>,
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
            crictl: crictl(),
        };
        let directory = found.bulkhead.parent().unwrap_or(Path::new("/")).to_owned();
        needed(&found.bulkhead, "make build")?;
        needed(&directory.join("bulkhead-vmm"), "make build")?;
        needed(&found.kernel, "make guest")?;
        needed(&found.initramfs, "make guest")?;
        for (program, package) in [
            ("qemu-system-x86_64", "qemu-system-x86"),
            ("docker-registry", "docker-registry"),
            ("ip", "iproute2"),
            ("setpriv", "util-linux"),
        ] {
            if in_path(program).is_none() {
                return Err(Skipped(format!("{program} is not in PATH (package {package})")));
            }
        }
        Ok(found)
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
