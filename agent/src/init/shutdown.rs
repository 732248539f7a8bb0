//! The guest's end.

use std::fs::OpenOptions;
use std::io::Write;
use std::process::ExitCode;

use rustix::system::RebootCommand;

/// Last line on the console of a guest that ends in order.
const FAREWELL: &str = "bulkhead-agent: power off";

/// Kills what is left, syncs and ends the machine. The monitor is started so that a reset ends it, which works
/// without ACPI too; the console line tells it from a panic.
pub(super) fn power_off() -> ExitCode {
    let everybody = nix::unistd::Pid::from_raw(-1);
    // ESRCH: nobody is left.
    let _ = nix::sys::signal::kill(everybody, nix::sys::signal::Signal::SIGKILL);
    rustix::fs::sync();
    console(FAREWELL);
    restart()
}

/// Ends a machine that cannot carry its pod, without the farewell.
pub(super) fn give_up(reason: &str) -> ExitCode {
    console(&format!("bulkhead-agent: the pod cannot go on: {reason}"));
    restart()
}

/// A panic prints its reason and ends the machine without the farewell.
pub(super) fn power_off_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        console(&format!("bulkhead-agent: panic: {}", panic.to_string().replace('\n', " ")));
        restart();
    }));
}

fn restart() -> ExitCode {
    let Err(error) = rustix::system::reboot(RebootCommand::Restart) else { return ExitCode::FAILURE };
    console(&format!("bulkhead-agent: cannot restart the machine: {error}"));
    // The kernel panics when PID 1 ends, which ends the machine too.
    ExitCode::FAILURE
}

fn console(line: &str) {
    // There is nowhere else to say that the console cannot be written. What a reset finds in its buffer is lost.
    let _ = OpenOptions::new().write(true).open("/dev/console").and_then(|mut console| {
        console.write_all(format!("{line}\r\n").as_bytes())?;
        Ok(rustix::termios::tcdrain(&console)?)
    });
}
