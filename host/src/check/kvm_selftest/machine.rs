//! The guest: 64 pages of memory and one vCPU that starts in long mode.

#![allow(unsafe_code)]

use std::io;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment, kvm_sregs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use super::SelfTestError;
use super::payload::{self, FAULT_PORT, STEP_PORT, STUB_SIZE, STUBS, TIMER_VECTOR, WRONG};

/// Where the payload is copied to.
pub const CODE: u64 = 0x1_0000;
const PAGES: usize = 64;
const PAGE: usize = 4096;

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const LOW_DIRECTORY: u64 = 0x3000;
const APIC_DIRECTORY: u64 = 0x4000;
const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
const STACK_TOP: u64 = 0x3_0000;
const TSS_ADDRESS: usize = 0xfffb_d000;

const CODE_SELECTOR: u16 = 0x08;
const DATA_SELECTOR: u16 = 0x10;
const CR0_LONG_MODE: u64 = 0x8005_0033; // PG, AM, WP, NE, ET, MP, PE
const CR4_PAE: u64 = 1 << 5;
const CR4_SSE: u64 = 3 << 9; // OSFXSR, OSXMMEXCPT
const CR4_OSXSAVE: u64 = 1 << 18;
const EFER_LONG_MODE: u64 = 0x500; // LME, LMA
const CPUID_XSAVE: u32 = 1 << 26;

#[derive(Clone)]
#[repr(align(4096))]
struct Page([u8; PAGE]);

/// The guest, ready to run.
pub struct Machine {
    // Dropped in this order: the memory outlives what refers to it.
    vcpu: VcpuFd,
    _vm: VmFd,
    _memory: Vec<Page>,
}

/// What the guest said.
#[derive(Debug, PartialEq, Eq)]
pub enum Word {
    /// This many steps are done.
    Reported(usize),
    /// It ended otherwise.
    Ended(String),
    /// A signal interrupted it.
    Interrupted,
}

impl Machine {
    /// Builds it; it starts at an offset in the payload.
    pub fn new(entry: u64) -> Result<Self, SelfTestError> {
        let failed = |action| move |e: kvm_ioctls::Error| SelfTestError::Prepare { action, source: e.into() };
        let kvm = Kvm::new().map_err(|e| SelfTestError::Open(e.into()))?;
        let vm = kvm.create_vm().map_err(failed("create a VM"))?;
        vm.set_tss_address(TSS_ADDRESS).map_err(failed("set the TSS address"))?;
        vm.create_irq_chip().map_err(failed("create the interrupt controller"))?;
        let mut memory = vec![Page([0; PAGE]); PAGES];
        fill(&mut memory)?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: (PAGES * PAGE) as u64,
            userspace_addr: memory.as_mut_ptr() as u64,
        };
        // SAFETY: the region is the whole allocation of `memory`, page-aligned and zeroed or filled; it is kept, neither
        // moved nor accessed by this process, until the VM and its vCPU are closed.
        unsafe { vm.set_user_memory_region(region) }.map_err(failed("give the VM its memory"))?;
        let vcpu = vm.create_vcpu(0).map_err(failed("create a vCPU"))?;
        let features = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("read the supported features"))?;
        vcpu.set_cpuid2(&features).map_err(failed("set the vCPU's features"))?;
        let xsave = features.as_slice().iter().any(|leaf| leaf.function == 1 && leaf.ecx & CPUID_XSAVE != 0);
        let mut special = vcpu.get_sregs().map_err(failed("read the vCPU's registers"))?;
        long_mode(&mut special, xsave);
        vcpu.set_sregs(&special).map_err(failed("put the vCPU into long mode"))?;
        if xsave {
            enable_features(&vcpu).map_err(failed("enable xsave"))?;
        }
        let mut registers = vcpu.get_regs().map_err(failed("read the vCPU's registers"))?;
        registers.rip = CODE + entry;
        registers.rsp = STACK_TOP;
        registers.rdi = u64::from(xsave);
        registers.rflags = 2;
        vcpu.set_regs(&registers).map_err(failed("set the vCPU's registers"))?;
        Ok(Self { vcpu, _vm: vm, _memory: memory })
    }

    /// Runs until the guest says something.
    pub fn run(&mut self) -> Word {
        match self.vcpu.run() {
            Ok(VcpuExit::IoOut(STEP_PORT, [WRONG])) => Word::Ended("it ran but its result is wrong".to_owned()),
            Ok(VcpuExit::IoOut(STEP_PORT, [step])) => Word::Reported(usize::from(*step)),
            Ok(VcpuExit::IoOut(FAULT_PORT, [vector])) => Word::Ended(format!("the CPU raised exception {vector}")),
            Ok(VcpuExit::InternalError) => {
                Word::Ended("the host's KVM could not emulate the instruction (KVM_EXIT_INTERNAL_ERROR)".to_owned())
            }
            Ok(VcpuExit::Shutdown) => Word::Ended("triple fault (KVM_EXIT_SHUTDOWN)".to_owned()),
            Ok(other) => Word::Ended(format!("unexpected exit {other:?}")),
            Err(e) if e.errno() == libc::EINTR || e.errno() == libc::EAGAIN => Word::Interrupted,
            Err(e) => Word::Ended(format!("KVM_RUN failed: {}", io::Error::from(e))),
        }
    }
}

