//! What runs a pod's guest: KVM, QEMU, the guest's kernel, and our own programs.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use super::{Finding, Level, kvm_selftest};
use crate::config::{Accelerator, Config, RuntimeHandlerConfig, SandboxerKind};
use crate::error_text;
use crate::sys::host::{find_program, is_executable};

/// Longest wait for QEMU to say its version.
const QEMU_LIMIT: Duration = Duration::from_secs(10);
const EMULATED: &str = "handlers with accelerator \"auto\" emulate in software (TCG): slower, and no security boundary";

pub(super) async fn kvm(config: &Config) -> Vec<Finding> {
    // With emulation as a fallback pods still run, unless the configuration says that they must not.
    let named = config.runtimes.get(&config.daemon.default_runtime);
    let needed = in_qemu(config).any(|handler| handler.accelerator == Accelerator::Kvm)
        || named.is_some_and(|handler| handler.sandboxer == SandboxerKind::Microvm);
    let level = if needed { Level::Missing } else { Level::Warning };
    let device = kvm_selftest::KVM_DEVICE;
    if let Err(error) = OpenOptions::new().read(true).write(true).open(device) {
        let to_do = "enable virtualisation in the firmware, or nested virtualisation in the hypervisor, and load kvm-amd or kvm-intel";
        return vec![Finding::lacking("KVM", level, format!("cannot open {device}: {error}; {EMULATED}"), to_do)];
    }
    let opens = Finding::ok("KVM", format!("{device} opens"));
    let tested = tokio::task::spawn_blocking(kvm_selftest::run_patiently).await;
    let failed = |why: String| {
        let to_do = "use a host whose KVM is the processor's own; set accelerator = \"tcg\" to emulate knowingly";
        Finding::lacking("KVM self-test", level, format!("{why}; {EMULATED}"), to_do)
    };
    let test = match tested {
        Ok(Ok(time)) => {
            Finding::ok("KVM self-test", format!("a guest ran what stock kernels run, in {} ms", time.as_millis()))
        }
        Ok(Err(error)) => failed(error_text(&error)),
        Err(error) => failed(error.to_string()),
    };
    vec![opens, test]
}

fn in_qemu(config: &Config) -> impl Iterator<Item = &RuntimeHandlerConfig> {
    config.runtimes.values().filter(|handler| handler.sandboxer == SandboxerKind::Qemu)
}

pub(super) async fn qemu(config: &Config) -> Vec<Finding> {
    let binaries: BTreeSet<&PathBuf> = in_qemu(config).map(|handler| &handler.qemu).collect();
    let mut findings = Vec::new();
    for name in binaries {
        findings.push(qemu_version(name).await);
    }
    findings
}

async fn qemu_version(name: &Path) -> Finding {
    let to_do = "apt-get install qemu-system-x86, or set qemu in [runtimes.NAME]";
    let missing = |found: String| Finding::lacking("QEMU", Level::Missing, found, to_do);
    let Some(binary) = find_program(name) else { return missing(format!("no {} in PATH", name.display())) };
    let output = Command::new(&binary).arg("--version").kill_on_drop(true).output();
    match tokio::time::timeout(QEMU_LIMIT, output).await {
        Ok(Ok(output)) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            Finding::ok("QEMU", format!("{}: {}", binary.display(), text.lines().next().unwrap_or_default()))
        }
        Ok(Ok(output)) => missing(format!("{} --version: {}", binary.display(), output.status)),
        Ok(Err(error)) => missing(format!("cannot run {}: {error}", binary.display())),
        Err(_) => missing(format!("{} --version gave no answer in {} s", binary.display(), QEMU_LIMIT.as_secs())),
    }
}

pub(super) fn files(config: &Config) -> Vec<Finding> {
    let guest = &config.guest;
    let shares_host = |handler: &RuntimeHandlerConfig| handler.sandboxer.shares_host();
    let mut findings = vec![program("bulkhead-vmm", &guest.vmm, "vmm")];
    if !config.runtimes.values().all(shares_host) {
        findings.push(image("guest kernel", &guest.kernel, "kernel"));
        findings.push(image("guest initramfs", &guest.initramfs, "initramfs"));
        findings.push(program("bulkhead-fs", &guest.file_server, "file_server"));
    }
    if config.runtimes.values().any(shares_host) {
        findings.push(program("bulkhead-agent", &guest.agent, "agent"));
    }
    findings
}

fn image(name: &'static str, path: &Path, key: &str) -> Finding {
    let missing = |found| {
        let to_do = format!("build it (make guest) and install it (make install), or set {key} in [guest]");
        Finding::lacking(name, Level::Missing, found, to_do)
    };
    match fs::metadata(path) {
        Ok(data) if data.is_file() && data.len() > 0 => {
            Finding::ok(name, format!("{} ({} KiB)", path.display(), data.len() / 1024))
        }
        Ok(_) => missing(format!("{} is no file with content", path.display())),
        Err(error) => missing(format!("{}: {error}", path.display())),
    }
}

fn program(name: &'static str, configured: &Path, key: &str) -> Finding {
    let beside = || std::env::current_exe().map(|own| own.with_file_name(name)).unwrap_or_else(|_| name.into());
    let path = if configured.as_os_str().is_empty() { beside() } else { configured.to_owned() };
    if is_executable(&path) {
        return Finding::ok(name, path.display().to_string());
    }
    let to_do = format!("install it beside bulkhead, or set {key} in [guest]");
    Finding::lacking(name, Level::Missing, format!("{} is no executable file", path.display()), to_do)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_is_no_qemu_is_told() {
        assert_eq!(qemu_version(Path::new("no-such-qemu")).await.found, "no no-such-qemu in PATH");
        let finding = qemu_version(Path::new("/bin/false")).await;
        assert_eq!((finding.level, finding.found.as_str()), (Level::Missing, "/bin/false --version: exit status: 1"));
    }

    #[test]
    fn an_image_must_have_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vmlinux");
        assert!(image("guest kernel", &path, "kernel").found.contains("No such file"));
        fs::write(&path, "").unwrap();
        assert_eq!(image("guest kernel", &path, "kernel").level, Level::Missing);
        fs::write(&path, [0; 2048]).unwrap();
        assert_eq!(image("guest kernel", &path, "kernel").found, format!("{} (2 KiB)", path.display()));
    }
}
