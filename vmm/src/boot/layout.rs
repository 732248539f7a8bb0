//! Where things lie in the guest's physical address space. docs/microvm.md shows the same as a table.

/// Descriptors that the boot processor starts with.
pub const GDT: u64 = 0x500;
/// `hvm_start_info`.
pub const START_INFO: u64 = 0x6000;
/// Its list of modules: the initramfs.
pub const MODULES: u64 = 0x6040;
/// Its memory map.
pub const MEMORY_MAP: u64 = 0x7000;
/// The kernel's command line, NUL-terminated.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// The kernel's COMMAND_LINE_SIZE, NUL included.
pub const MAX_COMMAND_LINE: usize = 2048;
/// End of what the first megabyte has as memory.
pub const LOW_END: u64 = 0x9_fc00;
/// Where kernels look for the MP table: the last 64 KiB below 1 MiB.
pub const MP_TABLE: u64 = 0xf_0000;
/// Kernels are linked from here on.
pub const HIGH_START: u64 = 0x10_0000;
/// Memory ends here at the latest, and goes on at [`HIGH_MEMORY`].
pub const HOLE_START: u64 = 0xc000_0000;
/// Memory that did not fit below the hole.
pub const HIGH_MEMORY: u64 = 1 << 32;
/// Of the host; memory is aligned to it.
pub const HUGE_PAGE: u64 = 2 << 20;
/// The first device's registers.
pub const MMIO: u64 = 0xd000_0000;
/// Each device's registers and configuration space.
pub const MMIO_SIZE: u64 = 0x1000;
/// The I/O interrupt controller.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Every processor's own interrupt controller.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that KVM needs on Intel processors (KVM_SET_TSS_ADDR).
pub const TSS: usize = 0xfffb_d000;

/// Interrupt of the first device; each has one of its own, and none of them is the legacy timer, cascade or clock.
pub const FIRST_IRQ: u32 = 9;
/// Pins of KVM's interrupt controller.
pub const LAST_IRQ: u32 = 23;
/// Most devices a machine can have.
pub const MAX_DEVICES: usize = (LAST_IRQ - FIRST_IRQ + 1) as usize;

/// Pieces of guest memory: start and length.
#[must_use]
pub fn memory(bytes: u64) -> Vec<(u64, u64)> {
    let low = bytes.min(HOLE_START);
    let mut pieces = vec![(0, low)];
    if bytes > low {
        pieces.push((HIGH_MEMORY, bytes - low));
    }
    pieces
}

/// What of it the guest may use: not the last KiB below 640 KiB nor what lies from there to 1 MiB.
#[must_use]
pub fn usable(bytes: u64) -> Vec<(u64, u64)> {
    let mut pieces = vec![(0, LOW_END)];
    for (start, len) in memory(bytes) {
        let from = start.max(HIGH_START);
        if start + len > from {
            pieces.push((from, start + len - from));
        }
    }
    pieces
}

/// Registers of device `index`.
#[must_use]
pub fn device_address(index: usize) -> u64 {
    MMIO + index as u64 * MMIO_SIZE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_around_the_hole() {
        assert_eq!(memory(256 << 20), [(0, 256 << 20)]);
        assert_eq!(memory(5 << 30), [(0, HOLE_START), (HIGH_MEMORY, 2 << 30)]);
        assert_eq!(usable(256 << 20), [(0, LOW_END), (HIGH_START, (256 << 20) - HIGH_START)]);
        assert_eq!(usable(4 << 30)[2], (HIGH_MEMORY, 1 << 30));
        let last = device_address(MAX_DEVICES - 1) + MMIO_SIZE;
        assert!(HOLE_START <= MMIO && last <= u64::from(IO_APIC));
    }
}
