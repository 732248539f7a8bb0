//! A guest that runs: its words on the serial port, and what its monitor costs.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::cgroup::Cgroup;
use super::monitors::{Guest, Kind, MEMORY_MIB, Started};

/// What a guest says on its serial port when it has got there.
pub const MARK: &[u8] = b"~\n";
/// An emulated host boots a guest in seconds.
const BOOT_LIMIT: Duration = Duration::from_secs(180);

/// From the monitor's start to the guest's mark.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// By the clock.
    pub took: Duration,
    /// Processor time of the guest's instructions.
    pub guest: Duration,
    /// Processor time of all else: the monitor, and the kernel for it.
    pub host: Duration,
}

/// Ends with its monitor when dropped.
#[derive(Debug)]
pub struct Running {
    /// Around all processes of the monitor.
    pub cgroup: Cgroup,
    /// Host side of the guest's sockets.
    pub vsock: Option<PathBuf>,
    /// What it took to get here.
    pub cost: Cost,
    words: Words,
    // The monitor's files; after the monitor.
    _directory: tempfile::TempDir,
}

type Words = Arc<Mutex<Vec<u8>>>;

impl Running {
    /// Starts a guest and waits for its mark.
    ///
    /// # Errors
    /// What the monitor and the guest said, when the mark does not come.
    pub fn start(kind: &Kind, guest: &Guest<'_>) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let cgroup = Cgroup::new("bench-vmm")?;
        let words = Words::default();
        let Started { at, used_before, output, vsock } = kind
            .start(guest, directory.path(), &cgroup)
            .with_context(|| format!("{kind:?}: {}", told(directory.path())))?;
        let (marked, marks) = channel();
        let listened = words.clone();
        thread::spawn(move || listen(output, &listened, &marked));
        let reached = wait(&marks).ok_or_else(|| {
            let said = words.lock().map(|words| String::from_utf8_lossy(&words).into_owned()).unwrap_or_default();
            anyhow!("{kind:?}: no mark of the guest; it said: {said}\nthe monitor: {}", told(directory.path()))
        })?;
        let (used, guest) = (cgroup.used()?, cgroup.used_by_guests()?);
        let host = used.saturating_sub(used_before).saturating_sub(guest);
        let cost = Cost { took: reached.duration_since(at), guest, host };
        Ok(Self { cgroup, vsock, cost, words, _directory: directory })
    }

    /// Bytes that only the monitor has, without the guest's memory.
    ///
    /// # Errors
    /// When it has ended.
    pub fn own_memory(&self) -> Result<u64> {
        self.cgroup.own_memory(MEMORY_MIB << 20)
    }

    /// What the guest said until now.
    #[must_use]
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&self.words.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

fn wait(marks: &Receiver<Instant>) -> Option<Instant> {
    marks.recv_timeout(BOOT_LIMIT).ok()
}

/// Goes on after the mark, so that nobody waits for a full pipe.
fn listen(mut output: File, words: &Words, marked: &Sender<Instant>) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = output.read(&mut bytes) {
        let now = Instant::now();
        let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
        words.extend_from_slice(&bytes[..count]);
        if words.ends_with(MARK) {
            // Nobody waits for a second one.
            let _ = marked.send(now);
        }
    }
}

fn told(directory: &Path) -> String {
    std::fs::read_to_string(directory.join("words")).unwrap_or_default()
}
