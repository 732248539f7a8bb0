//! QEMU's microvm machine, its virtio devices served by this process by vhost-user.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;

use bulkhead_proto::launch::{Launch, Monitor};

/// The sockets that QEMU connects to and the taps it inherits.
#[derive(Debug)]
pub struct Machine<'a> {
    /// Served vsock device.
    pub vsock: PathBuf,
    /// Served drives, in the order of the guest's disks.
    pub drives: Vec<PathBuf>,
    /// Served file system, if the pod has a file server.
    pub volumes: Option<PathBuf>,
    /// Taps, in the order of the guest's network devices.
    pub taps: &'a [OwnedFd],
}

/// The kernel's own words are few: the console is slow, and only what goes wrong is of interest.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet loglevel=4 panic=-1 reboot=t random.trust_cpu=on tsc=reliable \
                                no_timer_check nomodule";

/// QEMU's command line.
#[must_use]
pub fn command(launch: &Launch, machine: &Machine<'_>) -> Command {
    let Monitor::Qemu { binary, accelerator } = &launch.monitor;
    let mut qemu = Command::new(binary);
    qemu.args(["-M", "microvm,acpi=off,rtc=on,pit=on,pic=on,isa-serial=on,memory-backend=mem"]);
    qemu.args(["-accel", accelerator, "-cpu", if accelerator == "kvm" { "host" } else { "max" }]);
    qemu.args(["-smp", &launch.vcpus.to_string(), "-m", &format!("{}M", launch.memory_mib)]);
    qemu.args(["-object", &format!("memory-backend-memfd,id=mem,size={}M,share=on", launch.memory_mib)]);
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]);
    // vhost-user blk and fs refuse virtio's legacy interface.
    qemu.args(["-global", "virtio-mmio.force-legacy=false"]);
    qemu.arg("-kernel").arg(&launch.kernel).arg("-initrd").arg(&launch.initramfs);
    qemu.args(["-append", format!("{KERNEL_ARGUMENTS} {}", launch.kernel_arguments).trim_end()]);
    let mut device = |index: usize, socket: &PathBuf, device: String| {
        let mut chardev = OsString::from(format!("socket,id=c{index},path="));
        chardev.push(socket);
        qemu.arg("-chardev").arg(chardev).args(["-device", &format!("{device},chardev=c{index}")]);
    };
    device(0, &machine.vsock, "vhost-user-vsock-device".to_owned());
    for (index, socket) in machine.drives.iter().enumerate() {
        device(index + 1, socket, "vhost-user-blk".to_owned());
    }
    if let Some(socket) = &machine.volumes {
        device(machine.drives.len() + 1, socket, "vhost-user-fs-device,tag=volumes,queue-size=256".to_owned());
    }
    for (index, tap) in machine.taps.iter().enumerate() {
        qemu.args(["-netdev", &format!("tap,id=n{index},fd={},vhost=off", tap.as_raw_fd())]);
        qemu.args(["-device", &format!("virtio-net-device,netdev=n{index}")]);
    }
    qemu.args(["-device", "virtio-rng-device"]);
    qemu
}
