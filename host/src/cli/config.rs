//! `bulkhead config`: the commented default, and what is in force.

use std::path::Path;
use std::process::ExitCode;

use crate::config::Config;

/// Every key with its default, for people; a test holds it against the struct.
pub const DEFAULT_TEXT: &str = include_str!("default.toml");

pub(super) fn show(path: Option<&Path>) -> anyhow::Result<ExitCode> {
    let config = Config::load(path)?;
    print!("{}", toml::to_string(&config)?);
    Ok(ExitCode::SUCCESS)
}
