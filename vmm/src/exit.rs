//! How a pod's machine ended, in words and as the record that outlives this process.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::time::SystemTime;

use bulkhead_proto::launch::{ContainerExitRecord, ExitRecord};
use bulkhead_proto::vmm::ExitReason;
use rustix::process::Signal;

use crate::kvm::End;

/// Words of a kernel whose first process, the agent, ended or never ran.
const AGENT_PANICS: [&str; 3] = ["Attempted to kill init", "Requested init", "No working init found"];

/// What the agent prints last before it powers the guest off.
const FAREWELL: &str = "bulkhead-agent: power off";

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// In one word.
    pub reason: ExitReason,
    /// For people.
    pub message: String,
    /// Nanoseconds since 1970.
    pub at_ns: i64,
}

/// What is known when the monitor has ended.
#[derive(Debug)]
pub struct Evidence {
    /// False when the pod was carried by an agent on the host.
    pub is_machine: bool,
    /// Why this process ended it, if it did.
    pub ended_for: Option<Cause>,
    /// What the monitor did.
    pub how: How,
    /// Whether the agent ever said that it listens.
    pub was_ready: bool,
    /// The kernel's panic line.
    pub panic: Option<String>,
    /// The newest lines of the guest's console.
    pub console: Vec<String>,
    /// The newest lines that the monitor itself wrote.
    pub monitor_words: Vec<String>,
}

/// How a monitor came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    /// QEMU's process.
    Process(ExitStatus),
    /// The machine in this process, by itself.
    Machine(End),
    /// The machine in this process, by this process.
    Stopped,
}

/// Why this process ends a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// Somebody asked for it.
    Shutdown,
    /// The guest's kernel panicked, and the machine did not end by itself.
    Panic,
    /// The file server ended, as told here; the guest's volumes would hang.
    FileServer(String),
}

impl Evidence {
    /// Tells the ways of ending apart.
    #[must_use]
    pub fn judge(&self) -> Exit {
        let (reason, message) = self.reason();
        Exit { reason, message, at_ns: now_ns() }
    }

    fn reason(&self) -> (ExitReason, String) {
        if let (false, How::Process(status)) = (self.is_machine, &self.how) {
            return self.agent_reason(*status);
        }
        match &self.ended_for {
            Some(Cause::Shutdown) if !self.has_failed_by_itself() => {
                return (ExitReason::EXIT_REASON_SHUTDOWN, "the machine was shut down by request".into());
            }
            Some(Cause::FileServer(how)) => {
                let message = format!("the machine was ended because its file server {how}");
                return (ExitReason::EXIT_REASON_MONITOR_ERROR, message);
            }
            Some(Cause::Shutdown | Cause::Panic) | None => {}
        }
        if let Some(panic) = &self.panic {
            let is_agent = AGENT_PANICS.iter().any(|words| panic.contains(words));
            let reason = if is_agent { ExitReason::EXIT_REASON_AGENT } else { ExitReason::EXIT_REASON_PANIC };
            let who = if is_agent { "the guest's agent ended" } else { "the guest kernel panicked" };
            return (reason, format!("{who}: {panic}{}", self.console_text()));
        }
        match &self.how {
            How::Process(status) => self.process_end(*status),
            How::Machine(end) => self.machine_end(end),
            How::Stopped => (ExitReason::EXIT_REASON_SHUTDOWN, "the machine was stopped".into()),
        }
    }

    /// Whether the machine in this process was past help before anybody could shut it down.
    fn has_failed_by_itself(&self) -> bool {
        match &self.how {
            How::Machine(End::TripleFault | End::Failed(_)) => true,
            How::Machine(End::Reset) => !self.has_said_farewell(),
            How::Machine(End::PowerOff) | How::Process(_) | How::Stopped => false,
        }
    }

    fn has_said_farewell(&self) -> bool {
        self.was_ready && self.console.iter().any(|line| line.contains(FAREWELL))
    }

    fn machine_end(&self, end: &End) -> (ExitReason, String) {
        match end {
            End::PowerOff | End::Reset if self.has_said_farewell() => {
                (ExitReason::EXIT_REASON_POWER_OFF, "the guest powered off".into())
            }
            End::PowerOff if self.was_ready => {
                (ExitReason::EXIT_REASON_AGENT, format!("the guest ended without a word{}", self.console_text()))
            }
            End::PowerOff => (
                ExitReason::EXIT_REASON_AGENT,
                format!("the guest powered off before its agent listened{}", self.console_text()),
            ),
            End::Reset => (ExitReason::EXIT_REASON_REBOOT, format!("the guest restarted{}", self.console_text())),
            End::TripleFault => (
                ExitReason::EXIT_REASON_TRIPLE_FAULT,
                format!("the guest's processor met a triple fault{}", self.console_text()),
            ),
            End::Failed(why) => {
                (ExitReason::EXIT_REASON_MONITOR_ERROR, format!("the machine failed: {why}{}", self.console_text()))
            }
        }
    }

