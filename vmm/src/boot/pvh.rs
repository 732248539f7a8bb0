//! What a kernel finds when it is entered by the PVH protocol (Xen's `hvm_start_info`, version 1).

use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use super::layout::{COMMAND_LINE, MAX_COMMAND_LINE, MEMORY_MAP, MODULES, START_INFO, usable};
use crate::devices::GuestRam;

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
/// XEN_HVM_MEMMAP_TYPE_RAM.
const USABLE: u32 = 1;

/// Writes command line, memory map and start info; the start info's address.
///
/// # Errors
/// When the command line is too long or memory too little.
pub fn write(
    ram: &GuestRam,
    memory_bytes: u64,
    command_line: &str,
    initramfs: Option<(u64, u64)>,
) -> Result<u64, BootError> {
    let put =
        |bytes: &[u8], address| ram.write_slice(bytes, GuestAddress(address)).map_err(|_| BootError::TooLittleMemory);
    if command_line.len() >= MAX_COMMAND_LINE || command_line.contains('\0') {
        return Err(BootError::CommandLine { len: command_line.len() });
    }
    put(&[command_line.as_bytes(), b"\0"].concat(), COMMAND_LINE)?;

    let pieces = usable(memory_bytes);
    let mut map = Vec::new();
    for (start, len) in &pieces {
        map.extend(start.to_le_bytes());
        map.extend(len.to_le_bytes());
        map.extend(USABLE.to_le_bytes());
        map.extend([0; 4]);
    }
    put(&map, MEMORY_MAP)?;

    let mut modules = Vec::new();
    if let Some((start, len)) = initramfs {
        for word in [start, len, 0, 0] {
            modules.extend(word.to_le_bytes());
        }
        put(&modules, MODULES)?;
    }

    let mut info = Vec::new();
    for word in [MAGIC, VERSION, 0, u32::from(initramfs.is_some())] {
        info.extend(word.to_le_bytes());
    }
    for word in [MODULES, COMMAND_LINE, 0, MEMORY_MAP] {
        info.extend(word.to_le_bytes());
    }
    info.extend((pieces.len() as u32).to_le_bytes());
    info.extend([0; 4]);
    put(&info, START_INFO)?;
    Ok(START_INFO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_info_points_at_its_parts() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        let at = write(&ram, 2 << 20, "quiet", Some((0x18_0000, 5))).unwrap();
        let word = |address: u64| ram.read_obj::<u64>(GuestAddress(address)).unwrap();
        assert_eq!(word(at), u64::from(MAGIC) | 1 << 32);
        assert_eq!(word(at + 8), 1 << 32);
        assert_eq!(ram.read_obj::<[u8; 6]>(GuestAddress(word(at + 24))).unwrap(), *b"quiet\0");
        let map = word(at + 40);
        assert_eq!((word(map), word(map + 8), word(map + 24)), (0, 0x9_fc00, 0x10_0000));
        assert_eq!((word(word(at + 16)), word(word(at + 16) + 8)), (0x18_0000, 5));
        assert!(write(&ram, 2 << 20, &"x".repeat(MAX_COMMAND_LINE), None).is_err());
    }
}
