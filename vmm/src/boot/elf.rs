//! Loads an ELF `vmlinux` and finds its PVH entry.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use vm_memory::{GuestAddress, GuestMemory};

use super::{BootError, huge_pages};
use crate::devices::GuestRam;
use crate::devices::slices::GuestSlices;

const HEADER_LEN: usize = 64;
const PROGRAM_HEADER_LEN: usize = 56;
/// Kernels have about five.
const MAX_PROGRAM_HEADERS: u16 = 64;
/// Notes of a kernel are some hundred bytes.
const MAX_NOTES: u64 = 64 << 10;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const EM_X86_64: u16 = 62;
/// XEN_ELFNOTE_PHYS32_ENTRY: where a kernel is entered in 32-bit mode without paging.
const PHYS32_ENTRY: u32 = 18;

/// A kernel in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    /// Where it is entered.
    pub entry: u64,
    /// Its last byte, plus one.
    pub end: u64,
}

/// A program header.
#[derive(Debug, Clone, Copy)]
struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    file_len: u64,
    memory_len: u64,
}

/// Copies the kernel's segments to where they belong.
///
/// # Errors
/// When the file is no x86-64 kernel with a PVH entry, or does not fit the guest's memory.
pub fn load(ram: &GuestRam, file: &File) -> Result<Kernel, BootError> {
    let (mut entry, mut end) = (None, 0);
    let segments = segments(file)?;
    let loaded = || segments.iter().filter(|segment| segment.kind == PT_LOAD);
    let first = loaded().map(|segment| segment.address).min().unwrap_or(0);
    let last = loaded().filter_map(|segment| segment.address.checked_add(segment.memory_len)).max().unwrap_or(0);
    huge_pages::prefer(ram, first, last);
    for segment in segments {
        match segment.kind {
            PT_LOAD => {
                copy(ram, file, &segment)?;
                end = end.max(segment.address + segment.memory_len);
            }
            PT_NOTE if segment.file_len <= MAX_NOTES => {
                let mut notes = vec![0; usize::try_from(segment.file_len).unwrap_or(0)];
                file.read_exact_at(&mut notes, segment.offset).map_err(BootError::ReadKernel)?;
                entry = entry.or_else(|| pvh_entry(&notes));
            }
            _ => {}
        }
    }
    let entry = entry.ok_or(BootError::NotBootable("it has no PVH entry (CONFIG_PVH)"))?;
    Ok(Kernel { entry, end })
}

fn segments(file: &File) -> Result<Vec<Segment>, BootError> {
    let mut header = [0; HEADER_LEN];
    file.read_exact_at(&mut header, 0).map_err(BootError::ReadKernel)?;
    if header[..7] != *b"\x7fELF\x02\x01\x01" || u16_at(&header, 18) != EM_X86_64 {
        return Err(BootError::NotBootable("it is no ELF file for x86-64"));
    }
    let (table, size, count) = (u64_at(&header, 32), u16_at(&header, 54), u16_at(&header, 56));
    if usize::from(size) != PROGRAM_HEADER_LEN || count > MAX_PROGRAM_HEADERS {
        return Err(BootError::NotBootable("its program headers are odd"));
    }
    let mut bytes = vec![0; usize::from(count) * PROGRAM_HEADER_LEN];
    file.read_exact_at(&mut bytes, table).map_err(BootError::ReadKernel)?;
    Ok(bytes
        .chunks_exact(PROGRAM_HEADER_LEN)
        .map(|bytes| Segment {
            kind: u32_at(bytes, 0),
            offset: u64_at(bytes, 8),
            address: u64_at(bytes, 24),
            file_len: u64_at(bytes, 32),
            memory_len: u64_at(bytes, 40),
        })
        .collect())
}

/// Memory past the file's bytes is zero already.
fn copy(ram: &GuestRam, file: &File, segment: &Segment) -> Result<(), BootError> {
    let Segment { address, memory_len, file_len, .. } = *segment;
    let outside = BootError::KernelOutside { address, len: memory_len };
    let fits = address >= super::layout::HIGH_START
        && file_len <= memory_len
        && usize::try_from(memory_len).is_ok_and(|len| ram.check_range(GuestAddress(address), len));
    if !fits {
        return Err(outside);
    }
    read_into(ram, file, segment.offset, address, file_len).map_err(BootError::ReadKernel)
}

