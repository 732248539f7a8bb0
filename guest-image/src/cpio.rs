//! A writer of `newc` archives, the format of an initramfs.
//!
//! Deterministic: every time is 0 and every owner is root, so equal contents make equal bytes.

use std::io::{self, Write};

use thiserror::Error;

const MAGIC: &str = "070701";
const TRAILER: &str = "TRAILER!!!";
const TYPE_FILE: u32 = 0o100_000;
const TYPE_DIR: u32 = 0o040_000;
const TYPE_CHAR: u32 = 0o020_000;

/// Why an entry cannot be archived.
#[derive(Debug, Error)]
pub enum CpioError {
    #[error("{name} has {size} bytes; this archive format holds files below 4 GiB")]
    TooLarge { name: String, size: usize },
    #[error("cannot write {name} to the archive")]
    Io { name: String, source: io::Error },
}

/// Writes entries to `out`, in the order they are given; parents come before their children.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    /// Inode number of the next entry: distinct, so that nothing looks like a hard link.
    inode: u32,
}

struct Entry<'a> {
    name: &'a str,
    mode: u32,
    device: (u32, u32),
    data: &'a [u8],
}

impl<W: Write> Writer<W> {
    pub fn new(out: W) -> Self {
        Self { out, inode: 1 }
    }

    /// A regular file; `mode` is its permission bits.
    pub fn file(&mut self, name: &str, mode: u32, data: &[u8]) -> Result<(), CpioError> {
        self.entry(&Entry { name, mode: TYPE_FILE | mode, device: (0, 0), data })
    }

    /// A directory.
    pub fn dir(&mut self, name: &str, mode: u32) -> Result<(), CpioError> {
        self.entry(&Entry { name, mode: TYPE_DIR | mode, device: (0, 0), data: &[] })
    }

    /// A character device with major and minor number `device`.
    pub fn char_device(&mut self, name: &str, mode: u32, device: (u32, u32)) -> Result<(), CpioError> {
        self.entry(&Entry { name, mode: TYPE_CHAR | mode, device, data: &[] })
    }

    /// Ends the archive and returns what it was written to.
    pub fn finish(mut self) -> Result<W, CpioError> {
        self.inode = 0;
        self.entry(&Entry { name: TRAILER, mode: 0, device: (0, 0), data: &[] })?;
        Ok(self.out)
    }

    fn entry(&mut self, entry: &Entry<'_>) -> Result<(), CpioError> {
        let too_large = || CpioError::TooLarge { name: entry.name.into(), size: entry.data.len() };
        let size = u32::try_from(entry.data.len()).map_err(|_| too_large())?;
        let name_size = u32::try_from(entry.name.len() + 1).map_err(|_| too_large())?;
        let links = if entry.mode & TYPE_DIR == TYPE_DIR { 2 } else { 1 };
        let (uid, gid, time, checksum) = (0, 0, 0, 0);
        let fields = [
            self.inode,
            entry.mode,
            uid,
            gid,
            links,
            time,
            size,
            0,
            0,
            entry.device.0,
            entry.device.1,
            name_size,
            checksum,
        ];
        self.inode += 1;

        let mut header = String::from(MAGIC);
        header.extend(fields.iter().map(|field| format!("{field:08X}")));
        let mut bytes = header.into_bytes();
        bytes.extend_from_slice(entry.name.as_bytes());
        bytes.push(0);
        pad(&mut bytes);
        let tail = vec![0; entry.data.len().next_multiple_of(4) - entry.data.len()];
        for part in [bytes.as_slice(), entry.data, &tail] {
            self.out.write_all(part).map_err(|source| CpioError::Io { name: entry.name.into(), source })?;
        }
        Ok(())
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn sample() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        writer.dir("dev", 0o755).unwrap();
        writer.char_device("dev/console", 0o600, (5, 1)).unwrap();
        writer.file("init", 0o755, b"hello").unwrap();
        writer.finish().unwrap()
    }

    #[test]
    fn every_header_starts_on_a_multiple_of_four() {
        let archive = sample();
        let mut at = 0;
        let mut names = Vec::new();
        while at < archive.len() {
            assert_eq!(&archive[at..at + 6], MAGIC.as_bytes());
            let field = |index: usize| {
                let start = at + 6 + index * 8;
                usize::from_str_radix(std::str::from_utf8(&archive[start..start + 8]).unwrap(), 16).unwrap()
            };
            let (size, name_size) = (field(6), field(11));
            names.push(String::from_utf8(archive[at + 110..at + 110 + name_size - 1].to_vec()).unwrap());
            at += (110 + name_size).next_multiple_of(4) + size.next_multiple_of(4);
        }
        assert_eq!(names, ["dev", "dev/console", "init", TRAILER]);
    }

    #[test]
    fn equal_contents_make_equal_bytes() {
        assert_eq!(sample(), sample());
    }

    #[test]
    fn cpio_lists_what_was_written() {
        let Ok(mut child) = Command::new("cpio")
            .args(["-t", "-v", "--quiet", "--numeric-uid-gid"])
            .env("TZ", "UTC")
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
        else {
            eprintln!("skipped: cpio is not installed");
            return;
        };
        child.stdin.take().unwrap().write_all(&sample()).unwrap();
        let output = child.wait_with_output().unwrap();
        let listing: Vec<String> = String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            listing,
            [
                "drwxr-xr-x 2 0 0 0 Jan 1 1970 dev",
                "crw------- 1 0 0 5, 1 Jan 1 1970 dev/console",
                "-rwxr-xr-x 1 0 0 5 Jan 1 1970 init",
            ]
        );
    }
}
