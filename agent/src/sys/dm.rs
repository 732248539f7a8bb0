//! device-mapper by ioctl: one linear target per device.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

const VERSION: [u32; 3] = [4, 0, 0];
const HEADER: usize = 312;
const SPEC: usize = 40;
const NAME_MAX: usize = 127;
const READONLY: u32 = 1;

/// Commands of `linux/dm-ioctl.h`.
#[derive(Debug, Clone, Copy)]
enum Command {
    Create = 3,
    Remove = 4,
    Suspend = 6,
    TableLoad = 9,
}

/// `/dev/mapper/control`.
#[derive(Debug)]
pub struct Control(File);

impl Control {
    /// Opens the control device.
    ///
    /// # Errors
    /// When the kernel has no device-mapper or /dev is not mounted.
    pub fn open() -> io::Result<Self> {
        Ok(Self(OpenOptions::new().read(true).write(true).open("/dev/mapper/control")?))
    }

    /// Makes the read-only device `name` over `sectors` from `start` of `device` ("MAJOR:MINOR"); returns its number.
    ///
    /// # Errors
    /// The kernel's; nothing is left then.
    pub fn create_linear(&self, name: &str, device: &str, start: u64, sectors: u64) -> io::Result<(u32, u32)> {
        let mut create = message(name, 0, 0)?;
        self.ioctl(Command::Create, &mut create)?;
        let number = decode_device(&create);
        let load = || -> io::Result<()> {
            let mut table = message(name, READONLY, 1)?;
            table.extend_from_slice(&linear_target(device, start, sectors));
            let size = u32::try_from(table.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
            table[12..16].copy_from_slice(&size.to_ne_bytes());
            self.ioctl(Command::TableLoad, &mut table)?;
            // A suspend without the suspend flag resumes: the table goes live.
            self.ioctl(Command::Suspend, &mut message(name, 0, 0)?)
        };
        if let Err(error) = load() {
            self.remove(name)?;
            return Err(error);
        }
        Ok(number)
    }

    /// Removes the device `name`.
    ///
    /// # Errors
    /// The kernel's: `EBUSY` while it is mounted, `ENXIO` when there is none.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        self.ioctl(Command::Remove, &mut message(name, 0, 0)?)
    }

    fn ioctl(&self, command: Command, message: &mut [u8]) -> io::Result<()> {
        let request = (3 << 30) | ((HEADER as libc::c_ulong) << 16) | (0xfd << 8) | command as libc::c_ulong;
        // SAFETY: `message` is at least HEADER bytes and its data_size field holds its true length, which bounds
        // what the kernel reads and writes.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), request as _, message.as_mut_ptr()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn message(name: &str, flags: u32, targets: u32) -> io::Result<Vec<u8>> {
    if name.is_empty() || name.len() > NAME_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut bytes = vec![0; HEADER];
    let mut put = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    for (i, part) in VERSION.iter().enumerate() {
        put(i * 4, *part);
    }
    put(12, HEADER as u32);
    put(16, HEADER as u32);
    put(20, targets);
    put(28, flags);
    bytes[48..48 + name.len()].copy_from_slice(name.as_bytes());
    Ok(bytes)
}

fn linear_target(device: &str, start: u64, sectors: u64) -> Vec<u8> {
    let mut bytes = vec![0; SPEC];
    bytes[8..16].copy_from_slice(&sectors.to_ne_bytes());
    bytes[24..30].copy_from_slice(b"linear");
    bytes.extend_from_slice(format!("{device} {start}\0").as_bytes());
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let next = bytes.len() as u32;
    bytes[20..24].copy_from_slice(&next.to_ne_bytes());
    bytes
}

fn decode_device(message: &[u8]) -> (u32, u32) {
    let mut raw = [0; 8];
    raw.copy_from_slice(&message[40..48]);
    let device = u64::from_ne_bytes(raw) as u32;
    ((device & 0xf_ff00) >> 8, (device & 0xff) | ((device >> 12) & 0xf_ff00))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_target_is_padded_and_says_where_it_ends() {
        let target = linear_target("254:0", 2048, 16);
        assert_eq!(target.len(), 56);
        assert_eq!(u32::from_ne_bytes(target[20..24].try_into().unwrap()), 56);
        assert!(target[SPEC..].starts_with(b"254:0 2048\0"));
    }

    #[test]
    fn device_numbers_are_decoded() {
        let mut bytes = message("x", 0, 0).unwrap();
        bytes[40..48].copy_from_slice(&0xfd_03u64.to_ne_bytes());
        assert_eq!(decode_device(&bytes), (253, 3));
    }

    #[test]
    fn names_are_bounded() {
        assert!(message(&"x".repeat(128), 0, 0).is_err());
        assert!(message("", 0, 0).is_err());
    }
}
