//! Our own machine: this very process runs the guest's instructions, on KVM.

use std::fs::File;
use std::path::Path;

use bulkhead_proto::launch::Launch;

use super::MonitorError;
use crate::boot::{self, Entry, Payload};
use crate::console::Console;
use crate::devices::console::{Keyboard, VirtioConsole};
use crate::kvm::{Builder, End, Machine, MachineError};
use crate::state::Snapshot;
use tokio::sync::mpsc::UnboundedReceiver;

/// The kernel's own words are few. Before the console works they leave through a port; the guest has no serial port to
/// probe. A panic restarts the machine, by the keyboard controller so that a triple fault is something else. The timer
/// needs no test, as there is no second one.
const KERNEL_ARGUMENTS: &str = "quiet loglevel=4 console=hvc0 earlyprintk=ttyS0 8250.nr_uarts=0 panic=-1 reboot=k \
                                random.trust_cpu=on tsc=reliable no_timer_check nomodule";

/// The whole command line: `devices` are those of the machine, `more` goes last.
#[must_use]
pub fn kernel_arguments(vcpus: u8, devices: &[String], more: &str) -> String {
    let mut words = vec![KERNEL_ARGUMENTS];
    if vcpus == 1 {
        // With one processor the kernel would patch the lock prefixes away, at 9000 places.
        words.push("noreplace-smp");
    }
    words.extend(devices.iter().map(String::as_str));
    words.extend(Some(more).filter(|more| !more.is_empty()));
    words.join(" ")
}

/// A machine that is complete: every file is read, every descriptor open, no thread runs yet.
#[derive(Debug)]
pub struct Prepared {
    builder: Builder,
    entry: Entry,
    console: Console,
}

/// Builds a machine with these devices behind its console.
///
/// # Errors
/// When KVM, the kernel's file or the guest's memory do not do.
pub fn prepare(
    launch: &Launch,
    console: Console,
    keyboard: Option<Keyboard>,
    devices: Vec<Box<dyn Snapshot>>,
) -> Result<Prepared, MonitorError> {
    let vcpus = u8::try_from(launch.vcpus).unwrap_or(u8::MAX);
    let mut builder = Builder::new(vcpus, launch.memory_mib)?;
    let first: Box<dyn Snapshot> = Box::new(VirtioConsole::new(Box::new(console.clone())).with_keyboard(keyboard));
    let named = std::iter::once(first).chain(devices).map(|device| builder.add_device(device));
    let named = named.collect::<Result<Vec<_>, _>>()?;
    let command_line = kernel_arguments(vcpus, &named, &launch.kernel_arguments);
    let (kernel, initramfs) = (open("kernel", &launch.kernel)?, open("initramfs", &launch.initramfs)?);
    let payload = Payload {
        kernel: &kernel,
        initramfs: Some(&initramfs),
        command_line: &command_line,
        vcpus,
        memory_bytes: builder.memory_bytes(),
    };
    let entry = boot::load(builder.ram(), &payload).map_err(MachineError::from)?;
    Ok(Prepared { builder, entry, console })
}

impl Prepared {
    /// Starts the processors.
    ///
    /// # Errors
    /// When there are no threads, or KVM refuses.
    pub fn start(self) -> Result<(Machine, UnboundedReceiver<End>), MonitorError> {
        let (machine, ends) = self.builder.start(self.entry, Box::new(self.console))?;
        machine.resume();
        Ok((machine, ends))
    }
}

fn open(what: &'static str, path: &Path) -> Result<File, MonitorError> {
    File::open(path).map_err(|source| MonitorError::File { what, path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handlers_arguments_come_last() {
        let devices = ["virtio_mmio.device=4K@0xd0000000:9".to_owned()];
        let line = kernel_arguments(1, &devices, "debug");
        assert!(
            line.starts_with("quiet ") && line.ends_with(" noreplace-smp virtio_mmio.device=4K@0xd0000000:9 debug")
        );
        assert!(!kernel_arguments(2, &devices, "").contains("noreplace-smp"));
    }
}
