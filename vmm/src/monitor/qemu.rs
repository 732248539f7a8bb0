//! QEMU's command line for a pod: the microvm machine, with this process behind its virtio devices. Pure.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::Path;

/// The kernel's own words are few: the console is slow, and only what goes wrong is of interest. There is no watchdog for
/// the clock and no test of the timer, for which there is no second one; a panic ends the machine.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet loglevel=4 panic=-1 reboot=t random.trust_cpu=on tsc=reliable \
                                no_timer_check nomodule";

/// A pod's machine. Descriptors are those that QEMU inherits.
#[derive(Debug)]
pub struct Machine<'a> {
    /// Shown in process lists.
    pub name: &'a str,
    /// "kvm" or "tcg".
    pub accelerator: &'a str,
    /// ELF with a PVH entry.
    pub kernel: &'a Path,
    /// cpio.
    pub initramfs: &'a Path,
    /// Behind what the machine needs.
    pub kernel_arguments: &'a str,
    /// From 1.
    pub vcpus: u32,
    /// Guest memory.
    pub memory_mib: u64,
    /// In the order of the guest's network devices.
    pub taps: Vec<RawFd>,
    /// Connected to the socket device.
    pub vsock: RawFd,
    /// Connected to the image drive.
    pub images: RawFd,
    /// Connected to the scratch drive.
    pub scratch: Option<RawFd>,
    /// Connected to the file server.
    pub volumes: Option<RawFd>,
}

impl Machine<'_> {
    /// The whole command line, without the program.
    #[must_use]
    pub fn arguments(&self) -> Vec<OsString> {
        let mut line = CommandLine::default();
        let memory = format!("{}M", self.memory_mib);
        line.option("-name", self.name);
        line.option("-machine", "microvm,acpi=off,rtc=on,pit=on,pic=on,memory-backend=ram");
        line.option("-accel", self.accelerator);
        line.option("-cpu", if self.accelerator == "kvm" { "host" } else { "max" });
        line.option("-smp", self.vcpus.to_string());
        line.option("-m", &memory);
        line.option("-object", format!("memory-backend-memfd,id=ram,size={memory},share=on"));
        line.flag("-nodefaults").flag("-no-user-config").flag("-no-reboot").option("-display", "none");
        line.option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
        // Without it QEMU offers the virtio of before 1.0, which vhost-user devices refuse.
        line.option("-global", "virtio-mmio.force-legacy=false");
        line.option("-chardev", "stdio,id=console,signal=off").option("-serial", "chardev:console");
        self.devices(&mut line);
        line.option("-kernel", self.kernel).option("-initrd", self.initramfs);
        line.option("-append", self.kernel_command_line());
        line.0
    }

    fn devices(&self, line: &mut CommandLine) {
        line.vhost_user(self.vsock, "vsock", format_args!("vhost-user-vsock-device,chardev=vsock"));
        line.vhost_user(self.images, "images", format_args!("vhost-user-blk,chardev=images,num-queues=1"));
        if let Some(scratch) = self.scratch {
            line.vhost_user(scratch, "scratch", format_args!("vhost-user-blk,chardev=scratch,num-queues=1"));
        }
        if let Some(volumes) = self.volumes {
            line.vhost_user(
                volumes,
                "volumes",
                format_args!("vhost-user-fs-device,chardev=volumes,tag=volumes,queue-size=256"),
            );
        }
        for (index, tap) in self.taps.iter().enumerate() {
            line.option("-netdev", format!("tap,id=net{index},fd={tap},vhost=off"));
            line.option("-device", format!("virtio-net-device,netdev=net{index}"));
        }
        line.option("-device", "virtio-rng-device");
    }

    fn kernel_command_line(&self) -> String {
        format!("{KERNEL_ARGUMENTS} {}", self.kernel_arguments).trim_end().to_owned()
    }
}

#[derive(Default)]
struct CommandLine(Vec<OsString>);

impl CommandLine {
    fn flag(&mut self, flag: &str) -> &mut Self {
        self.0.push(flag.into());
        self
    }

    fn option(&mut self, name: &str, value: impl Into<OsString>) -> &mut Self {
        self.0.extend([name.into(), value.into()]);
        self
    }

    fn vhost_user(&mut self, socket: RawFd, id: &str, device: std::fmt::Arguments<'_>) {
        self.option("-chardev", format!("socket,id={id},fd={socket}"));
        self.option("-device", device.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(accelerator: &'static str, vcpus: u32) -> Machine<'static> {
        Machine {
            name: "pod",
            accelerator,
            kernel: Path::new("/k"),
            initramfs: Path::new("/i"),
            kernel_arguments: "bulkhead.debug",
            vcpus,
            memory_mib: 256,
            taps: vec![10, 11],
            vsock: 4,
            images: 5,
            scratch: Some(6),
            volumes: Some(7),
        }
    }

    fn line(machine: &Machine<'_>) -> String {
        machine.arguments().iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn every_device_has_its_descriptor() {
        let text = line(&machine("tcg", 1));
        for part in [
            "-accel tcg -cpu max -smp 1 -m 256M -object memory-backend-memfd,id=ram,size=256M,share=on",
            "-chardev socket,id=vsock,fd=4 -device vhost-user-vsock-device,chardev=vsock",
            "-chardev socket,id=scratch,fd=6 -device vhost-user-blk,chardev=scratch",
            "-chardev socket,id=volumes,fd=7 -device vhost-user-fs-device,chardev=volumes,tag=volumes,queue-size=256",
            "-netdev tap,id=net1,fd=11,vhost=off -device virtio-net-device,netdev=net1",
            "no_timer_check nomodule bulkhead.debug",
        ] {
            assert!(text.contains(part), "{text} lacks {part}");
        }
    }

    #[test]
    fn what_the_pod_lacks_is_left_out() {
        let text = line(&Machine { scratch: None, volumes: None, kernel_arguments: "", ..machine("kvm", 2) });
        assert!(text.contains("-accel kvm -cpu host -smp 2") && text.ends_with(" nomodule"));
        assert!(!text.contains("scratch") && !text.contains("volumes"));
    }
}
