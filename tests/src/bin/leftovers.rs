//! Removes what an interrupted demo or suite left: `leftovers DIRECTORY`.

use std::path::Path;
use std::process::ExitCode;

use bulkhead_tests::leaks::sweep;

fn main() -> ExitCode {
    let Some(directory) = std::env::args_os().nth(1) else {
        eprintln!("usage: leftovers DIRECTORY");
        return ExitCode::FAILURE;
    };
    match sweep::sweep(Path::new(&directory)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("leftovers: {error:#}");
            ExitCode::FAILURE
        }
    }
}
