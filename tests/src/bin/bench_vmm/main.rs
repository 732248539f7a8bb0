//! Compares bulkhead-vmm with other monitors and prints a table: `bench-vmm [boot|transfer] [ROUNDS]`. `bench-vmm initcalls` prints
//! instead what the guest kernel's boot consists of by the clock of a guest of bulkhead-vmm.
//!
//! * [`monitors`]: how each is told to run the same guest. * [`running`]: its guest, and what that costs.
//! * [`boot`]: start to init, and memory. * [`transfer`]: network, sockets, drives. * [`initcalls`]: the kernel's own part.
//! * [`comparison`]: the table. * [`failures`]: what is not in it. * [`cgroup`], [`tap`]: what a guest needs on this machine.
//!
//! Monitors take turns in every round, so that a slow minute of the machine meets all. scripts/bench-vmm.sh runs it in the lab.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use bulkhead_tests::environment::in_path;
use bulkhead_tests::initramfs::{device, entry, trailer};

use self::failures::Failures;
use self::monitors::{Guest, Kind};
use self::tap::Tap;

mod boot;
mod cgroup;
mod comparison;
mod failures;
mod initcalls;
mod monitors;
mod running;
mod tap;
mod transfer;

const ROUNDS: usize = 5;
const SCRATCH_BYTES: usize = 64 << 20;
const SECTOR_BYTES: u64 = 512;

/// What all guests share.
#[derive(Debug)]
pub struct Setup {
    /// Each with its column of the table.
    pub kinds: Vec<(usize, Kind)>,
    /// The pods' initramfs.
    pub initramfs: PathBuf,
    /// Removed at the end.
    pub directory: tempfile::TempDir,
    kernel: PathBuf,
    own_initramfs: PathBuf,
    images: PathBuf,
    scratch: PathBuf,
    tap: Tap,
}

fn main() -> ExitCode {
    match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-vmm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn work() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut first = arguments.next();
    let part = first.take_if(|word| matches!(word.as_str(), "boot" | "transfer" | "initcalls"));
    let rounds = first.or_else(|| arguments.next()).map_or(Ok(ROUNDS), |number| number.parse());
    let rounds = rounds.context("usage: bench-vmm [boot|transfer|initcalls] [ROUNDS]")?;
    let setup = Setup::new()?;
    if part.as_deref() == Some("initcalls") {
        let (_, ours) = setup.kinds.first().context("there is no monitor")?;
        print!("{}", initcalls::tables(&setup, ours)?);
        return Ok(());
    }
    let (mut failures, mut rows) = (Failures::default(), Vec::new());
    if part.as_deref() != Some("transfer") {
        rows.extend(boot::measure(&setup, rounds, &mut failures)?);
    }
    if part.as_deref() != Some("boot") {
        rows.extend(transfer::measure(&setup, rounds, &mut failures));
    }
    print!("{}\n{failures}", comparison::Table { rounds, rows: &rows });
    Ok(())
}

impl Setup {
    fn new() -> Result<Self> {
        let named = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let needed =
            |name: &str| named(name).with_context(|| format!("{name} is not set; scripts/bench-vmm.sh sets it"));
        let mut kinds = vec![(0, Kind::Bulkhead(needed("BULKHEAD_VMM")?))];
        if in_path("qemu-system-x86_64").is_some() {
            let helper = named("VHOST_DEVICE_VSOCK");
            if helper.is_none() {
                eprintln!("skipped: QEMU's sockets: VHOST_DEVICE_VSOCK names no vhost-device-vsock");
            }
            kinds.push((1, Kind::Qemu(helper)));
        } else {
            eprintln!("skipped: QEMU: qemu-system-x86_64 is not in PATH");
        }
        match named("FIRECRACKER") {
            Some(binary) => kinds.push((2, Kind::Firecracker(binary))),
            None => eprintln!("skipped: Firecracker: FIRECRACKER names no binary"),
        }
        kinds.extend(named("BULKHEAD_VMM_BEFORE").map(|binary| (3, Kind::Bulkhead(binary))));
        let directory = tempfile::tempdir()?;
        let at = |name: &str| directory.path().join(name);
        fs::write(at("initramfs"), archive(&needed("BULKHEAD_BENCH_GUEST")?)?)?;
        File::create(at("images"))?.set_len(SECTOR_BYTES)?;
        // With bytes: a hole would be faster than any drive.
        fs::write(at("scratch"), vec![0x5a; SCRATCH_BYTES])?;
        Ok(Self {
            kinds,
            initramfs: needed("BULKHEAD_INITRAMFS")?,
            kernel: needed("BULKHEAD_KERNEL")?,
            own_initramfs: at("initramfs"),
            images: at("images"),
            scratch: at("scratch"),
            tap: Tap::new()?,
            directory,
        })
    }

    /// The guest that serves.
    pub fn guest(&self) -> Guest<'_> {
        Guest {
            kernel: &self.kernel,
            initramfs: &self.own_initramfs,
            arguments: "rdinit=/init",
            images: &self.images,
            scratch: &self.scratch,
            tap: &self.tap,
        }
    }
}

/// For a row of that unit.
#[allow(clippy::cast_precision_loss)] // sizes far below 2^52
pub fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}

fn archive(init: &Path) -> Result<Vec<u8>> {
    let init = fs::read(init).with_context(|| format!("cannot read the guest's program {}", init.display()))?;
    let mut archive = Vec::new();
    for directory in ["dev", "proc", "sys"] {
        archive.extend(entry(directory, 0o40_755, &[]));
    }
    // Without a console, Rust's runtime wants something else that it can open.
    archive.extend(device("dev/null", 0o20_666, (1, 3)));
    archive.extend(entry("init", 0o100_755, &init));
    archive.extend(trailer());
    Ok(archive)
}
