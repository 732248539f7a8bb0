//! Measures what a pod and an image cost, and prints a table: `bench [ROUNDS]`.
//!
//! * [`pods`]: the CRI's verbs, over the socket itself, beside a plain QEMU that boots the same kernel.
//! * [`pull`]: PullImage beside `skopeo copy` and `umoci unpack`, from the same registry.
//! * [`table`]: minimum, median and maximum.
//!
//! What is compared runs alternately, so that a slow minute of the machine meets both.

use std::process::ExitCode;

use anyhow::{Context, Result};
use bulkhead_tests::environment::Environment;
use bulkhead_tests::fixture::Fixture;
use bulkhead_tests::leaks::host;
use bulkhead_tests::suite::SuiteFixture;

mod plain_qemu;
mod pods;
mod pull;
mod table;

const ROUNDS: usize = 10;

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<()> {
    let rounds = match std::env::args().nth(1) {
        Some(rounds) => rounds.parse().context("usage: bench [ROUNDS]")?,
        None => ROUNDS,
    };
    let environment = Environment::find()?;
    let fixture = Fixture::start(&environment)?;
    let measured = rows(&fixture, rounds);
    if let Ok(rows) = &measured {
        print!("{}", table::Table { rounds, rows });
    }
    let finished = fixture.finish();
    measured.map(drop).and(finished)
}

fn rows(fixture: &Fixture, rounds: usize) -> Result<Vec<table::Row>> {
    let mut rows = pods::measure(fixture, rounds)?;
    rows.extend(pull::measure(fixture, rounds)?);
    if let Some(pid) = fixture.daemon.pid() {
        let mut memory = table::Row::new("the daemon's memory after all this", table::Unit::Mebibytes);
        memory.add(pods::mebibytes(host::resident(pid)));
        rows.push(memory);
    }
    Ok(rows)
}
