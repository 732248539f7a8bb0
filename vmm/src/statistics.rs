//! How much memory a process holds beside the guest's, and how often it had to wait for it.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::sync::{Mutex, OnceLock, PoisonError};

/// The guest's RAM in /proc/PID/smaps: a memfd of that name, mapped by every process that serves the guest.
const GUEST_RAM: &str = "/memfd:";

/// Resident bytes of a process, proportionally for pages that it shares, without mappings of the guest's RAM.
///
/// # Errors
/// When the process is gone.
pub fn own_memory(pid: u32) -> io::Result<u64> {
    Ok(sum(&fs::read_to_string(format!("/proc/{pid}/smaps"))?))
}

/// The calling process's /proc/self/smaps, for when there is no /proc.
static OWN: OnceLock<Mutex<File>> = OnceLock::new();

/// Keeps the file open that [`this_process`] reads.
///
/// # Errors
/// When /proc is not mounted.
pub fn keep_own() -> io::Result<()> {
    let file = File::open("/proc/self/smaps")?;
    // A second one is as good as the first.
    let _ = OWN.set(Mutex::new(file));
    Ok(())
}

/// [`own_memory`] of this process.
///
/// # Errors
/// When the file cannot be read.
pub fn this_process() -> io::Result<u64> {
    let Some(file) = OWN.get() else { return own_memory(std::process::id()) };
    let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
    let mut text = String::new();
    file.rewind()?;
    file.read_to_string(&mut text)?;
    Ok(sum(&text))
}

/// Page faults of this process since its start: those served from memory, and those that needed a disk.
#[must_use]
pub fn page_faults() -> (u64, u64) {
    let count = |faults: i64| u64::try_from(faults).unwrap_or(0);
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF);
    usage.map_or((0, 0), |usage| (count(usage.minor_page_faults()), count(usage.major_page_faults())))
}

fn sum(smaps: &str) -> u64 {
    let (mut kib, mut counts) = (0, false);
    for line in smaps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        match first.strip_suffix(':') {
            None => counts = !line.contains(GUEST_RAM),
            Some("Pss") if counts => {
                kib += line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0);
            }
            Some(_) => {}
        }
    }
    kib * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_does_not_count() {
        let smaps = "5583-5584 r-xp 00000000 08:01 12 /usr/bin/x\nRss: 8 kB\nPss: 4 kB\n\
                     7f00-7f10 rw-s 00000000 00:01 99 /memfd:memory-backend-memfd (deleted)\nPss: 1000 kB\n\
                     7ffc-7ffd rw-p 00000000 00:00 0 [stack]\nPss: 3 kB\n";
        assert_eq!(sum(smaps), 7 * 1024);
    }
}
