//! What carries a pod: the per-pod process `bulkhead-vmm`, started here, and the connection to it.
//!
//! [`launch`] starts a machine, [`Machine`] is one that runs; a daemon that was restarted finds it again by
//! [`Machine::reconnect`]. [`place`] is the cgroup that its process is in.

use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use bulkhead_proto::launch::ExitRecord;

use crate::sys::descriptors::DeliverError;

mod death;
pub mod launch;
mod machine;
pub mod monitor;
pub mod place;
pub mod sizing;

pub use machine::Machine;

/// Why a machine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum MachineError {
    #[error("cannot start {}", binary.display())]
    Spawn { binary: PathBuf, source: std::io::Error },
    #[error("{} did not take its orders: {detail}", binary.display())]
    Launch { binary: PathBuf, detail: String },
    #[error("the pod's machine ended while booting: {detail}")]
    Boot { detail: String },
    #[error(
        "the guest's agent did not answer within {seconds} s of the machine's start{processors}; last console lines:\n{console}"
    )]
    BootTimeout { seconds: u64, console: String, processors: String },
    #[error("cannot reach bulkhead-vmm at {}", socket.display())]
    Connect { socket: PathBuf, source: std::io::Error },
    #[error("bulkhead-vmm could not {request}: {message}")]
    Refused { request: &'static str, message: String },
    #[error("the connection to bulkhead-vmm broke during {request}: {message}")]
    Broken { request: &'static str, message: String },
    #[error(transparent)]
    Descriptor(DeliverError),
}

/// Bytes of a log that an error message may quote from.
const TAIL: u64 = 16 * 1024;

/// A sandbox's run directory and the names in it.
#[derive(Debug, Clone)]
pub struct MachinePaths {
    dir: PathBuf,
}

impl MachinePaths {
    /// Names below `dir`.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The directory itself.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// vmm.proto.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.dir.join("vmm.sock")
    }

    /// Descriptors for vmm.proto.
    #[must_use]
    pub fn descriptors(&self) -> PathBuf {
        self.dir.join("fd.sock")
    }

    /// Connections to the guest.
    #[must_use]
    pub fn vsock(&self) -> PathBuf {
        self.dir.join("vsock.sock")
    }

    /// Written when the machine has ended.
    #[must_use]
    pub fn exit_file(&self) -> PathBuf {
        self.dir.join("exit.json")
    }

    /// The guest's console.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    /// `bulkhead-vmm`'s own words.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join("vmm.log")
    }

    /// The scratch drive's file.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        self.dir.join("scratch.img")
    }

    /// Files of an agent on the host.
    #[must_use]
    pub fn agent_state(&self) -> PathBuf {
        self.dir.join("agent")
    }

    /// What the machine left behind, if it ended in order.
    #[must_use]
    pub fn exit_record(&self) -> Option<ExitRecord> {
        serde_json::from_slice(&std::fs::read(self.exit_file()).ok()?).ok()
    }

    /// The last lines of a file, for an error message.
    #[must_use]
    pub fn tail(path: &Path, lines: usize) -> String {
        let mut text = Vec::new();
        if let Ok(mut file) = std::fs::File::open(path) {
            let len = file.metadata().map_or(0, |meta| meta.len());
            let from = std::io::SeekFrom::Start(len.saturating_sub(TAIL));
            let _ = file.seek(from).and_then(|_| file.take(TAIL).read_to_end(&mut text).map(|read| read as u64));
        }
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}
