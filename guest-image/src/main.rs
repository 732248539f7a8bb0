//! Builds what a Bulkhead pod boots: a guest kernel and an initramfs that is the agent and nothing else.
//!
//! Start with [`kernel`] (the recipe) and `kernel.config` (what the kernel must offer, and why).

mod cache;
mod cpio;
mod fragment;
mod initramfs;
mod job;
mod kernel;
mod progress;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

#[derive(Parser)]
#[command(name = "bulkhead-guest-image", about = "Builds the guest kernel and the initramfs of a pod", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the guest kernel unless it is cached, and print its path
    Kernel,
    /// Pack the agent into an initramfs
    Initramfs {
        /// The agent, a statically linked x86-64 program
        #[arg(long, value_name = "PATH")]
        agent: PathBuf,
        /// Where to write the initramfs
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
        /// How to compress it
        #[arg(long, value_enum, default_value_t)]
        compression: initramfs::Compression,
    },
    /// Print where a cached artifact is; fails when it was not built yet
    Path {
        #[arg(value_enum)]
        artifact: Artifact,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Artifact {
    /// The guest kernel, an ELF file with a PVH entry
    Kernel,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Kernel => {
            println!("{}", kernel::Recipe::from_env()?.build()?.display());
        }
        Command::Initramfs { agent, output, compression } => {
            let size = initramfs::write(&agent, &output, compression)?;
            eprintln!("initramfs: {} ({} KiB)", output.display(), size.div_ceil(1024));
        }
        Command::Path { artifact: Artifact::Kernel } => {
            println!("{}", kernel::Recipe::from_env()?.built()?.display());
        }
    }
    Ok(())
}
