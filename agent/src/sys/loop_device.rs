//! Loop devices over files, read-only, gone when nobody has them open.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

const GET_FREE: libc::c_ulong = 0x4c82;
const CONFIGURE: libc::c_ulong = 0x4c0a;
const READ_ONLY: u32 = 1;
const AUTOCLEAR: u32 = 4;
/// Others take free devices at the same time.
const ATTEMPTS: usize = 64;

/// `struct loop_config` of `linux/loop.h`, in words: fd, block_size, then `struct loop_info64`, then reserved ones.
const CONFIG_BYTES: usize = 304;
/// Of `lo_flags` in it.
const FLAGS_AT: usize = 8 + 52;

/// A loop device; while this lives, it is open.
#[derive(Debug)]
pub struct LoopDevice {
    path: String,
    _open: File,
}

impl LoopDevice {
    /// Puts a free device over `file`.
    ///
    /// # Errors
    /// The kernel's; `EBUSY` when others took every free device first.
    pub fn attach(file: &Path) -> io::Result<Self> {
        let backing = File::open(file)?;
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        for _ in 0..ATTEMPTS {
            // SAFETY: LOOP_CTL_GET_FREE takes no argument and returns a number.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), GET_FREE as _) };
            if number < 0 {
                return Err(io::Error::last_os_error());
            }
            let path = format!("/dev/loop{number}");
            let device = OpenOptions::new().read(true).open(&path)?;
            match configure(&device, &backing) {
                Ok(()) => return Ok(Self { path, _open: device }),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::from_raw_os_error(libc::EBUSY))
    }

    /// "/dev/loop3"
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
}

fn configure(device: &File, backing: &File) -> io::Result<()> {
    let mut config = [0_u8; CONFIG_BYTES];
    config[..4].copy_from_slice(&backing.as_raw_fd().to_ne_bytes());
    config[FLAGS_AT..FLAGS_AT + 4].copy_from_slice(&(READ_ONLY | AUTOCLEAR).to_ne_bytes());
    // SAFETY: `config` has the size of `struct loop_config`, which the kernel only reads, and outlives the call.
    match unsafe { libc::ioctl(device.as_raw_fd(), CONFIGURE as _, config.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_shows_its_file_and_goes_with_its_last_user() {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
            return eprintln!("SKIPPED: no root or no /dev/loop-control");
        }
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("content");
        std::fs::write(&file, [7; 8192]).unwrap();
        let device = LoopDevice::attach(&file).unwrap();
        assert_eq!(std::fs::read(device.path()).unwrap(), [7; 8192]);
        let name = device.path().trim_start_matches("/dev/").to_owned();
        assert_eq!(std::fs::read_to_string(format!("/sys/block/{name}/ro")).unwrap().trim(), "1");
        let backing = format!("/sys/block/{name}/loop/backing_file");
        assert_eq!(std::fs::read_to_string(&backing).unwrap().trim(), file.to_str().unwrap());
        drop(device);
        let left = std::fs::read_to_string(&backing).unwrap_or_default();
        assert!(left.trim() != file.to_str().unwrap(), "{left}");
    }
}
