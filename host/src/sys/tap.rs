//! Tap devices, the host's end of a guest's network card.
//!
//! A tap made here is not persistent: it lives as long as its descriptor, so whatever happens to the process that
//! drives the guest leaves no device behind. It starts with every offload off: packets that reach it by `mirred` from
//! a veth carry unfinished checksums, which the kernel completes, and segments what is larger than the MTU, for a
//! device that did not ask for them. QEMU and our own VMM switch offloads on (TUNSETOFFLOAD) and set the header's size
//! (TUNSETVNETHDRSZ, 10 bytes until then) when the guest's driver has negotiated them.

#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::netns::{self, NetnsError};

/// Where taps come from.
pub const TUN_DEVICE: &str = "/dev/net/tun";

/// A tap could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The namespace it should be in.
    #[error(transparent)]
    Namespace(#[from] NetnsError),
    /// Longer than 15 bytes, empty, or with a NUL.
    #[error("{name:?} is no name for a network device (1 to 15 bytes)")]
    Name {
        /// As given.
        name: String,
    },
    /// /dev/net/tun.
    #[error("cannot open {TUN_DEVICE} to create tap {name} in {netns} (is the tun module loaded?)")]
    Open {
        /// The tap's name.
        name: String,
        /// The namespace.
        netns: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An ioctl.
    #[error("cannot create tap {name} in {netns}: {step} failed")]
    Create {
        /// The tap's name.
        name: String,
        /// The namespace.
        netns: PathBuf,
        /// The ioctl.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Creates the tap `name` in the namespace at `netns`: virtio header, no packet information, offloads off. There is a descriptor
/// for each of its `queues`, at least one, non-blocking and closed on exec.
///
/// # Errors
/// When the namespace cannot be entered, the name is taken, or the host has no tun device.
pub fn create(netns: &Path, name: &str, queues: u16) -> Result<Vec<OwnedFd>, TapError> {
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains('\0') {
        return Err(TapError::Name { name: name.to_owned() });
    }
    let (name, path) = (name.to_owned(), netns.to_owned());
    netns::run(netns, move || create_here(&path, &name, queues.max(1)))?
}

fn create_here(netns: &Path, name: &str, queues: u16) -> Result<Vec<OwnedFd>, TapError> {
    let kind = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let kind = if queues > 1 { kind | libc::IFF_MULTI_QUEUE } else { kind };
    let first = attach(netns, name, kind | libc::IFF_TUN_EXCL)?;
    let others = (1..queues).map(|_| attach(netns, name, kind));
    std::iter::once(Ok(first)).chain(others).collect()
}

/// Opens a queue of the tap, which the first one creates.
fn attach(netns: &Path, name: &str, flags: libc::c_int) -> Result<OwnedFd, TapError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(TUN_DEVICE)
        .map_err(|source| TapError::Open { name: name.to_owned(), netns: netns.to_owned(), source })?;
    let failed = |step, source| TapError::Create { name: name.to_owned(), netns: netns.to_owned(), step, source };
    // SAFETY: `ifreq` is plain old data for which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    #[allow(clippy::cast_possible_truncation)] // the flags are defined as 16 bits
    let flags = flags as libc::c_short;
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: the descriptor is open, and TUNSETIFF reads and writes one `ifreq`, which `request` is and which outlives the call.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(failed("TUNSETIFF", io::Error::last_os_error()));
    }
    // SAFETY: the descriptor is open, and TUNSETOFFLOAD takes its argument by value.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, 0 as libc::c_ulong) } < 0 {
        return Err(failed("TUNSETOFFLOAD", io::Error::last_os_error()));
    }
    Ok(file.into())
}
