//! Signals to a container's first process, which the kernel treats unlike any other.
//!
//! It is PID 1 of its namespace, and such a process never receives a signal whose action is the default. A stop signal
//! that comes before the program has set its handler would be lost: it is kept until the program can take it.

use std::fs;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::process::Process;

/// Between two looks at what the process does with the signal.
const INTERVAL: Duration = Duration::from_millis(20);
/// Nobody waits longer for a program to set a handler.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Sends a signal to a container's first process; one that the kernel would drop is sent when it no longer would.
/// Runs inside the runtime's context.
///
/// # Errors
/// The kernel's.
pub fn send_to_first(process: &Arc<Process>, signal: i32) -> io::Result<()> {
    if !is_dropped(process.pid, signal) {
        return process.signal(signal);
    }
    let waiting = Arc::clone(process);
    tokio::spawn(async move {
        let mut ended = waiting.status.clone();
        tokio::select! {
            () = until_taken(&waiting, signal) => {
                // A process that has ended meanwhile needs none.
                let _ = waiting.signal(signal);
            }
            _ = ended.wait_for(Option::is_some) => {}
            () = tokio::time::sleep(PATIENCE) => {}
        }
    });
    Ok(())
}

async fn until_taken(process: &Process, signal: i32) {
    while is_dropped(process.pid, signal) {
        tokio::time::sleep(INTERVAL).await;
    }
}

fn is_dropped(pid: i32, signal: i32) -> bool {
    // Without a status there is no process, whose pidfd says so.
    fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| drops(&status, signal))
}

/// Reads `/proc/PID/status`: PID 1 of a namespace of its own, neither handling, blocking nor ignoring the signal.
fn drops(status: &str, signal: i32) -> bool {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let pids: Vec<&str> = field("NSpid").unwrap_or_default().split_whitespace().collect();
    let is_first = pids.len() > 1 && pids.last() == Some(&"1");
    let forced = [libc::SIGKILL, libc::SIGSTOP].contains(&signal);
    let has = |name| {
        let mask = field(name).and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
        mask & 1 << (signal - 1) != 0
    };
    is_first && !forced && !["SigCgt", "SigBlk", "SigIgn"].into_iter().any(has)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pids: &str, caught: &str, blocked: &str) -> String {
        format!("Name:\tx\nNSpid:\t{pids}\nSigBlk:\t{blocked}\nSigIgn:\t0000000000000000\nSigCgt:\t{caught}\n")
    }

    #[test]
    fn only_a_first_process_without_a_handler_loses_signals() {
        let (none, term) = ("0000000000000000", "0000000000004000");
        assert!(drops(&status("70\t1", none, none), libc::SIGTERM));
        assert!(!drops(&status("70\t1", term, none), libc::SIGTERM));
        assert!(!drops(&status("70\t1", none, term), libc::SIGTERM));
        assert!(drops(&status("70\t1", term, none), libc::SIGINT));
        assert!(!drops(&status("70\t1", none, none), libc::SIGKILL));
        assert!(!drops(&status("70\t2", none, none), libc::SIGTERM));
        assert!(!drops(&status("70", none, none), libc::SIGTERM));
    }
}
