//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod check;
pub mod config;
mod debug_console;
mod run;
mod serve;

/// A Kubernetes container runtime that gives every pod its own microVM.
#[derive(Debug, Parser)]
#[command(name = "bulkhead", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon in the foreground; it logs to standard error.
    Serve(ConfigPath),
    /// Say, line by line, what this host has and lacks, and what to do about it.
    Check(ConfigPath),
    /// Look at the configuration.
    Config {
        #[command(subcommand)]
        what: ConfigCommand,
    },
    /// Run one container in a pod of its own, pass its output and exit code through, and remove both.
    Run(run::RunArguments),
    /// Show a pod's guest console and, where its handler has `debug_console = true`, type on it. Needs no daemon.
    DebugConsole(debug_console::DebugConsoleArguments),
    /// Print the version.
    Version,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print the default configuration with comments.
    Default,
    /// Print the configuration as the daemon would use it.
    Show(ConfigPath),
}

#[derive(Debug, clap::Args)]
struct ConfigPath {
    /// Configuration file [default: /etc/bulkhead/config.toml, if it exists].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Parses the command line and runs the command; an error is one line on standard error.
pub fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Serve(path) => serve::serve(path.config.as_deref()).map(|()| ExitCode::SUCCESS),
        Command::Check(path) => check::check(path.config.as_deref()),
        Command::Config { what: ConfigCommand::Default } => {
            print!("{}", config::DEFAULT_TEXT);
            Ok(ExitCode::SUCCESS)
        }
        Command::Config { what: ConfigCommand::Show(path) } => config::show(path.config.as_deref()),
        Command::Run(arguments) => run::run(arguments),
        Command::DebugConsole(arguments) => debug_console::run(&arguments),
        Command::Version => {
            println!("bulkhead {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("bulkhead: {}", crate::error_text(error.as_ref()));
        ExitCode::FAILURE
    })
}
