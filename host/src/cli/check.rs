//! `bulkhead check`: what this host has and lacks.

use std::path::Path;
use std::process::ExitCode;

use crate::check;
use crate::config::Config;

/// Fails when something that pods need is missing.
pub(super) fn check(path: Option<&Path>) -> anyhow::Result<ExitCode> {
    let config = Config::load(path)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let findings = runtime.block_on(check::run(&config));
    print!("{}", check::render(&findings));
    let missing = findings.iter().any(|finding| finding.level == check::Level::Missing);
    Ok(if missing { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
