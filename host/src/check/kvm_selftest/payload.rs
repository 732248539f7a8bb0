//! The guest's code. It is copied out of this binary to [`super::machine::CODE`], so it refers to nothing but itself, the
//! data area and the local APIC.

#![allow(unsafe_code)]

use std::arch::global_asm;
use std::slice;

/// The guest writes a step's number here when it is done.
pub const STEP_PORT: u16 = 0xf4;
/// The guest writes the vector of an exception here that it did not expect.
pub const FAULT_PORT: u16 = 0xf5;
/// Written to [`STEP_PORT`]: an instruction ran but its result is wrong.
pub const WRONG: u8 = 0xff;
/// The timer's interrupt vector.
pub const TIMER_VECTOR: u8 = 0x40;
/// Exceptions with a stub.
pub const STUBS: usize = 32;
/// Size of a stub in bytes.
pub const STUB_SIZE: usize = 16;
/// What xsave saves, as in XCR0: x87 and SSE.
pub const XSAVE_FEATURES: u64 = 3;
/// 16 zero bytes for `cmpxchg16b`, and a page later the area of `xsave`.
pub const DATA: u64 = 0x8000;

// Entered with edi = 1 when the CPU has xsave. rsi points at data or the APIC; r14 is what the handlers leave behind.
global_asm!(
    ".pushsection .rodata.bulkhead_kvm_selftest, \"a\"",
    ".balign 16",
    ".globl bulkhead_kvm_selftest_start",
    "bulkhead_kvm_selftest_start:",
    // Where things are, for the host: see `Layout` and `halt`.
    ".long 10f - bulkhead_kvm_selftest_start",
    ".long 60f - bulkhead_kvm_selftest_start",
    ".long 70f - bulkhead_kvm_selftest_start",
    ".long 90f - bulkhead_kvm_selftest_start",
    ".long 55f - bulkhead_kvm_selftest_start",
    // 1: 64-bit code runs.
    "10: mov al, 1",
    "out {step}, al",
    // 2: exchange 16 bytes of zeros.
    "mov esi, {data}",
    "xor eax, eax",
    "xor edx, edx",
    "mov ebx, 0x01234567",
    "mov ecx, 0x09abcdef",
    "lock cmpxchg16b [rsi]",
    "jnz 80f",
    "cmp qword ptr [rsi], rbx",
    "jne 80f",
    "cmp qword ptr [rsi + 8], rcx",
    "jne 80f",
    "mov al, 2",
    "out {step}, al",
    // 3: a breakpoint, as kernels patch themselves with.
    "xor r14d, r14d",
    "int3",
    "cmp r14d, 3",
    "jne 80f",
    "mov al, 3",
    "out {step}, al",
    // 4: save and restore a register that was changed in between.
    "movq xmm0, rbx",
    "test edi, edi",
    "jz 20f",
    "xor edx, edx",
    "mov eax, {features}",
    "xsave64 [rsi + 0x1000]",
    "pxor xmm0, xmm0",
    "xrstor64 [rsi + 0x1000]",
    "jmp 30f",
    "20: fxsave64 [rsi + 0x1000]",
    "pxor xmm0, xmm0",
    "fxrstor64 [rsi + 0x1000]",
    "30: movq rax, xmm0",
    "cmp rax, rbx",
    "jne 80f",
    "mov al, 4",
    "out {step}, al",
    // 5: the local APIC's timer, once: spurious vector and enable, divide by 1, vector, count.
    "mov esi, 0xfee00000",
    "mov dword ptr [rsi + 0xf0], 0x1ff",
    "mov dword ptr [rsi + 0x3e0], 0xb",
    "mov dword ptr [rsi + 0x320], {timer}",
    "mov dword ptr [rsi + 0x380], 0x10000",
    // Interrupts are off between the look and the halt, and sti takes effect after hlt: none is missed.
    "40: cli",
    "cmp r14d, {timer}",
    "je 50f",
    "sti",
    "hlt",
    "jmp 40b",
    "50: mov al, 5",
    "out {step}, al",
    "55: hlt",
    "jmp 55b",
    // Handlers.
    "60: mov r14d, 3",
    "iretq",
    "70: mov r14d, {timer}",
    "mov dword ptr [rsi + 0xb0], 0",
    "iretq",
    "80: mov al, {wrong}",
    "out {step}, al",
    "jmp 55b",
    "85: out {fault}, al",
    "jmp 55b",
    // One stub per exception.
    ".balign 16",
    "90:",
    ".set bulkhead_vector, 0",
    ".rept {stubs}",
    ".balign {stub_size}",
    "mov al, bulkhead_vector",
    "jmp 85b",
    ".set bulkhead_vector, bulkhead_vector + 1",
    ".endr",
    ".balign {stub_size}",
    ".globl bulkhead_kvm_selftest_end",
    "bulkhead_kvm_selftest_end:",
    ".popsection",
    step = const STEP_PORT,
    fault = const FAULT_PORT,
    wrong = const WRONG,
    timer = const TIMER_VECTOR,
    data = const DATA,
    features = const XSAVE_FEATURES,
    stubs = const STUBS,
    stub_size = const STUB_SIZE,
);

// SAFETY: the two labels of the assembly above.
unsafe extern "C" {
    static bulkhead_kvm_selftest_start: u8;
    static bulkhead_kvm_selftest_end: u8;
}

/// Offsets in the payload.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Where the guest starts.
    pub entry: u64,
    /// The handler of `int3`.
    pub breakpoint: u64,
    /// The handler of the timer.
    pub timer: u64,
    /// The stub of exception 0; the others follow.
    pub stubs: u64,
}

/// The payload's bytes.
#[must_use]
pub fn bytes() -> &'static [u8] {
    let start = &raw const bulkhead_kvm_selftest_start;
    let end = &raw const bulkhead_kvm_selftest_end;
    // SAFETY: both labels are in one section of this binary with the end after the start, and the bytes between are
    // read-only data for as long as the program runs.
    unsafe { slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

/// Reads the table at the payload's start.
#[must_use]
pub fn layout() -> Layout {
    Layout { entry: offset(0), breakpoint: offset(1), timer: offset(2), stubs: offset(3) }
}

/// Where the guest would halt for ever.
#[cfg(test)]
pub fn halt() -> u64 {
    offset(4)
}

fn offset(index: usize) -> u64 {
    let word = bytes().chunks_exact(4).nth(index).unwrap_or_default();
    word.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_points_into_the_payload() {
        let layout = layout();
        assert_eq!(layout.entry, 20);
        assert!(layout.entry < layout.breakpoint && layout.breakpoint < layout.timer && layout.timer < layout.stubs);
        assert_eq!(bytes().len() as u64, layout.stubs + (STUBS * STUB_SIZE) as u64);
        // iretq ends the breakpoint's handler, and `mov al, 31` starts the last stub.
        let timer = usize::try_from(layout.timer).unwrap_or_default();
        assert_eq!(bytes()[timer - 2..timer], [0x48, 0xcf]);
        assert_eq!(bytes()[bytes().len() - STUB_SIZE..][..2], [0xb0, 31]);
    }
}
