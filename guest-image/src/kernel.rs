//! The recipe of the guest kernel.
//!
//! Source tarball -> unpack -> `allnoconfig` + our fragment -> every line of the fragment checked
//! -> `make vmlinux` -> strip -> cache.

use std::collections::VecDeque;
use std::env;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::cache::{self, CacheError, Entry, Slot};
use crate::fragment;
use crate::progress::Progress;

/// What the kernel must offer.
pub const FRAGMENT: &str = include_str!("../kernel.config");

/// Part of the cache key: raise it when the recipe makes something else from the same inputs.
const RECIPE_VERSION: u32 = 1;

const DISTRIBUTION_SOURCE: &str = "/usr/src/linux-source-6.12.tar.xz";
/// Lines that `make` prints for this fragment, for the progress display.
const USUAL_STEPS: usize = 1940;
/// Lines of the compiler's output that an error message repeats.
const TOLD_LINES: usize = 25;

/// Why there is no kernel.
#[derive(Debug, Error)]
pub enum KernelError {
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(
        "cannot read the kernel source {path}; install the package linux-source-6.12, \
         or name a kernel source tarball in KERNEL_SOURCE"
    )]
    Source { path: PathBuf, source: io::Error },
    #[error("the guest kernel was not built yet (looked for {path}); run `make guest`")]
    NotBuilt { path: PathBuf },
    #[error("cannot {action} {path} while building the guest kernel")]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "cannot run {program} to build the guest kernel; is it installed? (`scripts/deps.sh` installs what is needed)"
    )]
    Run { program: String, source: io::Error },
    #[error(
        "{program} failed with {status} while building the guest kernel; the whole log is {log}, its end:\n{tail}"
    )]
    Failed {
        program: String,
        status: ExitStatus,
        log: PathBuf,
        tail: String,
    },
    #[error(
        "the kernel source {source_path} cannot satisfy guest-image/kernel.config:\n  {}\n\
         a dependency is missing from the fragment, or this kernel version names it differently",
        lacking.join("\n  ")
    )]
    Lacking {
        source_path: PathBuf,
        lacking: Vec<String>,
    },
}

fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KernelError {
    let path = path.to_path_buf();
    move |source| KernelError::Io {
        action,
        path,
        source,
    }
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
        let source = env::var_os("KERNEL_SOURCE").filter(|value| !value.is_empty());
        let source = source.map_or_else(|| PathBuf::from(DISTRIBUTION_SOURCE), PathBuf::from);
        let digest = digest_file(&source).map_err(|error| KernelError::Source {
            path: source.clone(),
            source: error,
        })?;
        let entry = Entry::new(cache::root()?, format!("kernel-{}", key(FRAGMENT, &digest)));
        Ok(Self { source, entry })
    }

    /// The cached kernel.
    pub fn built(&self) -> Result<PathBuf, KernelError> {
        let path = self.entry.path().join("vmlinux");
        if path.is_file() {
            Ok(path)
        } else {
            Err(KernelError::NotBuilt { path })
        }
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
        let mut job = Job {
            log_path: slot.log_path(),
            progress: Progress::start("kernel", USUAL_STEPS),
        };

        eprintln!("kernel: building from {}", self.source.display());
        let mut tar = program("tar");
        job.run(
            tar.arg("-xf")
                .arg(&self.source)
                .arg("-C")
                .arg(&tree)
                .arg("--strip-components=1"),
        )?;
        self.configure(&mut job, &tree)?;
        let jobs = thread::available_parallelism().map_or(1, usize::from);
        job.run(
            program("make")
                .current_dir(&tree)
                .arg(format!("-j{jobs}"))
                .arg("vmlinux"),
        )?;
        job.run(
            program("strip")
                .current_dir(&tree)
                .args(["--strip-all", "-o"])
                .arg(staged.join("vmlinux"))
                .arg("vmlinux"),
        )?;
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
        job.run(
            program("scripts/kconfig/merge_config.sh")
                .current_dir(tree)
                .arg("-n")
                .arg(&fragment_path),
        )?;
        let config_path = tree.join(".config");
        let config = fs::read_to_string(&config_path).map_err(at("read", &config_path))?;
        let lacking = fragment::lacking(FRAGMENT, &config);
        if lacking.is_empty() {
            return Ok(());
        }
        Err(KernelError::Lacking {
            source_path: self.source.clone(),
            lacking,
        })
    }
}

