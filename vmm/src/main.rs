//! `bulkhead-vmm`: started by the daemon with a socket as its standard input (`proto/src/launch.rs`).

use std::process::ExitCode;

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_target(false).init();
    bulkhead_vmm::pod::main()
}
