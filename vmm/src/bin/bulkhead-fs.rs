//! `bulkhead-fs`: a pod's file server, started by `bulkhead-vmm` with a socket as its standard input.

use std::process::ExitCode;

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_target(false).init();
    match bulkhead_vmm::file_server::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("bulkhead-fs: {}", bulkhead_vmm::error_text(&error));
            ExitCode::FAILURE
        }
    }
}
