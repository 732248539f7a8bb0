//! QEMU alone: the same kernel and initramfs, booted to the first instruction of an init that ends the machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bulkhead_tests::command;
use bulkhead_tests::environment::Environment;
use bulkhead_tests::initramfs::{entry, program, trailer};

/// `reboot(LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_RESTART, NULL)`, then a loop.
const CODE: [u8; 27] = [
    0xbf, 0xad, 0xde, 0xe1, 0xfe, // mov edi, 0xfee1dead
    0xbe, 0x69, 0x19, 0x12, 0x28, // mov esi, 0x28121969
    0xba, 0x67, 0x45, 0x23, 0x01, // mov edx, 0x01234567
    0x45, 0x31, 0xd2, // xor r10d, r10d
    0xb8, 0xa9, 0x00, 0x00, 0x00, // mov eax, 169
    0x0f, 0x05, // syscall
    0xeb, 0xfe, // jmp to itself
];
const INIT: &str = "end-at-once";

/// A plain QEMU with everything it boots.
#[derive(Debug)]
pub struct PlainQemu {
    kernel: PathBuf,
    initramfs: PathBuf,
}

impl PlainQemu {
    /// Puts the initramfs together below `directory`: the pods' own, and one small program more.
    ///
    /// # Errors
    /// When files cannot be read or written.
    pub fn new(environment: &Environment, directory: &Path) -> Result<Self> {
        let mut archive = fs::read(&environment.initramfs)?;
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(&entry(INIT, 0o100_755, &program(&CODE)));
        archive.extend_from_slice(&trailer());
        let initramfs = directory.join("plain-initramfs");
        fs::write(&initramfs, archive)?;
        Ok(Self { kernel: environment.kernel.clone(), initramfs })
    }

    /// From QEMU's start until the kernel has run init, which ends QEMU.
    ///
    /// # Errors
    /// When it does not end by itself.
    pub fn boot(&self) -> Result<Duration> {
        let kernel = self.kernel.display().to_string();
        let initramfs = self.initramfs.display().to_string();
        let command_line = format!("console=ttyS0 quiet reboot=t panic=-1 rdinit=/{INIT}");
        let arguments = [
            "-machine",
            "microvm,acpi=off,rtc=on,pit=on,pic=on",
            "-accel",
            "tcg",
            "-cpu",
            "max",
            "-smp",
            "1",
            "-m",
            "256M",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-serial",
            "stdio",
            "-kernel",
            &kernel,
            "-initrd",
            &initramfs,
            "-append",
            &command_line,
        ];
        let started = Instant::now();
        let output = command::run("qemu-system-x86_64", &arguments, Duration::from_secs(60))?.success()?;
        let took = started.elapsed();
        ensure!(!output.stdout.contains("panic"), "the kernel did not reach init: {output}");
        Ok(took)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_tests::environment::{Handler, in_path, profile_directory};

    #[test]
    fn the_small_init_ends_the_machine() -> Result<()> {
        let kernel = profile_directory().parent().map(|target| target.join("guest/vmlinux")).unwrap_or_default();
        if !kernel.exists() || in_path("qemu-system-x86_64").is_none() {
            println!("skipped: the_small_init_ends_the_machine: no guest kernel or no qemu-system-x86_64");
            return Ok(());
        }
        let directory = tempfile::tempdir()?;
        let initramfs = directory.path().join("pods-initramfs");
        fs::write(&initramfs, [])?;
        let environment = Environment {
            bulkhead: PathBuf::new(),
            kernel,
            initramfs,
            agent: PathBuf::new(),
            crictl: None,
            critest: None,
            nri: None,
            handler: Handler::Qemu,
            emulated: false,
        };
        PlainQemu::new(&environment, directory.path())?.boot().map(drop)
    }
}
