//! The initramfs: the agent as `/init`, and the directories it mounts on.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use flate2::write::GzEncoder;
use thiserror::Error;

use crate::cpio::{CpioError, Writer};

/// A pod pays for every byte twice, in memory and in boot time.
const MAX_BYTES: usize = 6 << 20;
const DIRECTORIES: [(&str, u32); 6] =
    [("dev", 0o755), ("proc", 0o555), ("root", 0o700), ("run", 0o755), ("sys", 0o555), ("tmp", 0o1777)];

/// How the archive is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Compression {
    /// The one that boots fastest of those that fit: none, else zstd
    #[default]
    Auto,
    /// Nothing to unpack, the most bytes to load
    None,
    /// Slowest to unpack
    Gzip,
    /// The fewest bytes
    Zstd,
}

/// Why there is no initramfs.
#[derive(Debug, Error)]
pub enum InitramfsError {
    #[error("cannot read the agent {path} for the initramfs; build it with `make guest`")]
    Agent { path: PathBuf, source: io::Error },
    #[error("the agent {path} cannot be a pod's first program: {reason}")]
    NotRunnable { path: PathBuf, reason: &'static str },
    #[error("cannot pack the initramfs")]
    Pack(#[from] CpioError),
    #[error("cannot compress the initramfs")]
    Compress(#[source] io::Error),
    #[error(
        "the initramfs with {agent} is {size} bytes, more than the {MAX_BYTES} a pod may cost; make the agent smaller"
    )]
    TooLarge { agent: PathBuf, size: usize },
    #[error("cannot write the initramfs {path}")]
    Write { path: PathBuf, source: io::Error },
}

/// Packs `agent` and writes the initramfs to `output`, which is replaced in one step. Returns its size in bytes.
pub fn write(agent: &Path, output: &Path, compression: Compression) -> Result<usize, InitramfsError> {
    let program = fs::read(agent).map_err(|source| InitramfsError::Agent { path: agent.to_path_buf(), source })?;
    runnable(&program).map_err(|reason| InitramfsError::NotRunnable { path: agent.to_path_buf(), reason })?;
    let packed = compress(&pack(&program)?, compression).map_err(InitramfsError::Compress)?;
    if packed.len() > MAX_BYTES {
        return Err(InitramfsError::TooLarge { agent: agent.to_path_buf(), size: packed.len() });
    }
    replace(output, &packed).map_err(|source| InitramfsError::Write { path: output.to_path_buf(), source })?;
    Ok(packed.len())
}

fn pack(program: &[u8]) -> Result<Vec<u8>, CpioError> {
    let mut archive = Writer::new(Vec::with_capacity(program.len() + 4096));
    for (name, mode) in DIRECTORIES {
        archive.dir(name, mode)?;
    }
    // The kernel opens it as the standard streams of /init.
    archive.char_device("dev/console", 0o600, (5, 1))?;
    archive.file("init", 0o755, program)?;
    archive.finish()
}

fn compress(archive: &[u8], compression: Compression) -> io::Result<Vec<u8>> {
    match compression {
        Compression::Auto if archive.len() > MAX_BYTES => compress(archive, Compression::Zstd),
        Compression::Auto | Compression::None => Ok(archive.to_vec()),
        Compression::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::best());
            encoder.write_all(archive)?;
            encoder.finish()
        }
        Compression::Zstd => zstd::bulk::compress(archive, 19),
    }
}

/// Checks what the kernel would only say as "Failed to execute /init" on the console of every pod.
fn runnable(program: &[u8]) -> Result<(), &'static str> {
    const NOT_ELF: &str = "it is not a complete x86-64 ELF program";
    const PT_INTERP: usize = 3;
    let bytes = |at: usize, count: usize| at.checked_add(count).and_then(|end| program.get(at..end)).ok_or(NOT_ELF);
    let number =
        |at, count| bytes(at, count).map(|b| b.iter().rev().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte)));

    let (class, machine) = (number(4, 1)?, number(18, 2)?);
    if bytes(0, 4)? != b"\x7fELF" || (class, machine) != (2, 62) {
        return Err(NOT_ELF);
    }
    let (table, entry_size, entries) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for index in 0..entries {
        let at = table.checked_add(index * entry_size).ok_or(NOT_ELF)?;
        bytes(at, entry_size)?;
        if number(at, 4)? == PT_INTERP {
            return Err("it is linked dynamically, and the initramfs holds no libraries; \
                        build it with RUSTFLAGS=\"-C target-feature=+crt-static\"");
        }
    }
    Ok(())
}

fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut staged = path.as_os_str().to_owned();
    staged.push(format!(".{}.tmp", std::process::id()));
    let staged = PathBuf::from(staged);
    let written = fs::write(&staged, content).and_then(|()| fs::rename(&staged, path));
    if written.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&staged);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(interpreter: bool) -> Vec<u8> {
        let mut program = vec![0; 64 + 56];
        program[..5].copy_from_slice(b"\x7fELF\x02");
        program[18] = 62;
        program[32] = 64;
        program[54] = 56;
        program[56] = 1;
        program[64] = if interpreter { 3 } else { 1 };
        program
    }

    #[test]
    fn a_static_program_is_packed_the_same_way_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let agent = dir.path().join("agent");
        fs::write(&agent, elf(false)).unwrap();
        let outputs: Vec<Vec<u8>> = ["a", "b"]
            .iter()
            .map(|name| {
                let path = dir.path().join(name);
                let size = write(&agent, &path, Compression::Zstd).unwrap();
                let bytes = fs::read(path).unwrap();
                assert_eq!(bytes.len(), size);
                bytes
            })
            .collect();
        assert_eq!(outputs[0], outputs[1]);
        let archive = zstd::bulk::decompress(&outputs[0], 1 << 20).unwrap();
        assert_eq!(archive, pack(&elf(false)).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn every_compression_holds_the_same_archive() {
        let archive = pack(&elf(false)).unwrap();
        assert_eq!(compress(&archive, Compression::None).unwrap(), archive);
        let mut unpacked = Vec::new();
        let gzip = compress(&archive, Compression::Gzip).unwrap();
        io::Read::read_to_end(&mut flate2::read::GzDecoder::new(gzip.as_slice()), &mut unpacked).unwrap();
        assert_eq!(unpacked, archive);
    }

    #[test]
    fn only_what_does_not_fit_is_compressed() {
        let small = vec![0; MAX_BYTES];
        assert_eq!(compress(&small, Compression::Auto).unwrap().len(), MAX_BYTES);
        let large = vec![0; MAX_BYTES + 1];
        assert!(compress(&large, Compression::Auto).unwrap().len() < 100_000);
    }

    #[test]
    fn a_dynamic_program_is_refused_with_the_remedy() {
        assert!(runnable(&elf(true)).unwrap_err().contains("crt-static"));
    }

    #[test]
    fn what_is_no_program_is_refused() {
        for bad in [&b""[..], b"#!/bin/sh\n", b"\x7fELF\x02", &elf(false)[..100]] {
            assert!(runnable(bad).is_err());
        }
        let mut far = elf(false);
        far[32..40].fill(0xff);
        assert!(runnable(&far).is_err());
    }

    #[test]
    fn an_agent_too_large_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let agent = dir.path().join("agent");
        let mut program = elf(false);
        program.resize(MAX_BYTES + 1, 0);
        fs::write(&agent, program).unwrap();
        let output = dir.path().join("out");
        let error = write(&agent, &output, Compression::None).unwrap_err();
        assert!(matches!(error, InitramfsError::TooLarge { .. }), "{error}");
        assert!(!output.exists());
    }
}
