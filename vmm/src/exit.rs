//! How a pod's machine ended, told apart from what the monitor's process and the console say.

use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::time::{SystemTime, UNIX_EPOCH};

use bulkhead_proto::launch::{ContainerExitRecord, ExitRecord};
use bulkhead_proto::vmm::ExitReason;
use protobuf::Enum;

/// What the agent prints just before it powers the guest off.
const POWER_OFF_LINE: &str = "bulkhead-agent: power off";
const PANIC: &str = "Kernel panic - not syncing";

/// What is known when the monitor has ended.
#[derive(Debug)]
pub struct Evidence<'a> {
    /// The monitor's own end.
    pub status: ExitStatus,
    /// Shutdown was asked for.
    pub asked: bool,
    /// The agent had reported.
    pub was_ready: bool,
    /// The console's and the monitor's last lines.
    pub lines: &'a [String],
}

/// Why the machine ended, and in words.
#[must_use]
pub fn classify(evidence: &Evidence<'_>) -> (ExitReason, String) {
    let find = |needle: &str| evidence.lines.iter().rev().find(|line| line.contains(needle));
    if evidence.asked {
        return (ExitReason::EXIT_REASON_SHUTDOWN, "the machine was shut down".into());
    }
    if let Some(line) = find(PANIC) {
        let from = line.find(PANIC).unwrap_or(0);
        return (ExitReason::EXIT_REASON_PANIC, format!("the guest's kernel panicked: {}", &line[from..]));
    }
    if let Some(signal) = evidence.status.signal() {
        return (ExitReason::EXIT_REASON_KILLED, format!("the monitor (QEMU) was killed by signal {signal}"));
    }
    let tail = evidence.lines[evidence.lines.len().saturating_sub(5)..].join("; ");
    match (find(POWER_OFF_LINE), evidence.was_ready) {
        (Some(_), true) => return (ExitReason::EXIT_REASON_POWER_OFF, "the guest powered off".into()),
        (Some(_), false) => {
            return (
                ExitReason::EXIT_REASON_AGENT,
                format!("the guest's agent gave up while booting; console: {tail}"),
            );
        }
        (None, _) => {}
    }
    match evidence.status.code() {
        Some(0) if !evidence.was_ready => {
            (ExitReason::EXIT_REASON_AGENT, format!("the guest ended before its agent answered; console: {tail}"))
        }
        Some(0) => (ExitReason::EXIT_REASON_AGENT, format!("the guest ended without a word; console: {tail}")),
        code => (
            ExitReason::EXIT_REASON_MONITOR_ERROR,
            format!("the monitor (QEMU) failed with status {}: {tail}", code.unwrap_or(-1)),
        ),
    }
}

/// Writes the record so that a reader sees all of it or nothing.
pub fn write_record(
    path: &Path,
    reason: ExitReason,
    message: &str,
    containers: Vec<ContainerExitRecord>,
) -> io::Result<ExitRecord> {
    let record = ExitRecord { reason: reason.value(), message: message.to_owned(), at_ns: now_ns(), containers };
    let half = path.with_extension("tmp");
    let mut file = std::fs::File::create(&half)?;
    file.write_all(&serde_json::to_vec(&record)?)?;
    file.sync_data()?;
    std::fs::rename(&half, path)?;
    Ok(record)
}

/// Nanoseconds since 1970.
#[must_use]
pub fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(raw_status: i32, asked: bool, was_ready: bool, lines: &[&str]) -> (ExitReason, String) {
        let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        classify(&Evidence { status: ExitStatus::from_raw(raw_status), asked, was_ready, lines: &lines })
    }

    #[test]
    fn ends_are_told_apart() {
        use ExitReason as R;
        assert_eq!(reason(9, true, true, &[]).0, R::EXIT_REASON_SHUTDOWN);
        let (panic, text) = reason(0, false, true, &["[ 1.0] Kernel panic - not syncing: Attempted to kill init!"]);
        assert_eq!(panic, R::EXIT_REASON_PANIC);
        assert!(text.ends_with("Kernel panic - not syncing: Attempted to kill init!"), "{text}");
        let (killed, text) = reason(9, false, true, &[]);
        assert!(killed == R::EXIT_REASON_KILLED && text.contains("signal 9"), "{text}");
        assert_eq!(reason(0, false, true, &[POWER_OFF_LINE]).0, R::EXIT_REASON_POWER_OFF);
        let (error, text) = reason(256, false, false, &["qemu: could not load kernel"]);
        assert!(error == R::EXIT_REASON_MONITOR_ERROR && text.contains("could not load kernel"), "{text}");
        assert_eq!(reason(0, false, false, &[]).0, R::EXIT_REASON_AGENT);
    }

    #[test]
    fn the_record_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exit.json");
        let written = write_record(&path, ExitReason::EXIT_REASON_PANIC, "why", vec![]).unwrap();
        let read: ExitRecord = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(read, written);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