    fn process_end(&self, status: ExitStatus) -> (ExitReason, String) {
        if let Some(signal) = status.signal() {
            return (ExitReason::EXIT_REASON_KILLED, format!("QEMU was killed by signal {}", signal_text(signal)));
        }
        match status.code() {
            Some(0) if self.has_said_farewell() => (ExitReason::EXIT_REASON_POWER_OFF, "the guest powered off".into()),
            Some(0) if self.was_ready => {
                (ExitReason::EXIT_REASON_AGENT, format!("the guest ended without a word{}", self.console_text()))
            }
            Some(0) => (
                ExitReason::EXIT_REASON_AGENT,
                format!("the guest powered off before its agent listened{}", self.console_text()),
            ),
            code => {
                let words = match self.monitor_words.as_slice() {
                    [] => String::new(),
                    lines => format!(": {}", lines.join("; ")),
                };
                let message = format!("QEMU ended with exit code {}{words}", code.unwrap_or(-1));
                (ExitReason::EXIT_REASON_MONITOR_ERROR, message)
            }
        }
    }

    fn agent_reason(&self, status: ExitStatus) -> (ExitReason, String) {
        if self.ended_for == Some(Cause::Shutdown) {
            return (ExitReason::EXIT_REASON_SHUTDOWN, "the pod was shut down by request".into());
        }
        let words = match self.monitor_words.as_slice() {
            [] => String::new(),
            lines => format!("; its last words: {}", lines.join("; ")),
        };
        (ExitReason::EXIT_REASON_AGENT, format!("the pod's agent {}{words}", status_text(status)))
    }

    fn console_text(&self) -> String {
        match self.console.as_slice() {
            [] => "; the console is empty".into(),
            lines => format!("; last console lines:\n{}", lines.join("\n")),
        }
    }
}

/// "9 (SIGKILL)"
pub fn signal_text(signal: i32) -> String {
    const NAMES: [(Signal, &str); 10] = [
        (Signal::ABORT, "SIGABRT"),
        (Signal::BUS, "SIGBUS"),
        (Signal::FPE, "SIGFPE"),
        (Signal::HUP, "SIGHUP"),
        (Signal::ILL, "SIGILL"),
        (Signal::INT, "SIGINT"),
        (Signal::KILL, "SIGKILL"),
        (Signal::SEGV, "SIGSEGV"),
        (Signal::SYS, "SIGSYS"),
        (Signal::TERM, "SIGTERM"),
    ];
    match NAMES.iter().find(|(known, _)| known.as_raw() == signal) {
        Some((_, name)) => format!("{signal} ({name})"),
        None => signal.to_string(),
    }
}

/// How a process ended: "was killed by signal 9 (SIGKILL)".
pub fn status_text(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was killed by signal {}", signal_text(signal)),
        (None, Some(code)) => format!("ended with exit code {code}"),
        (None, None) => "ended".into(),
    }
}

/// Nanoseconds since 1970.
#[must_use]
pub fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

fn record(exit: &Exit, containers: Vec<ContainerExitRecord>) -> io::Result<Vec<u8>> {
    let record =
        ExitRecord { reason: exit.reason as i32, message: exit.message.clone(), at_ns: exit.at_ns, containers };
    Ok(serde_json::to_vec(&record)?)
}

/// Makes the place of a record that will be written when there are no paths any more. Until then it is no record.
///
/// # Errors
/// The file system's.
pub fn create_record(path: &Path) -> io::Result<std::fs::File> {
    std::fs::File::options().create(true).write(true).truncate(true).mode(0o600).open(path)
}

/// Writes the record to a file of [`create_record`]: a reader that sees a part of it sees no record.
///
/// # Errors
/// The file system's.
pub fn fill_record(file: &mut std::fs::File, exit: &Exit, containers: Vec<ContainerExitRecord>) -> io::Result<()> {
    file.write_all(&record(exit, containers)?)
}

