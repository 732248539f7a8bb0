//! Which devices a container has, and the program that keeps it from the others.

use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use bulkhead_proto::agent::Device;

use crate::helper::STANDARD_DEVICES;
use crate::helper::spec::DeviceSpec;
use crate::sys::bpf::{self, Instruction};

/// Most nodes of the agent's /dev that a privileged container gets.
const MAX_NODES: usize = 4096;
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;

/// An allowed kind of access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    kind: i32,
    /// `None` is any.
    major: Option<u32>,
    minor: Option<u32>,
    access: i32,
}

/// Checks a requested device.
///
/// # Errors
/// What is wrong with it.
pub fn node(device: &Device) -> Result<DeviceSpec, String> {
    let mut kind = device.kind.chars();
    let (Some(kind @ ('c' | 'u' | 'b' | 'p')), None) = (kind.next(), kind.next()) else {
        return Err(format!("device {} has the unknown kind {:?}", device.path, device.kind));
    };
    Ok(DeviceSpec {
        path: device.path.clone(),
        kind,
        major: device.major,
        minor: device.minor,
        mode: if device.mode == 0 { 0o666 } else { device.mode },
        uid: device.uid,
        gid: device.gid,
    })
}

/// The agent's own device nodes, for a privileged container.
#[must_use]
pub fn all_nodes() -> Vec<DeviceSpec> {
    let mut nodes = Vec::new();
    let mut directories = vec![Path::new("/dev").to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let (path, Ok(metadata)) = (entry.path(), entry.metadata()) else { continue };
            let kind = metadata.file_type();
            let own_mount = ["/dev/pts", "/dev/shm", "/dev/mqueue"].iter().any(|own| path == Path::new(own));
            if kind.is_dir() && !own_mount {
                directories.push(path);
            } else if (kind.is_char_device() || kind.is_block_device()) && !is_standard(&path) {
                nodes.push(existing(&path, &metadata));
            }
            if nodes.len() >= MAX_NODES {
                return nodes;
            }
        }
    }
    nodes
}

fn is_standard(path: &Path) -> bool {
    let name = path.strip_prefix("/dev").ok().and_then(Path::to_str).unwrap_or_default();
    ["ptmx", "console"].contains(&name) || STANDARD_DEVICES.iter().any(|(standard, ..)| *standard == name)
}

fn existing(path: &Path, metadata: &fs::Metadata) -> DeviceSpec {
    DeviceSpec {
        path: path.to_string_lossy().into_owned(),
        kind: if metadata.file_type().is_block_device() { 'b' } else { 'c' },
        major: rustix::fs::major(metadata.rdev()),
        minor: rustix::fs::minor(metadata.rdev()),
        mode: metadata.mode() & 0o7777,
        uid: Some(metadata.uid()),
        gid: Some(metadata.gid()),
    }
}

/// What a container without privileges may do: any mknod, its terminals, the standard nodes and its own devices.
#[must_use]
pub fn rules(devices: &[Device]) -> Vec<Rule> {
    let all = READ | WRITE | MKNOD;
    let character = |major, minor, access| Rule { kind: CHARACTER, major, minor, access };
    let mut rules = vec![
        character(None, None, MKNOD),
        Rule { kind: BLOCK, major: None, minor: None, access: MKNOD },
        character(Some(5), Some(1), all),
        character(Some(5), Some(2), all),
        character(Some(136), None, all),
    ];
    rules.extend(STANDARD_DEVICES.iter().map(|(_, major, minor)| character(Some(*major), Some(*minor), all)));
    rules.extend(devices.iter().filter(|device| device.kind != "p").map(|device| {
        let bit = |letter, bit| if device.access.contains(letter) { bit } else { 0 };
        Rule {
            kind: if device.kind == "b" { BLOCK } else { CHARACTER },
            major: Some(device.major),
            minor: Some(device.minor),
            access: bit('r', READ) | bit('w', WRITE) | bit('m', MKNOD),
        }
    }));
    rules
}

/// Lets only what `rules` allow through.
///
/// # Errors
/// Why the kernel refused, for people.
pub fn confine(cgroup: BorrowedFd<'_>, rules: &[Rule]) -> Result<(), String> {
    bpf::attach_device_program(cgroup, &program(rules))
        .map_err(|error| format!("devices are not confined: this kernel refused the device program: {error}"))
}

