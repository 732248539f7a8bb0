//! Boots the cached kernel with an initramfs of ours under QEMU's emulation, no root needed.
//!
//! The program in the initramfs is busybox, which as `/init` looks for its scripts and tells that there are none.

#![expect(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

use std::io::{self, BufRead, BufReader, PipeReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

const BUSYBOX: &str = "/bin/busybox";
/// What busybox says as the first program of a machine without scripts.
const ALIVE: &str = "can't run '/etc/init.d/rcS'";
const MACHINE: &str = "60 qemu-system-x86_64 -M microvm,acpi=off,rtc=on,pit=on,pic=on -accel tcg -cpu max -m 128 \
    -nodefaults -no-user-config -display none -no-reboot -serial stdio -kernel";
const PANIC: &str = "Kernel panic - not syncing";

struct Machine {
    child: Child,
    /// With QEMU's own words.
    console: BufReader<PipeReader>,
}

impl Machine {
    fn start(kernel: &Path, initramfs: &Path, parameters: &str) -> Self {
        let mut command = Command::new("timeout");
        command.args(MACHINE.split_whitespace()).arg(kernel);
        command.arg("-initrd").arg(initramfs);
        command.arg("-append").arg(format!("console=ttyS0 reboot=t panic=-1 {parameters}"));
        let (console, output) = io::pipe().unwrap();
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        let child = command.spawn().unwrap();
        let console = BufReader::new(console);
        Self { child, console }
    }

    /// The console up to a line with `text`; panics when the machine ends before.
    fn until(&mut self, text: &str) -> String {
        let mut seen = String::new();
        let mut line = Vec::new();
        while self.console.read_until(b'\n', &mut line).unwrap() > 0 {
            seen.push_str(&String::from_utf8_lossy(&line));
            if seen.contains(text) {
                return seen;
            }
            line.clear();
        }
        panic!("the machine ended without {text:?}:\n{seen}");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // timeout passes SIGTERM on to QEMU; SIGKILL would leave QEMU behind.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

fn tool(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bulkhead-guest-image")).args(arguments).output().unwrap()
}

/// The cached kernel, or nothing after telling what is lacking.
fn kernel() -> Option<PathBuf> {
    let found = tool(&["path", "kernel"]);
    let qemu = Command::new("qemu-system-x86_64").arg("--version").output();
    let lacking = if !found.status.success() {
        String::from_utf8_lossy(&found.stderr).trim().to_owned()
    } else if !qemu.is_ok_and(|output| output.status.success()) {
        "qemu-system-x86_64 is not in PATH (package qemu-system-x86)".to_owned()
    } else if !Path::new(BUSYBOX).exists() {
        format!("{BUSYBOX} does not exist (package busybox-static)")
    } else {
        return Some(PathBuf::from(String::from_utf8(found.stdout).unwrap().trim()));
    };
    #[expect(clippy::explicit_write, reason = "eprintln! would be captured, and nobody told")]
    writeln!(io::stderr(), "skipped: boot: {lacking}").unwrap();
    None
}

fn initramfs(dir: &Path, compression: &str) -> PathBuf {
    let output = dir.join(compression);
    let path = output.to_str().unwrap();
    let made = tool(&["initramfs", "--agent", BUSYBOX, "--output", path, "--compression", compression]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    output
}

#[test]
fn the_kernel_starts_init_from_each_kind_of_initramfs() {
    let Some(kernel) = kernel() else { return };
    let dir = tempfile::tempdir().unwrap();
    for compression in ["none", "gzip", "zstd"] {
        Machine::start(&kernel, &initramfs(dir.path(), compression), "quiet").until(ALIVE);
    }
}

#[test]
fn a_panic_is_told_on_the_console_and_ends_the_machine() {
    let Some(kernel) = kernel() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut machine = Machine::start(&kernel, &initramfs(dir.path(), "none"), "quiet rdinit=/absent");
    machine.until(PANIC);
    machine.until("Call Trace");
    assert!(machine.child.wait().unwrap().success());
}

#[test]
fn virtio_devices_of_the_command_line_are_probed() {
    let Some(kernel) = kernel() else { return };
    let dir = tempfile::tempdir().unwrap();
    // Nothing answers at that address, and the driver says so: the parameter is understood.
    let parameter = "loglevel=7 virtio_mmio.device=4K@0xd0000000:5";
    let log = Machine::start(&kernel, &initramfs(dir.path(), "none"), parameter).until(ALIVE);
    assert!(log.contains("virtio-mmio: Registering device virtio-mmio.0 at 0xd0000000"), "{log}");
}