/// Names a kernel by everything that decides what it is.
fn key(fragment: &str, source_digest: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(RECIPE_VERSION.to_le_bytes());
    hash.update(source_digest);
    hash.update(fragment);
    hash.finalize()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
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

/// A command that dies with us and whose result does not depend on who calls us, or from where.
fn program(name: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--", name]);
    command
        .env_clear()
        .envs(env::vars_os().filter(|(key, _)| key == "PATH" || key == "HOME" || key == "TMPDIR"));
    command.envs([
        ("LC_ALL", "C"),
        ("KBUILD_BUILD_TIMESTAMP", "1970-01-01 00:00:00 UTC"),
        ("KBUILD_BUILD_USER", "bulkhead"),
        ("KBUILD_BUILD_HOST", "bulkhead"),
        ("KBUILD_BUILD_VERSION", "1"),
    ]);
    command
}

/// Runs the steps of one build, with one log and one progress display.
struct Job {
    log_path: PathBuf,
    progress: Progress,
}

impl Job {
    fn run(&mut self, command: &mut Command) -> Result<(), KernelError> {
        let program = command
            .get_args()
            .nth(3)
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let mut log = File::options()
            .append(true)
            .create(true)
            .open(&self.log_path)
            .map_err(at("open", &self.log_path))?;
        let cannot_run = |source| KernelError::Run {
            program: program.clone(),
            source,
        };

        let (output, input) = io::pipe().map_err(cannot_run)?;
        command
            .stdin(std::process::Stdio::null())
            .stdout(input.try_clone().map_err(cannot_run)?)
            .stderr(input);
        let mut child = command.spawn().map_err(cannot_run)?;
        // Ours are the last copies of the pipe's writing end but the child's: they would hide its end of file.
        command
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());

        let mut tail = VecDeque::with_capacity(TOLD_LINES);
        for line in lines(output, &mut self.progress) {
            writeln!(log, "{line}").map_err(at("write", &self.log_path))?;
            if tail.len() == TOLD_LINES {
                tail.pop_front();
            }
            tail.push_back(line);
        }
        let status = child.wait().map_err(cannot_run)?;
        if status.success() {
            return Ok(());
        }
        let tail = tail.make_contiguous().join("\n");
        Err(KernelError::Failed {
            program,
            status,
            log: self.log_path.clone(),
            tail,
        })
    }
}

/// The lines of `output` as they come, each one a step; the clock is shown while none come.
fn lines(
    output: impl Read + Send + 'static,
    progress: &mut Progress,
) -> impl Iterator<Item = String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if sender
                .send(String::from_utf8_lossy(&line).into_owned())
                .is_err()
            {
                return;
            }
        }
    });
    std::iter::from_fn(move || {
        loop {
            match receiver.recv_timeout(Duration::from_millis(500)) {
                Ok(line) => {
                    progress.step();
                    return Some(line);
                }
                Err(RecvTimeoutError::Timeout) => progress.tick(),
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(dir: &Path) -> Job {
        Job {
            log_path: dir.join("log"),
            progress: Progress::start("test", 1),
        }
    }

    #[test]
    fn the_key_changes_with_each_input() {
        let base = key("CONFIG_A=y", b"source");
        assert_eq!(base.len(), 16);
        assert_eq!(base, key("CONFIG_A=y", b"source"));
        assert_ne!(base, key("CONFIG_B=y", b"source"));
        assert_ne!(base, key("CONFIG_A=y", b"other"));
    }

    #[test]
    fn a_failure_tells_the_end_of_the_output() {
        let dir = tempfile::tempdir().unwrap();
        let error = job(dir.path())
            .run(program("sh").args(["-c", "echo out; echo wrong >&2; exit 3"]))
            .unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("sh failed with exit status: 3"), "{text}");
        assert!(text.ends_with("out\nwrong"), "{text}");
        assert_eq!(
            fs::read_to_string(dir.path().join("log")).unwrap(),
            "out\nwrong\n"
        );
    }

    #[test]
    fn a_caller_inside_make_does_not_leak_its_flags() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("env");
        let mut command = program("sh");
        command.arg("-c").arg(format!("env > {}", out.display()));
        job(dir.path()).run(&mut command).unwrap();
        let environment = fs::read_to_string(out).unwrap();
        assert!(environment.contains("PATH="));
        assert!(!environment.contains("CARGO_"), "{environment}");
    }
}