const R0: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

fn op(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: destination | source << 4, offset, immediate }
}

/// The context holds access and kind in one word, then major and minor.
fn program(rules: &[Rule]) -> Vec<Instruction> {
    const LOAD_WORD: u8 = 0x61;
    const MOVE: u8 = 0xbf;
    const AND: u8 = 0x57;
    const SHIFT_RIGHT: u8 = 0x77;
    let mut code = vec![
        op(LOAD_WORD, KIND, CONTEXT, 0, 0),
        op(MOVE, ACCESS, KIND, 0, 0),
        op(AND, KIND, 0, 0, 0xffff),
        op(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        op(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        op(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules {
        code.extend(block(rule));
    }
    code.extend(answer(0));
    code
}

fn answer(allowed: i32) -> [Instruction; 2] {
    const SET: u8 = 0xb7;
    const EXIT: u8 = 0x95;
    [op(SET, R0, 0, 0, allowed), op(EXIT, 0, 0, 0, 0)]
}

/// Allows when everything matches and no access beyond the rule's is asked for; else falls through.
fn block(rule: &Rule) -> Vec<Instruction> {
    const JUMP_NOT_EQUAL: u8 = 0x55;
    const MOVE: u8 = 0xbf;
    const AND: u8 = 0x57;
    let mut checks = vec![op(JUMP_NOT_EQUAL, KIND, 0, 0, rule.kind)];
    checks.push(op(MOVE, SCRATCH, ACCESS, 0, 0));
    checks.push(op(AND, SCRATCH, 0, 0, !rule.access));
    checks.push(op(JUMP_NOT_EQUAL, SCRATCH, 0, 0, 0));
    for (register, number) in [(MAJOR, rule.major), (MINOR, rule.minor)] {
        if let Some(number) = number {
            checks.push(op(JUMP_NOT_EQUAL, register, 0, 0, number.cast_signed()));
        }
    }
    checks.extend(answer(1));
    let end = checks.len();
    for (at, check) in checks.iter_mut().enumerate().filter(|(_, check)| check.code == JUMP_NOT_EQUAL) {
        check.offset = i16::try_from(end - at - 1).unwrap_or(i16::MAX);
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the few operations that programs here are made of.
    fn run(program: &[Instruction], kind: i32, access: i32, major: i64, minor: i64) -> i64 {
        let mut registers = [0i64; 7];
        let mut at = 0;
        loop {
            let i = program[at];
            let (to, from) = (usize::from(i.registers & 15), usize::from(i.registers >> 4));
            at += 1;
            match i.code {
                0x61 => {
                    registers[to] = match i.offset {
                        0 => i64::from(access << 16 | kind),
                        4 => major,
                        _ => minor,
                    };
                }
                0xbf => registers[to] = registers[from],
                0x57 => registers[to] &= i64::from(i.immediate),
                0x77 => registers[to] >>= i.immediate,
                0xb7 => registers[to] = i64::from(i.immediate),
                0x55 if registers[to] != i64::from(i.immediate) => at += usize::try_from(i.offset).unwrap(),
                0x55 => {}
                0x95 => return registers[0],
                other => panic!("unexpected operation {other:#x}"),
            }
        }
    }

    #[test]
    fn the_program_allows_what_the_rules_say() {
        let mut fuse = Device::new();
        (fuse.kind, fuse.major, fuse.minor, fuse.access) = ("c".into(), 10, 229, "r".into());
        let program = program(&rules(&[fuse]));
        let allowed = |kind, access, major, minor| run(&program, kind, access, major, minor) == 1;
        assert!(allowed(CHARACTER, READ | WRITE, 1, 3), "/dev/null");
        assert!(allowed(CHARACTER, READ, 136, 7), "any terminal");
        assert!(allowed(BLOCK, MKNOD, 8, 0), "mknod of anything");
        assert!(!allowed(BLOCK, MKNOD | READ, 8, 0), "but no use of it");
        assert!(!allowed(BLOCK, READ, 1, 3), "another kind");
        assert!(allowed(CHARACTER, READ, 10, 229), "an own device");
        assert!(!allowed(CHARACTER, READ | WRITE, 10, 229), "as far as granted");
    }
}
