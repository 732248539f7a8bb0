//! What a network device sends its frames to.

use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;

use crate::devices::slices::GuestSlices;

/// One queue pair's way to the host. Frames begin with a header of [`HEADER_LEN`](super::HEADER_LEN) bytes. Nothing waits.
pub trait NetBackend: Debug + Send + Sync {
    /// Readable when there is a frame, writable when `send` works.
    fn as_fd(&self) -> BorrowedFd<'_>;

    /// The next frame; its bytes with the header. `WouldBlock` when there is none.
    ///
    /// # Errors
    /// The kernel's.
    fn receive(&self, buffers: &GuestSlices<'_>) -> io::Result<usize>;

    /// Sends one frame. `WouldBlock` when there is no room.
    ///
    /// # Errors
    /// The kernel's; `InvalidInput` for a frame or header that makes no sense.
    fn send(&self, frame: &GuestSlices<'_>) -> io::Result<()>;

    /// Whether UDP can be handed over unsegmented (Linux 6.2 and later).
    fn segments_udp(&self) -> bool;

    /// What frames for the guest may look like: TUN_F_* flags.
    ///
    /// # Errors
    /// The kernel's.
    fn set_offloads(&self, flags: u32) -> io::Result<()>;

    /// Whether the host's flows may be steered to this queue.
    ///
    /// # Errors
    /// The kernel's.
    fn set_attached(&self, attached: bool) -> io::Result<()>;
}
