//! From a monitor's start to the first instructions of the guest's first process.

use std::fs;
use std::path::Path;

use anyhow::Result;
use bulkhead_tests::initramfs::{entry, program, trailer};

use super::Setup;
use super::comparison::{Row, Unit};
use super::failures::Failures;
use super::monitors::Guest;
use super::running::Running;

/// Writes the mark to the serial port's register, then sleeps for ever.
const CODE: [u8; 46] = [
    0xbf, 0xf8, 0x03, 0x00, 0x00, // mov edi, 0x3f8
    0xbe, 0x08, 0x00, 0x00, 0x00, // mov esi, 8
    0xba, 0x01, 0x00, 0x00, 0x00, // mov edx, 1
    0xb8, 0xad, 0x00, 0x00, 0x00, // mov eax, 173 (ioperm)
    0x0f, 0x05, // syscall
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, b'~', // mov al, '~'
    0xee, // out dx, al
    0xb0, b'\n', // mov al, '\n'
    0xee,  // out dx, al
    0xb8, 0x22, 0x00, 0x00, 0x00, // mov eax, 34 (pause)
    0x0f, 0x05, // syscall
    0xeb, 0xf7, // jmp to the pause
    0x90, 0x90, 0x90, 0x90, 0x90, // nop
];
const INIT: &str = "mark-and-sleep";

/// Boots `rounds` guests with each monitor, in turns.
///
/// # Errors
/// When there is no initramfs.
pub fn measure(setup: &Setup, rounds: usize, failures: &mut Failures) -> Result<Vec<Row>> {
    let initramfs = setup.directory.path().join("boot-initramfs");
    fs::write(&initramfs, archive(&setup.initramfs)?)?;
    let arguments = format!("rdinit=/{INIT}");
    let guest = Guest { initramfs: &initramfs, arguments: &arguments, ..setup.guest() };
    let goal = "at most 0.8 x QEMU, 1 x Firecracker";
    let mut took = Row::new("start to init", Unit::Milliseconds, goal);
    let mut in_guest = Row::new("of it, guest's processor time", Unit::Milliseconds, "");
    let mut in_host = Row::new("host's processor time until then", Unit::Milliseconds, "");
    let mut memory = Row::new("monitor's own memory", Unit::Mebibytes, "at most 5 MiB");
    // The first boot of a file is not what a node does all day.
    for (column, kind) in &setup.kinds {
        failures.attempt(*column, "boot", || Running::start(kind, &guest));
    }
    for number in 1..=rounds {
        eprintln!("boot: round {number} of {rounds}");
        for (column, kind) in &setup.kinds {
            let booted = failures.attempt(*column, "boot", || {
                let running = Running::start(kind, &guest)?;
                Ok((running.cost, running.own_memory()?))
            });
            let Some((cost, bytes)) = booted else { continue };
            took.add_time(*column, cost.took);
            in_guest.add_time(*column, cost.guest);
            in_host.add_time(*column, cost.host);
            memory.add(*column, super::mebibytes(bytes));
        }
    }
    Ok(vec![took, in_guest, in_host, memory])
}

/// The pods' own, and one small program more.
fn archive(pods: &Path) -> Result<Vec<u8>> {
    let mut archive = fs::read(pods)?;
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(&entry(INIT, 0o100_755, &program(&CODE)));
    archive.extend_from_slice(&trailer());
    Ok(archive)
}
