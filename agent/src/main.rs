//! Chooses what this process is: a set-up helper, PID 1 of a guest, or a process of the host.

use std::process::ExitCode;

use bulkhead_agent::{helper, host, init};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned()).peekable();
    if arguments.peek().is_some_and(|first| first == helper::ARGUMENT) {
        return helper::main();
    }
    if std::process::id() == 1 && arguments.peek().is_none_or(|first| !first.starts_with("--")) {
        return init::main();
    }
    host::main(arguments)
}
