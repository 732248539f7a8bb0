//! Small guests: archives that a kernel unpacks, and programs without a compiler.

/// Where [`program`] is loaded.
const BASE: u64 = 0x40_0000;
const HEADERS: u64 = 64 + 56;

/// A file or directory in a cpio archive of the kind "newc". `mode` has its type.
#[must_use]
pub fn entry(name: &str, mode: usize, content: &[u8]) -> Vec<u8> {
    record(name, mode, (0, 0), content)
}

/// A device with its two numbers.
#[must_use]
pub fn device(name: &str, mode: usize, numbers: (usize, usize)) -> Vec<u8> {
    record(name, mode, numbers, &[])
}

fn record(name: &str, mode: usize, (major, minor): (usize, usize), content: &[u8]) -> Vec<u8> {
    let fields =
        [0, mode, 0, 0, 1, 0, content.len(), 0, 0, major, minor, name.len() + 1, 0].map(|n| format!("{n:08x}"));
    let mut bytes = format!("070701{}{name}\0", fields.concat()).into_bytes();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// What an archive ends with.
#[must_use]
pub fn trailer() -> Vec<u8> {
    entry("TRAILER!!!", 0, &[])
}

/// A static ELF program of one segment, readable and executable, which begins with the first byte of `code`.
#[must_use]
pub fn program(code: &[u8]) -> Vec<u8> {
    let size = HEADERS + code.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    let mut put = |bytes: &[u8]| elf.extend_from_slice(bytes);
    put(&2_u16.to_le_bytes()); // executable
    put(&62_u16.to_le_bytes()); // x86-64
    put(&1_u32.to_le_bytes());
    for word in [BASE + HEADERS, 64, 0] {
        put(&word.to_le_bytes()); // entry, program headers, section headers
    }
    put(&0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 0, 0, 0] {
        put(&half.to_le_bytes());
    }
    put(&1_u32.to_le_bytes()); // PT_LOAD
    put(&5_u32.to_le_bytes()); // readable, executable
    for word in [0, BASE, BASE, size, size, 4096] {
        put(&word.to_le_bytes());
    }
    put(code);
    elf
}
