//! The recipe of the guest kernel.
//!
//! Source tarball -> unpack -> `allnoconfig` + our fragment -> every line of the fragment checked
//! -> `make vmlinux` -> strip -> cache.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::thread;

use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::cache::{self, CacheError, Entry, Slot};
use crate::fragment;
use crate::job::{Job, JobError};
use crate::progress::Progress;

/// What the kernel must offer.
pub const FRAGMENT: &str = include_str!("../kernel.config");

/// Part of the cache key: raise it when the recipe makes something else from the same inputs.
const RECIPE_VERSION: u32 = 1;

const DISTRIBUTION_SOURCE: &str = "/usr/src/linux-source-6.12.tar.xz";
/// Lines that `make` prints for this fragment, for the progress display.
const USUAL_STEPS: usize = 1940;

/// Why there is no kernel.
#[derive(Debug, Error)]
pub enum KernelError {
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Job(#[from] JobError),
    #[error(
        "cannot read the kernel source {path}; install the package linux-source-6.12, \
         or name a kernel source tarball in KERNEL_SOURCE"
    )]
    Source { path: PathBuf, source: io::Error },
    #[error("the guest kernel was not built yet (looked for {path}); run `make guest`")]
    NotBuilt { path: PathBuf },
    #[error("cannot {action} {path} while building the guest kernel")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "the kernel source {source_path} cannot satisfy guest-image/kernel.config:\n  {}\n\
         a dependency is missing from the fragment, or this kernel version names it differently",
        lacking.join("\n  ")
    )]
    Lacking { source_path: PathBuf, lacking: Vec<String> },
}

fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KernelError {
    let path = path.to_path_buf();
    move |source| KernelError::Io { action, path, source }
}

/// Which kernel to build, and where it is cached.
#[derive(Debug)]
pub struct Recipe {
    source: PathBuf,
    entry: Entry,
}

impl Recipe {
    /// The kernel of the tarball that `KERNEL_SOURCE` names, else of the distribution's package.
    pub fn from_env() -> Result<Self, KernelError> {
        let named = env::var_os("KERNEL_SOURCE").filter(|value| !value.is_empty());
        let path = named.map_or_else(|| PathBuf::from(DISTRIBUTION_SOURCE), PathBuf::from);
        let unreadable = |source| KernelError::Source { path: path.clone(), source };
        let source = fs::canonicalize(&path).map_err(unreadable)?;
        let digest = digest_file(&source).map_err(unreadable)?;
        let entry = Entry::new(cache::root()?, format!("kernel-{}", key(FRAGMENT, &digest)));
        Ok(Self { source, entry })
    }

    /// The cached kernel.
    pub fn built(&self) -> Result<PathBuf, KernelError> {
        let path = self.entry.path().join("vmlinux");
        if path.is_file() { Ok(path) } else { Err(KernelError::NotBuilt { path }) }
    }

    /// Builds the kernel unless it is cached; several builders at once make it once.
    pub fn build(&self) -> Result<PathBuf, KernelError> {
        if let Ok(path) = self.built() {
            return Ok(path);
        }
        let waiting = || eprintln!("kernel: another process is building it; waiting for that one");
        if let Some(slot) = self.entry.begin(waiting)? {
            self.build_in(slot)?;
        }
        self.built()
    }

    fn build_in(&self, slot: Slot<'_>) -> Result<(), KernelError> {
        let tree = slot.dir().join("source");
        let staged = slot.dir().join("staged");
        for dir in [&tree, &staged] {
            fs::create_dir(dir).map_err(at("create", dir))?;
        }
        // What a failed build left would be taken for this one's.
        match fs::remove_file(slot.log_path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(at("remove", &slot.log_path())(error));
            }
            _ => {}
        }
        let mut job = Job { log_path: slot.log_path(), progress: Progress::start("kernel", USUAL_STEPS) };

        eprintln!("kernel: building from {}", self.source.display());
        let unpack = ["-x", "--strip-components=1", "-f"].map(OsStr::new);
        job.run(&tree, "tar", unpack.into_iter().chain([self.source.as_os_str()]))?;
        self.configure(&mut job, &tree)?;
        let jobs = thread::available_parallelism().map_or(1, usize::from);
        job.run(&tree, "make", [format!("-j{jobs}").as_str(), "vmlinux"])?;
        let vmlinux = staged.join("vmlinux");
        let strip = ["--strip-all", "vmlinux", "-o"].map(OsStr::new);
        job.run(&tree, "strip", strip.into_iter().chain([vmlinux.as_os_str()]))?;
        for (from, to) in [(".config", "config"), ("System.map", "System.map")] {
            fs::copy(tree.join(from), staged.join(to)).map_err(at("copy", &tree.join(from)))?;
        }

        let log_path = slot.log_path();
        slot.commit(&staged)?;
        // Only a failed build needs its log.
        fs::remove_file(&log_path).map_err(at("remove", &log_path))?;
        let took = job.progress.finish().as_secs();
        eprintln!("kernel: built in {}m{:02}s", took / 60, took % 60);
        Ok(())
    }

    fn configure(&self, job: &mut Job, tree: &Path) -> Result<(), KernelError> {
        let fragment_path = tree.join("bulkhead.config");
        fs::write(&fragment_path, FRAGMENT).map_err(at("write", &fragment_path))?;
        let merge = [OsStr::new("-n"), fragment_path.as_os_str()];
        job.run(tree, "scripts/kconfig/merge_config.sh", merge)?;
        let config_path = tree.join(".config");
        let config = fs::read_to_string(&config_path).map_err(at("read", &config_path))?;
        let lacking = fragment::lacking(FRAGMENT, &config);
        if lacking.is_empty() {
            return Ok(());
        }
        Err(KernelError::Lacking { source_path: self.source.clone(), lacking })
    }
}

/// Names a kernel by everything that decides what it is.
fn key(fragment: &str, source_digest: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(RECIPE_VERSION.to_le_bytes());
    hash.update(source_digest);
    hash.update(fragment);
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn digest_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finalize().to_vec()),
            count => hash.update(&buffer[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_changes_with_each_input() {
        let base = key("CONFIG_A=y", b"source");
        assert_eq!(base.len(), 16);
        assert_eq!(base, key("CONFIG_A=y", b"source"));
        assert_ne!(base, key("CONFIG_B=y", b"source"));
        assert_ne!(base, key("CONFIG_A=y", b"other"));
    }
}
