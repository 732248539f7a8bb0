//! Scattered pieces of guest memory, and system calls that read or fill them without a copy of our own.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::{GuestMemory, GuestMemoryRegion, VolatileSlice};

use super::GuestRam;

/// Most pieces one system call takes (IOV_MAX).
const MAX_IOVECS: usize = 1024;

/// Buffers in guest memory, in order. The guest may change their bytes at any time.
#[derive(Debug, Default, Clone)]
pub struct GuestSlices<'a> {
    pieces: Vec<VolatileSlice<'a>>,
    len: usize,
}

impl<'a> GuestSlices<'a> {
    /// Appends a piece; empty ones vanish.
    pub fn push(&mut self, piece: VolatileSlice<'a>) {
        if !piece.is_empty() {
            self.len += piece.len();
            self.pieces.push(piece);
        }
    }

    /// Bytes in all pieces.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// No bytes at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The part from `start` of at most `len` bytes.
    #[must_use]
    pub fn range(&self, start: usize, len: usize) -> Self {
        let mut result = Self::default();
        let (mut skip, mut left) = (start, len);
        for piece in &self.pieces {
            if left == 0 {
                break;
            }
            if skip >= piece.len() {
                skip -= piece.len();
                continue;
            }
            let take = left.min(piece.len() - skip);
            if let Ok(part) = piece.subslice(skip, take) {
                result.push(part);
                left -= take;
            }
            skip = 0;
        }
        result
    }

    /// Fills `out` from the start; false when there are fewer bytes.
    #[must_use]
    pub fn read_exact(&self, out: &mut [u8]) -> bool {
        if out.len() > self.len {
            return false;
        }
        let mut done = 0;
        for piece in &self.pieces {
            if done == out.len() {
                break;
            }
            done += piece.copy_to(&mut out[done..]);
        }
        done == out.len()
    }

    /// Copies all of `data` to the start; false when it does not fit.
    #[must_use]
    pub fn write_all(&self, data: &[u8]) -> bool {
        if data.len() > self.len {
            return false;
        }
        let mut done = 0;
        for piece in &self.pieces {
            let take = piece.len().min(data.len() - done);
            if take == 0 {
                break;
            }
            piece.copy_from(&data[done..done + take]);
            done += take;
        }
        true
    }

    /// Zeroes every byte.
    pub fn zero(&self) {
        const ZEROS: [u8; 4096] = [0; 4096];
        for piece in &self.pieces {
            let mut at = 0;
            while at < piece.len() {
                let take = ZEROS.len().min(piece.len() - at);
                if let Ok(part) = piece.subslice(at, take) {
                    part.copy_from(&ZEROS[..take]);
                }
                at += take;
            }
        }
    }

