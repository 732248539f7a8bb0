//! Processors and interrupts as Intel's MultiProcessor Specification 1.4 describes them, for a kernel without ACPI.

use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use super::layout::{IO_APIC, LAST_IRQ, LOCAL_APIC, MP_TABLE};
use crate::devices::GuestRam;

/// Of the floating pointer, with the table behind it.
const POINTER_LEN: usize = 16;
const HEADER_LEN: usize = 44;
const SPECIFICATION: u8 = 4;
const LOCAL_APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x11;

const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IO_APIC_ENTRY: u8 = 2;
const INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;

const USABLE: u8 = 1;
const BOOT_PROCESSOR: u8 = 2;
const TYPE_INT: u8 = 0;
const TYPE_NMI: u8 = 1;
const TYPE_EXT_INT: u8 = 3;
const ALL_PROCESSORS: u8 = 0xff;

/// Writes the table for processors 0 to `vcpus` less one.
///
/// # Errors
/// When the guest's memory ends before.
pub fn write(ram: &GuestRam, vcpus: u8) -> Result<(), BootError> {
    let table = table(vcpus);
    let address = MP_TABLE + POINTER_LEN as u64;
    let mut pointer = [0; POINTER_LEN];
    pointer[..4].copy_from_slice(b"_MP_");
    pointer[4..8].copy_from_slice(&(address as u32).to_le_bytes());
    (pointer[8], pointer[9]) = (1, SPECIFICATION);
    pointer[10] = checksum(&pointer);
    let all = [&pointer[..], &table].concat();
    ram.write_slice(&all, GuestAddress(MP_TABLE)).map_err(|_| BootError::TooLittleMemory)
}

fn table(vcpus: u8) -> Vec<u8> {
    let mut entries: Vec<u8> = Vec::new();
    let mut count = 0_u16;
    let mut entry = |bytes: &[u8]| {
        entries.extend(bytes);
        count += 1;
    };
    let io_apic = vcpus.saturating_add(1);
    for id in 0..vcpus {
        let flags = if id == 0 { USABLE | BOOT_PROCESSOR } else { USABLE };
        let mut processor = [0; 20];
        processor[..4].copy_from_slice(&[PROCESSOR, id, LOCAL_APIC_VERSION, flags]);
        entry(&processor);
    }
    entry(&[BUS, 0, b'I', b'S', b'A', b' ', b' ', b' ']);
    let [a, b, c, d] = IO_APIC.to_le_bytes();
    entry(&[IO_APIC_ENTRY, io_apic, IO_APIC_VERSION, 1, a, b, c, d]);
    for irq in 0..=LAST_IRQ as u8 {
        entry(&[INTERRUPT, TYPE_INT, 0, 0, 0, irq, io_apic, irq]);
    }
    entry(&[LOCAL_INTERRUPT, TYPE_EXT_INT, 0, 0, 0, 0, 0, 0]);
    entry(&[LOCAL_INTERRUPT, TYPE_NMI, 0, 0, 0, 0, ALL_PROCESSORS, 1]);

    let mut table = vec![0; HEADER_LEN];
    let len = (HEADER_LEN + entries.len()) as u16;
    table[..4].copy_from_slice(b"PCMP");
    table[4..6].copy_from_slice(&len.to_le_bytes());
    table[6] = SPECIFICATION;
    table[8..16].copy_from_slice(b"BULKHEAD");
    table[16..28].copy_from_slice(b"microvm     ");
    table[34..36].copy_from_slice(&count.to_le_bytes());
    table[36..40].copy_from_slice(&LOCAL_APIC.to_le_bytes());
    table.extend(entries);
    table[7] = checksum(&table);
    table
}

/// Makes the sum of all bytes 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_zero_and_lengths_true() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        for vcpus in [1, 2, 64, 254] {
            write(&ram, vcpus).unwrap();
            let mut all = vec![0; 0x1_0000];
            ram.read_slice(&mut all, GuestAddress(MP_TABLE)).unwrap();
            assert_eq!(&all[..4], b"_MP_");
            assert_eq!(checksum(&all[..POINTER_LEN]), 0);
            let table = &all[POINTER_LEN..];
            let len = usize::from(u16::from_le_bytes([table[4], table[5]]));
            assert_eq!(checksum(&table[..len]), 0);
            assert_eq!(len, HEADER_LEN + 20 * usize::from(vcpus) + 8 * (2 + 24 + 2));
            assert_eq!(u16::from_le_bytes([table[34], table[35]]), u16::from(vcpus) + 28);
        }
    }
}