/// Reads `len` bytes of the file from `offset` into guest memory at `address`.
pub(super) fn read_into(ram: &GuestRam, file: &File, offset: u64, address: u64, len: u64) -> io::Result<()> {
    if file.metadata()?.len() < offset.saturating_add(len) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut target = GuestSlices::default();
    for piece in ram.get_slices(GuestAddress(address), len) {
        target.push(piece.map_err(io::Error::other)?);
    }
    target.read_from(file.as_fd(), offset)
}

/// Walks notes: name length, descriptor length, type, name, descriptor, each padded to 4 bytes.
fn pvh_entry(mut notes: &[u8]) -> Option<u64> {
    while notes.len() >= 12 {
        let (name_len, len, kind) = (u32_at(notes, 0) as usize, u32_at(notes, 4) as usize, u32_at(notes, 8));
        let name_end = 12_usize.checked_add(name_len)?;
        let start = name_end.checked_next_multiple_of(4)?;
        let end = start.checked_add(len)?;
        let (name, value) = (notes.get(12..name_end)?, notes.get(start..end)?);
        if name == b"Xen\0" && kind == PHYS32_ENTRY {
            return match value.len() {
                4 => Some(u64::from(u32_at(value, 0))),
                8 => Some(u64_at(value, 0)),
                _ => None,
            };
        }
        notes = notes.get(end.checked_next_multiple_of(4)?..)?;
    }
    None
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    use vm_memory::Bytes;

    fn note(name: &[u8], kind: u32, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [name.len() as u32, value.len() as u32, kind] {
            bytes.extend(word.to_le_bytes());
        }
        for part in [name, value] {
            bytes.extend(part);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    #[test]
    fn the_entry_is_found_among_notes() {
        let notes = [note(b"GNU\0", 3, &[1; 20]), note(b"Xen\0", 6, b"linux\0"), note(b"Xen\0", 18, &[0x40, 0, 0, 1])];
        assert_eq!(pvh_entry(&notes.concat()), Some(0x0100_0040));
        assert_eq!(pvh_entry(&notes[..2].concat()), None);
        assert_eq!(pvh_entry(&[0xff; 64]), None);
    }

    /// An ELF file with one loaded segment and one of notes.
    fn image(address: u64, bytes: &[u8], notes: &[u8]) -> File {
        let mut header = vec![0; HEADER_LEN];
        header[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        header[18] = 62;
        header[32] = HEADER_LEN as u8;
        header[54] = PROGRAM_HEADER_LEN as u8;
        header[56] = 2;
        let start = HEADER_LEN + 2 * PROGRAM_HEADER_LEN;
        for (kind, offset, address, len) in
            [(PT_LOAD, start, address, bytes.len()), (PT_NOTE, start + bytes.len(), 0, notes.len())]
        {
            header.extend(kind.to_le_bytes());
            header.extend([0; 4]);
            for word in [offset as u64, 0, address, len as u64, len as u64, 0] {
                header.extend(word.to_le_bytes());
            }
        }
        let mut file = tempfile::tempfile().unwrap();
        for part in [&header, bytes, notes] {
            file.write_all(part).unwrap();
        }
        file
    }

    #[test]
    fn segments_land_where_they_belong() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap();
        let entry = note(b"Xen\0", 18, &[0x40, 0, 0x10, 0]);
        let kernel = load(&ram, &image(0x10_0000, b"code", &entry)).unwrap();
        assert_eq!(kernel, Kernel { entry: 0x10_0040, end: 0x10_0004 });
        let mut bytes = [0; 4];
        ram.read_slice(&mut bytes, GuestAddress(0x10_0000)).unwrap();
        assert_eq!(&bytes, b"code");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap();
        let entry = note(b"Xen\0", 18, &[0x40, 0, 0x10, 0]);
        for address in [0x1000, (4 << 20) - 2, u64::MAX - 1] {
            assert!(matches!(load(&ram, &image(address, b"code", &entry)), Err(BootError::KernelOutside { .. })));
        }
        assert!(matches!(load(&ram, &image(0x10_0000, b"code", &[])), Err(BootError::NotBootable(_))));
        let mut text = tempfile::tempfile().unwrap();
        text.write_all(&[b'#'; 100]).unwrap();
        assert!(matches!(load(&ram, &text), Err(BootError::NotBootable(_))));
    }
}
