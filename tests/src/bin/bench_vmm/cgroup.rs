//! A cgroup around one monitor with all its processes: exact processor time, and an end that nothing escapes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bulkhead_tests::leaks::host;
use bulkhead_tests::wait;
use rustix::process::WaitOptions;

/// USER_HZ: what /proc counts in.
const TICKS_PER_SECOND: u64 = 100;
/// Killed processes of a busy machine are gone by then.
const END_LIMIT: Duration = Duration::from_secs(60);

/// Removed with its processes when dropped.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    home: PathBuf,
}

impl Cgroup {
    /// A new one below the root.
    ///
    /// # Errors
    /// Without cgroup v2.
    pub fn new(name: &str) -> Result<Self> {
        let root = host::cgroup_root().context("there is no cgroup v2")?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).context("this process is in no cgroup v2")?;
        let path = root.join(name);
        fs::create_dir(&path).with_context(|| format!("cannot make the cgroup {}", path.display()))?;
        Ok(Self { path, home: root.join(own) })
    }

    /// Starts a program in it, without a shell in between: children are born where their parent is. Says when, as entering
    /// takes a while.
    ///
    /// # Errors
    /// When it does not start.
    pub fn spawn(&self, command: &mut Command) -> Result<Instant> {
        enter(&self.path)?;
        let at = Instant::now();
        let started = command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()));
        enter(&self.home)?;
        started.map(|_| at)
    }

    /// Processor time of everything that ever ran in it, guests' instructions included.
    ///
    /// # Errors
    /// When it is gone.
    pub fn used(&self) -> Result<Duration> {
        let stat = fs::read_to_string(self.path.join("cpu.stat"))?;
        let usec =
            stat.lines().find_map(|line| line.strip_prefix("usage_usec ")).context("cpu.stat has no usage_usec")?;
        Ok(Duration::from_micros(usec.parse()?))
    }

    /// Of its processes, the part that went to guests' instructions.
    ///
    /// # Errors
    /// When it is gone.
    pub fn used_by_guests(&self) -> Result<Duration> {
        let mut ticks = 0;
        for pid in self.processes()? {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
            // Fields are counted behind the name, which may contain anything: guest_time is the 43rd of all.
            let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
            ticks += fields.split_whitespace().nth(40).and_then(|ticks| ticks.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
    }

    /// Bytes that only its processes have, without a guest's memory: a memfd, or a mapping of at least that size.
    ///
    /// # Errors
    /// When it is gone.
    pub fn own_memory(&self, guest_bytes: u64) -> Result<u64> {
        let mut kibibytes = 0;
        for pid in self.processes()? {
            let maps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
            let mut is_guest = false;
            for line in maps.lines() {
                let first = line.split_whitespace().next().unwrap_or_default();
                if !first.ends_with(':') {
                    is_guest = line.contains("/memfd:") || size(first) >= guest_bytes;
                } else if matches!(first, "Private_Clean:" | "Private_Dirty:") && !is_guest {
                    let number = line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
                    kibibytes += number.unwrap_or(0);
                }
            }
        }
        Ok(kibibytes << 10)
    }

    fn processes(&self) -> Result<Vec<u32>> {
        let pids = fs::read_to_string(self.path.join("cgroup.procs"))?;
        pids.lines().map(|pid| Ok(pid.parse()?)).collect()
    }

    fn end(&self) -> Result<()> {
        fs::write(self.path.join("cgroup.kill"), "1")?;
        wait::until("the monitor's end", END_LIMIT, || {
            let events = fs::read_to_string(self.path.join("cgroup.events"))?;
            Ok(events.lines().any(|line| line == "populated 0").then_some(()))
        })?;
        // Between two monitors this process has no other children.
        while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
        Ok(fs::remove_dir(&self.path)?)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("bench-vmm: cannot end the monitor in {}: {error:#}", self.path.display());
        }
    }
}

fn enter(cgroup: &Path) -> Result<()> {
    let file = cgroup.join("cgroup.procs");
    fs::write(&file, "0").with_context(|| format!("cannot enter the cgroup by {}", file.display()))
}

/// Of a range of addresses.
fn size(range: &str) -> u64 {
    let number = |text| u64::from_str_radix(text, 16).unwrap_or(0);
    range.split_once('-').map_or(0, |(start, end)| number(end).saturating_sub(number(start)))
}