    /// Fills from the file at `offset`; what lies past its end becomes zeros.
    pub fn read_from(&self, file: BorrowedFd<'_>, offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < self.len {
            let position = file_position(offset, done)?;
            let rest = self.range(done, self.len - done);
            let got = rest.with_iovecs(|iovecs, count| {
                // SAFETY: the iovecs describe guest memory that stays mapped while `self` borrows it; only the
                // kernel writes there, and no Rust reference to those bytes exists.
                unsafe { libc::preadv64(file.as_raw_fd(), iovecs, count, position) }
            })?;
            if got == 0 {
                rest.zero();
                return Ok(());
            }
            done += got;
        }
        Ok(())
    }

    /// Writes everything to the file at `offset`.
    pub fn write_to(&self, file: BorrowedFd<'_>, offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < self.len {
            let position = file_position(offset, done)?;
            let rest = self.range(done, self.len - done);
            let put = rest.with_iovecs(|iovecs, count| {
                // SAFETY: the iovecs describe guest memory that stays mapped while `self` borrows it; the kernel
                // only reads it.
                unsafe { libc::pwritev64(file.as_raw_fd(), iovecs, count, position) }
            })?;
            if put == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            done += put;
        }
        Ok(())
    }

    /// One `recvmsg` that never waits; 0 at the peer's end of stream.
    pub fn receive(&self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.with_iovecs(|iovecs, count| {
            let message = message_header(iovecs, count);
            let mut message = message;
            // SAFETY: `message` names no address and no control buffer; its iovecs describe guest memory that stays
            // mapped while `self` borrows it, written by the kernel alone.
            unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) }
        })
    }

    /// One `sendmsg` that never waits and raises no SIGPIPE; the bytes the socket took.
    pub fn send(&self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.with_iovecs(|iovecs, count| {
            let message = message_header(iovecs, count);
            // SAFETY: as for `receive`; the kernel only reads the bytes.
            unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) }
        })
    }

    /// One `readv` from a device or stream; what it gave. A packet longer than the buffers loses its end.
    pub fn read_once(&self, file: BorrowedFd<'_>) -> io::Result<usize> {
        self.with_iovecs(|iovecs, count| {
            // SAFETY: the iovecs describe memory that stays mapped while `self` borrows it, written by the kernel alone.
            unsafe { libc::readv(file.as_raw_fd(), iovecs, count) }
        })
    }

    /// One `writev` to a device or stream; what it took.
    pub fn write_once(&self, file: BorrowedFd<'_>) -> io::Result<usize> {
        self.with_iovecs(|iovecs, count| {
            // SAFETY: as for `read_once`; the kernel only reads the bytes.
            unsafe { libc::writev(file.as_raw_fd(), iovecs, count) }
        })
    }

    /// Fills everything with random bytes of the kernel; how many when it fails or is interrupted half-way. Never waits.
    pub fn fill_random(&self) -> io::Result<usize> {
        let mut done = 0;
        for piece in &self.pieces {
            let guard = piece.ptr_guard_mut();
            // SAFETY: the range is guest memory that stays mapped while `self` borrows it, written by the kernel alone.
            let got = unsafe { libc::getrandom(guard.as_ptr().cast(), guard.len(), libc::GRND_NONBLOCK) };
            let Ok(got) = usize::try_from(got) else {
                return if done > 0 { Ok(done) } else { Err(io::Error::last_os_error()) };
            };
            done += got;
            if got < piece.len() {
                break;
            }
        }
        Ok(done)
    }

    /// The first pieces, as many as one system call takes. Good while what `self` borrows is.
    #[must_use]
    pub fn iovecs(&self) -> Vec<libc::iovec> {
        let pieces = &self.pieces[..self.pieces.len().min(MAX_IOVECS)];
        let iovec = |piece: &VolatileSlice<'_>| libc::iovec {
            iov_base: piece.ptr_guard_mut().as_ptr().cast(),
            iov_len: piece.len(),
        };
        pieces.iter().map(iovec).collect()
    }

    /// The same buffers together with the memory that they lie in; `None` when a piece does not lie in `ram`.
    #[must_use]
    pub fn hold(&self, ram: &GuestRam) -> Option<HeldSlices> {
        let lies_in_ram = |piece: &VolatileSlice<'_>| {
            let at = piece.ptr_guard().as_ptr() as usize;
            ram.iter().any(|region| {
                let offset = at.checked_sub(region.as_ptr() as usize).and_then(|offset| u64::try_from(offset).ok());
                offset.is_some_and(|offset| offset < region.len() && piece.len() as u64 <= region.len() - offset)
            })
        };
        if !self.pieces.iter().all(lies_in_ram) {
            return None;
        }
        // SAFETY: only the lifetime changes. Each piece was just found inside a mapping that `ram` shares the ownership of,
        // and `HeldSlices` keeps `ram`, so the mapping stays where it is for as long as these slices exist: they leave it only
        // by a borrow.
        let slices = unsafe { std::mem::transmute::<GuestSlices<'_>, GuestSlices<'static>>(self.clone()) };
        Some(HeldSlices { slices, _ram: ram.clone() })
    }

    /// Whether one system call takes all pieces.
    #[must_use]
    pub fn fits_one_call(&self) -> bool {
        self.pieces.len() <= MAX_IOVECS
    }

    /// Appends the pieces of another.
    pub fn extend(&mut self, other: &Self) {
        self.pieces.extend_from_slice(&other.pieces);
        self.len += other.len;
    }

    /// Runs a system call over the first pieces, again when a signal interrupts it.
    fn with_iovecs(&self, mut call: impl FnMut(*const libc::iovec, i32) -> libc::ssize_t) -> io::Result<usize> {
        let pieces = &self.pieces[..self.pieces.len().min(MAX_IOVECS)];
        let guards: Vec<_> = pieces.iter().map(VolatileSlice::ptr_guard_mut).collect();
        let iovecs: Vec<libc::iovec> =
            guards.iter().map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() }).collect();
        loop {
            match usize::try_from(call(iovecs.as_ptr(), iovecs.len() as i32)) {
                Ok(count) => return Ok(count),
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
    }
}

/// Buffers in guest memory that stay mapped: for what goes on after a system call has returned.
#[derive(Debug)]
pub struct HeldSlices {
    // Before the memory.
    slices: GuestSlices<'static>,
    _ram: GuestRam,
}

// SAFETY: the pieces are pointers into a mapping that `_ram` keeps, which belongs to no thread; guest memory is only ever
// accessed as volatile, from any thread, and the guest itself changes it at any time.
unsafe impl Send for HeldSlices {}

impl HeldSlices {
    /// The buffers.
    #[must_use]
    pub fn get(&self) -> &GuestSlices<'_> {
        &self.slices
    }
}

impl<'a> From<VolatileSlice<'a>> for GuestSlices<'a> {
    fn from(piece: VolatileSlice<'a>) -> Self {
        let mut slices = Self::default();
        slices.push(piece);
        slices
    }
}

/// `offset + done` as the kernel's signed offset.
fn file_position(offset: u64, done: usize) -> io::Result<i64> {
    offset
        .checked_add(done as u64)
        .and_then(|position| i64::try_from(position).ok())
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// A message of these iovecs and nothing else.
fn message_header(iovecs: *const libc::iovec, count: i32) -> libc::msghdr {
    // SAFETY: all zeros is a valid `msghdr`: no name, no data, no control message.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iovecs.cast_mut();
    message.msg_iovlen = count.unsigned_abs() as usize;
    message
}
