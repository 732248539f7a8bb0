//! Registers of a processor that starts.

use kvm_bindings::{Msrs, kvm_fpu, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::{Error, VcpuFd};
use vm_memory::{Bytes, GuestAddress};

use crate::boot::{BootError, Entry, layout};
use crate::devices::GuestRam;

const MISC_ENABLE: u32 = 0x1a0;
const MISC_FAST_STRINGS: u64 = 1;
const MTRR_DEFAULT_TYPE: u32 = 0x2ff;
/// MTRRs are on; memory that they do not name is write-back.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

const CODE: u16 = 0x08;
const DATA: u16 = 0x10;
const TASK: u16 = 0x18;
/// Protected mode (PE), and a floating-point unit (ET).
const CR0: u64 = 1 | 1 << 4;

const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVER_NMI: u32 = 4;
const DELIVER_EXT_INT: u32 = 7;

/// What every processor starts with; the others than the first wait for its word.
pub fn prepare(vcpu: &VcpuFd) -> Result<(), Error> {
    let fpu = kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() };
    vcpu.set_fpu(&fpu)?;
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let entries = [entry(MISC_ENABLE, MISC_FAST_STRINGS), entry(MTRR_DEFAULT_TYPE, MTRR_WRITE_BACK)];
    // The two that are named here exist on every processor.
    let registers = Msrs::from_entries(&entries).map_err(|_| Error::new(libc::EINVAL))?;
    let written = vcpu.set_msrs(&registers)?;
    if written != entries.len() {
        return Err(Error::new(libc::EINVAL));
    }
    interrupt_pins(vcpu)
}

/// As firmware leaves them: the legacy controller on pin 0, the NMI on pin 1.
fn interrupt_pins(vcpu: &VcpuFd) -> Result<(), Error> {
    let mut apic = vcpu.get_lapic()?;
    deliver(&mut apic, LVT_LINT0, DELIVER_EXT_INT);
    deliver(&mut apic, LVT_LINT1, DELIVER_NMI);
    vcpu.set_lapic(&apic)
}

fn deliver(apic: &mut kvm_lapic_state, at: usize, mode: u32) {
    let bytes = &mut apic.regs[at..at + 4];
    let old = bytes.iter().rev().fold(0_u32, |word, byte| word << 8 | u32::from(*byte as u8));
    let new = old & !0x700 | mode << 8;
    for (to, from) in bytes.iter_mut().zip(new.to_le_bytes()) {
        *to = from as _;
    }
}

/// Descriptors of the boot processor: flat code and data of 4 GiB and a task segment.
///
/// # Errors
/// When memory ends before.
pub fn write_descriptors(ram: &GuestRam) -> Result<(), BootError> {
    let table: [u64; 4] = [0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067];
    let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    ram.write_slice(&bytes, GuestAddress(layout::GDT)).map_err(|_| BootError::TooLittleMemory)
}

/// The boot processor's state at a PVH entry: 32-bit protected mode without paging, the start info in EBX.
pub fn enter(vcpu: &VcpuFd, entry: Entry) -> Result<(), Error> {
    let mut special = vcpu.get_sregs()?;
    let code = segment(CODE, 0xb, true, u32::MAX);
    let data = segment(DATA, 0x3, true, u32::MAX);
    let task = segment(TASK, 0xb, false, 0x67);
    special.cs = code;
    (special.ds, special.es, special.ss, special.fs, special.gs) = (data, data, data, data, data);
    special.tr = task;
    (special.gdt.base, special.gdt.limit) = (layout::GDT, 4 * 8 - 1);
    (special.idt.base, special.idt.limit) = (0, 0);
    (special.cr0, special.cr3, special.cr4, special.efer) = (CR0, 0, 0, 0);
    vcpu.set_sregs(&special)?;
    vcpu.set_regs(&kvm_regs { rip: entry.address, rbx: entry.start_info, rflags: 2, ..Default::default() })
}

fn segment(selector: u16, type_: u8, code_or_data: bool, limit: u32) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(code_or_data),
        s: u8::from(code_or_data),
        l: 0,
        g: u8::from(code_or_data),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_keep_their_other_bits() {
        let mut apic = kvm_lapic_state::default();
        apic.regs[LVT_LINT0 + 2] = 1;
        deliver(&mut apic, LVT_LINT0, DELIVER_EXT_INT);
        assert_eq!(apic.regs[LVT_LINT0..LVT_LINT0 + 4], [0, 7, 1, 0]);
    }
}
