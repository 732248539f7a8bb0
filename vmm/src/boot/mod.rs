//! Puts a kernel and what it needs to know into the memory of a new guest. x86-64.
//!
//! * [`layout`]: the guest's address space. * [`elf`]: the kernel. * [`pvh`]: what it is told.
//! * [`mp_table`]: processors and interrupts. * [`huge_pages`]: what the host holds it in.

pub mod elf;
pub mod huge_pages;
pub mod layout;
pub mod mp_table;
pub mod pvh;

use std::fs::File;
use std::io;

use crate::devices::GuestRam;

const PAGE: u64 = 4096;

/// Why a guest cannot be given its kernel.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel's file.
    #[error("cannot read the guest's kernel: {0}")]
    ReadKernel(io::Error),
    /// The initramfs's file.
    #[error("cannot read the guest's initramfs: {0}")]
    ReadInitramfs(io::Error),
    /// Not a kernel for this machine.
    #[error("the guest's kernel cannot be booted: {0}")]
    NotBootable(&'static str),
    /// It is linked for addresses that the guest lacks.
    #[error("the guest's kernel needs memory at {address:#x} ({len} bytes), which the guest lacks")]
    KernelOutside {
        /// Guest physical.
        address: u64,
        /// Bytes.
        len: u64,
    },
    /// Kernel and initramfs need more.
    #[error("the guest has too little memory for its kernel and initramfs")]
    TooLittleMemory,
    /// Longer than kernels read, or with a NUL.
    #[error(
        "the kernel's command line has {len} bytes; it must be shorter than {} and without NUL",
        layout::MAX_COMMAND_LINE
    )]
    CommandLine {
        /// Bytes.
        len: usize,
    },
}

/// What is booted.
#[derive(Debug)]
pub struct Payload<'a> {
    /// ELF with a PVH entry.
    pub kernel: &'a File,
    /// cpio.
    pub initramfs: Option<&'a File>,
    /// Complete.
    pub command_line: &'a str,
    /// From 1.
    pub vcpus: u8,
    /// The guest's memory in bytes.
    pub memory_bytes: u64,
}

/// How the boot processor starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its first instruction.
    pub address: u64,
    /// `hvm_start_info`.
    pub start_info: u64,
}

/// Fills the guest's memory.
///
/// # Errors
/// When something cannot be read or does not fit.
pub fn load(ram: &GuestRam, payload: &Payload<'_>) -> Result<Entry, BootError> {
    let kernel = elf::load(ram, payload.kernel)?;
    let initramfs = payload.initramfs.map(|file| load_initramfs(ram, file, payload.memory_bytes, kernel.end));
    let initramfs = initramfs.transpose()?;
    mp_table::write(ram, payload.vcpus)?;
    let start_info = pvh::write(ram, payload.memory_bytes, payload.command_line, initramfs)?;
    Ok(Entry { address: kernel.entry, start_info })
}

/// To the end of the memory below the hole.
fn load_initramfs(ram: &GuestRam, file: &File, memory: u64, kernel_end: u64) -> Result<(u64, u64), BootError> {
    let len = file.metadata().map_err(BootError::ReadInitramfs)?.len();
    let end = memory.min(layout::HOLE_START);
    let start = end.checked_sub(len).map(|start| start / PAGE * PAGE).ok_or(BootError::TooLittleMemory)?;
    if start < kernel_end {
        return Err(BootError::TooLittleMemory);
    }
    elf::read_into(ram, file, 0, start, len).map_err(BootError::ReadInitramfs)?;
    Ok((start, len))
}
