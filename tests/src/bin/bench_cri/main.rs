//! Measures what the CRI's verbs cost on the host's own kernel beside containerd and runc, and prints tables:
//! `bench-cri [ROUNDS]`.
//!
//! * [`critest`]: `critest -benchmark`, the measuring instrument for both.
//! * [`containerd`]: the other side, with the same registry, image, CNI network and disk.
//! * [`verbs`]: rounds in turns, so that a slow minute of the machine meets both.
//! * [`footprint`]: memory of the daemon and of pods, and lists of many pods.
//! * [`table`]: minimum, median and maximum.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use bulkhead_tests::environment::Environment;
use bulkhead_tests::fixture::Fixture;
use bulkhead_tests::images::critest::{Catalogue, REGISTRIES};
use bulkhead_tests::suite::SuiteFixture;

mod containerd;
mod critest;
mod footprint;
mod table;
mod verbs;

const ROUNDS: usize = 5;

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-cri: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<()> {
    let rounds = match std::env::args().nth(1) {
        Some(rounds) => rounds.parse().context("usage: bench-cri [ROUNDS]")?,
        None => ROUNDS,
    };
    let environment = Environment::find()?;
    let critest = environment.critest.clone().context("there is no critest; scripts/tools.sh says why")?;
    let tools = critest.parent().unwrap_or(Path::new("/")).to_owned();
    let fixture = Fixture::start_with(&environment, |registry, settings| {
        for name in REGISTRIES {
            let location = format!("{}/{name}", registry.address);
            settings.more.push_str(&format!("[[image.registry]]\nprefix = {name:?}\nlocation = {location:?}\n"));
        }
        // What a node has: no line for each step.
        settings.log = "info".into();
        Catalogue::new(&tools)?.push(&registry.target())
    })?;
    let measured = tables(&fixture, &critest, rounds);
    let finished = fixture.finish();
    measured.and(finished)
}

fn tables(fixture: &Fixture, critest: &Path, rounds: usize) -> Result<()> {
    let programs = std::env::var_os("BULKHEAD_CONTAINERD").map(PathBuf::from).filter(|path| path.exists());
    let rival = programs.map(|programs| containerd::Containerd::start(fixture, &programs)).transpose()?;
    if rival.is_none() {
        println!("skipped: the comparison with containerd: there is none (scripts/containerd.sh says why)\n");
    }
    let sides = verbs::Sides { ours: fixture.daemon.settings.socket(), theirs: rival.as_ref().map(|r| r.socket()) };
    let rows = verbs::measure(fixture, critest, &sides, rounds)?;
    drop(rival);
    print!("{}", table::Pairs { rounds, rows: &rows });
    println!();
    print!("{}", footprint::measure(fixture)?);
    Ok(())
}
