//! `bulkhead`: the daemon and its command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    bulkhead::cli::main()
}
