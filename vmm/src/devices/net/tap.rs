//! A tap device of the host, by its descriptor.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::features::{TUN_F_PROBE, TUN_F_USO};
use super::{HEADER_LEN, NetBackend};
use crate::devices::slices::GuestSlices;

/// Why a descriptor cannot carry a guest's frames.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// Something else than a tap with virtio headers and without packet information.
    #[error("the descriptor is no tap device with IFF_VNET_HDR and IFF_NO_PI (its flags are {flags:#x})")]
    Kind {
        /// IFF_* of the device.
        flags: i16,
    },
    /// The kernel refused.
    #[error("cannot {step} of the tap device: {source}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// One queue of a tap.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    segments_udp: bool,
}

impl Tap {
    /// Takes over an attached tap queue: sets its header's size, and switches every offload off until a driver asks.
    ///
    /// # Errors
    /// When it is no such thing.
    pub fn new(fd: OwnedFd) -> Result<Self, TapError> {
        let failed = |step| move |source| TapError::Io { step, source };
        // SAFETY: `ifreq` is plain old data for which all zeros is a valid value.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        // SAFETY: the descriptor is open, and TUNGETIFF writes one `ifreq`, which `request` is and which outlives the call.
        let got = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF as libc::Ioctl, &raw mut request) };
        check(got).map_err(failed("read the kind"))?;
        // SAFETY: TUNGETIFF has filled the flags, and an integer has no invalid value.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        let wanted = libc::IFF_TAP | libc::IFF_VNET_HDR | libc::IFF_NO_PI;
        if i32::from(flags) & wanted != wanted || i32::from(flags) & libc::IFF_TUN != 0 {
            return Err(TapError::Kind { flags });
        }
        let header = HEADER_LEN as libc::c_int;
        // SAFETY: the descriptor is open, and TUNSETVNETHDRSZ reads one `int`.
        let set = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ as libc::Ioctl, &raw const header) };
        check(set).map_err(failed("set the header's size"))?;
        let nonblocking = rustix::fs::fcntl_getfl(&fd)
            .and_then(|flags| rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK));
        nonblocking.map_err(|error| failed("change the mode")(error.into()))?;
        let mut tap = Self { fd, segments_udp: false };
        tap.segments_udp = tap.set_offloads(TUN_F_PROBE).is_ok();
        tap.set_offloads(0).map_err(failed("switch off offloads"))?;
        Ok(tap)
    }
}

impl NetBackend for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn receive(&self, buffers: &GuestSlices<'_>) -> io::Result<usize> {
        buffers.read_once(self.fd.as_fd())
    }

    fn send(&self, frame: &GuestSlices<'_>) -> io::Result<()> {
        frame.write_once(self.fd.as_fd()).map(drop)
    }

    fn segments_udp(&self) -> bool {
        self.segments_udp
    }

    fn set_offloads(&self, flags: u32) -> io::Result<()> {
        let known = if self.segments_udp || flags == TUN_F_PROBE { flags } else { flags & !TUN_F_USO };
        // SAFETY: the descriptor is open, and TUNSETOFFLOAD takes its argument by value.
        check(unsafe {
            libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETOFFLOAD as libc::Ioctl, libc::c_ulong::from(known))
        })
    }

    fn set_attached(&self, attached: bool) -> io::Result<()> {
        // SAFETY: `ifreq` is plain old data for which all zeros is a valid value.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        let flag = if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        request.ifr_ifru.ifru_flags = flag as libc::c_short;
        // SAFETY: the descriptor is open, and TUNSETQUEUE reads one `ifreq`.
        check(unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETQUEUE as libc::Ioctl, &raw const request) })
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