/// Writes the record so that a reader sees all of it or nothing.
///
/// # Errors
/// The file system's.
pub fn write_record(path: &Path, exit: &Exit, containers: Vec<ContainerExitRecord>) -> io::Result<()> {
    let bytes = record(exit, containers)?;
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let written = std::fs::File::options()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&name)
        .and_then(|mut file| file.write_all(&bytes))
        .and_then(|()| std::fs::rename(&name, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&name);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence() -> Evidence {
        Evidence {
            is_machine: true,
            ended_for: None,
            how: How::Process(ExitStatus::from_raw(0)),
            was_ready: true,
            panic: None,
            console: vec!["before".into(), FAREWELL.into()],
            monitor_words: Vec::new(),
        }
    }

    fn judged(change: impl FnOnce(&mut Evidence)) -> (ExitReason, String) {
        let mut evidence = evidence();
        change(&mut evidence);
        let exit = evidence.judge();
        (exit.reason, exit.message)
    }

    #[test]
    fn ends_are_told_apart() {
        use ExitReason::*;
        let off = judged(|_| {});
        assert_eq!(off, (EXIT_REASON_POWER_OFF, "the guest powered off".into()));
        let never = judged(|e| e.was_ready = false);
        assert_eq!(never.0, EXIT_REASON_AGENT);
        assert_eq!(
            never.1,
            "the guest powered off before its agent listened; last console lines:\nbefore\nbulkhead-agent: power off"
        );
        let silent = judged(|e| e.console.clear());
        assert_eq!(silent, (EXIT_REASON_AGENT, "the guest ended without a word; the console is empty".into()));
        let killed = judged(|e| e.how = How::Process(ExitStatus::from_raw(9)));
        assert_eq!(killed, (EXIT_REASON_KILLED, "QEMU was killed by signal 9 (SIGKILL)".into()));
        let own = judged(|e| {
            e.how = How::Process(ExitStatus::from_raw(1 << 8));
            e.monitor_words = vec!["qemu: could not open kernel file".into()];
        });
        assert_eq!(
            own,
            (EXIT_REASON_MONITOR_ERROR, "QEMU ended with exit code 1: qemu: could not open kernel file".into())
        );
        let panic = judged(|e| e.panic = Some("Kernel panic - not syncing: Fatal exception".into()));
        assert_eq!(panic.0, EXIT_REASON_PANIC);
        let agent = judged(|e| {
            e.panic = Some("Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100".into())
        });
        assert_eq!(agent.0, EXIT_REASON_AGENT);
        assert!(agent.1.starts_with("the guest's agent ended: Kernel panic - not syncing: Attempted to kill init!"));
        let asked = judged(|e| {
            e.ended_for = Some(Cause::Shutdown);
            e.how = How::Process(ExitStatus::from_raw(9));
        });
        assert_eq!(asked.0, EXIT_REASON_SHUTDOWN);
        let wedged = judged(|e| {
            e.ended_for = Some(Cause::Panic);
            e.how = How::Process(ExitStatus::from_raw(9));
            e.panic = Some("Kernel panic - not syncing: x".into());
        });
        assert_eq!(wedged.0, EXIT_REASON_PANIC);
        let files = judged(|e| e.ended_for = Some(Cause::FileServer(status_text(ExitStatus::from_raw(9)))));
        assert_eq!(
            files,
            (
                EXIT_REASON_MONITOR_ERROR,
                "the machine was ended because its file server was killed by signal 9 (SIGKILL)".into()
            )
        );
    }

    #[test]
    fn ends_of_our_own_machine_are_told_apart() {
        use ExitReason::*;
        for (end, was_ready, farewell, expected) in [
            (End::PowerOff, true, true, EXIT_REASON_POWER_OFF),
            (End::Reset, true, true, EXIT_REASON_POWER_OFF),
            (End::Reset, true, false, EXIT_REASON_REBOOT),
            (End::PowerOff, true, false, EXIT_REASON_AGENT),
            (End::PowerOff, false, true, EXIT_REASON_AGENT),
            (End::TripleFault, true, false, EXIT_REASON_TRIPLE_FAULT),
            (End::Failed("x".into()), false, false, EXIT_REASON_MONITOR_ERROR),
        ] {
            let judged = judged(|e| {
                e.how = How::Machine(end.clone());
                e.was_ready = was_ready;
                if !farewell {
                    e.console.pop();
                }
            });
            assert_eq!(judged.0, expected, "{end:?}: {}", judged.1);
        }
    }

    #[test]
    fn a_machine_that_failed_before_its_shutdown_was_not_shut_down() {
        use ExitReason::*;
        for (how, farewell, expected) in [
            (How::Stopped, false, EXIT_REASON_SHUTDOWN),
            (How::Machine(End::PowerOff), true, EXIT_REASON_SHUTDOWN),
            (How::Machine(End::PowerOff), false, EXIT_REASON_SHUTDOWN),
            (How::Machine(End::Reset), true, EXIT_REASON_SHUTDOWN),
            (How::Machine(End::Reset), false, EXIT_REASON_REBOOT),
            (How::Machine(End::TripleFault), false, EXIT_REASON_TRIPLE_FAULT),
            (How::Machine(End::Failed("x".into())), false, EXIT_REASON_MONITOR_ERROR),
        ] {
            let judged = judged(|e| {
                e.ended_for = Some(Cause::Shutdown);
                e.how = how.clone();
                if !farewell {
                    e.console.pop();
                }
            });
            assert_eq!(judged.0, expected, "{how:?}: {}", judged.1);
        }
    }

    #[test]
    fn the_record_is_whole_and_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("exit.json");
        let exit = Exit { reason: ExitReason::EXIT_REASON_KILLED, message: "m".into(), at_ns: 5 };
        let container = ContainerExitRecord { id: "c".into(), code: 1, oom_killed: false, finished_at_ns: 2 };
        write_record(&path, &exit, vec![container.clone()]).unwrap();
        let record: ExitRecord = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(record, ExitRecord { reason: 3, message: "m".into(), at_ns: 5, containers: vec![container] });
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