fn fill(memory: &mut [Page]) -> Result<(), SelfTestError> {
    let code = payload::bytes();
    let layout = payload::layout();
    let mut at = |address: u64, bytes: &[u8]| write(memory, address, bytes);
    let mut whole = at(CODE, code);
    // Present, writable; the directories' entries are 2 MiB pages. The second maps the local APIC, uncached.
    let entries = [
        (PML4, PDPT | 3),
        (PDPT, LOW_DIRECTORY | 3),
        (PDPT + 3 * 8, APIC_DIRECTORY | 3),
        (LOW_DIRECTORY, 0x83),
        (APIC_DIRECTORY + 503 * 8, 0xfee0_0000 | 0x9b),
        (GDT + u64::from(CODE_SELECTOR), 0x00af_9b00_0000_ffff),
        (GDT + u64::from(DATA_SELECTOR), 0x00cf_9300_0000_ffff),
    ];
    for (address, entry) in entries {
        whole &= at(address, &u64::to_le_bytes(entry));
    }
    for vector in 0..STUBS as u64 {
        whole &= at(IDT + vector * 16, &gate(CODE + layout.stubs + vector * STUB_SIZE as u64));
    }
    whole &= at(IDT + 3 * 16, &gate(CODE + layout.breakpoint));
    whole &= at(IDT + u64::from(TIMER_VECTOR) * 16, &gate(CODE + layout.timer));
    let source = io::Error::new(io::ErrorKind::OutOfMemory, "the payload is larger than the guest");
    if whole { Ok(()) } else { Err(SelfTestError::Prepare { action: "fill the guest's memory", source }) }
}

fn write(memory: &mut [Page], address: u64, bytes: &[u8]) -> bool {
    let Ok(address) = usize::try_from(address) else { return false };
    (address..).zip(bytes).all(|(address, byte)| {
        let cell = memory.get_mut(address / PAGE).and_then(|page| page.0.get_mut(address % PAGE));
        cell.map(|cell| *cell = *byte).is_some()
    })
}

// An interrupt gate of the code segment.
fn gate(target: u64) -> [u8; 16] {
    let low = target & 0xffff | u64::from(CODE_SELECTOR) << 16 | 0x8e00 << 32 | (target >> 16 & 0xffff) << 48;
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&low.to_le_bytes());
    bytes[8..].copy_from_slice(&(target >> 32).to_le_bytes());
    bytes
}

// Not by xsetbv in the guest: QEMU's emulated SVM does not show it to a nested KVM, which then forgets it.
fn enable_features(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut registers = vcpu.get_xcrs()?;
    registers.nr_xcrs = 1;
    registers.xcrs[0].xcr = 0;
    registers.xcrs[0].value = payload::XSAVE_FEATURES;
    vcpu.set_xcrs(&registers)
}

fn long_mode(registers: &mut kvm_sregs, xsave: bool) {
    let segment = |selector, type_, l, db| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db,
        s: 1,
        l,
        g: 1,
        ..Default::default()
    };
    let data = segment(DATA_SELECTOR, 3, 0, 1);
    registers.cs = segment(CODE_SELECTOR, 11, 1, 0);
    (registers.ds, registers.es, registers.ss) = (data, data, data);
    (registers.fs, registers.gs) = (data, data);
    (registers.gdt.base, registers.gdt.limit) = (GDT, 0x17);
    (registers.idt.base, registers.idt.limit) = (IDT, 0xfff);
    registers.cr3 = PML4;
    registers.cr4 = CR4_PAE | CR4_SSE | if xsave { CR4_OSXSAVE } else { 0 };
    registers.cr0 = CR0_LONG_MODE;
    registers.efer = EFER_LONG_MODE;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_holds_its_target_in_three_parts() {
        let bytes = gate(0x1122_3344_5566_7788);
        assert_eq!(bytes, [0x88, 0x77, 8, 0, 0, 0x8e, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0, 0, 0, 0]);
    }

    #[test]
    fn the_guest_fits_its_memory() {
        let mut memory = vec![Page([0; PAGE]); PAGES];
        assert!(fill(&mut memory).is_ok());
        assert!(!write(&mut memory, (PAGES * PAGE) as u64 - 1, &[1, 2]));
    }
}
