//! io_uring for the requests of one queue.
//!
//! A ring carries out system calls that no seccomp filter sees. So it is made before the filter and then restricts itself to
//! what the filter allows its thread: vectored reads and writes, fsync and fallocate, on descriptors of this process.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue, types};

use super::job::{Job, Step};

/// Kernel threads for what blocks: of files, and of anything else.
const KERNEL_THREADS: [u32; 2] = [8, 8];

/// A request of which the kernel works on the first step.
#[derive(Debug)]
struct Slot {
    job: Job,
    /// Names the buffers until the kernel is done.
    iovecs: Vec<libc::iovec>,
    /// Bytes of the step that are moved.
    done: usize,
}

// SAFETY: the iovecs point into the memory that the job's `HeldSlices` keep mapped, which any thread may use.
unsafe impl Send for Slot {}

/// A ring and its requests. Dropped, it waits for them.
pub struct Ring {
    uring: IoUring,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("in_flight", &self.in_flight()).finish_non_exhaustive()
    }
}

/// A request that came to its end.
pub type Finished = (Job, io::Result<()>);

impl Ring {
    /// For at most `depth` requests at once.
    ///
    /// # Errors
    /// When the kernel has no io_uring that can be restricted (Linux before 5.15), or the process may not use it.
    pub fn new(depth: u16) -> io::Result<Self> {
        let uring = IoUring::builder().setup_r_disabled().build(u32::from(depth))?;
        let submitter = uring.submitter();
        let mut threads = KERNEL_THREADS;
        submitter.register_iowq_max_workers(&mut threads)?;
        let allowed = [opcode::Readv::CODE, opcode::Writev::CODE, opcode::Fsync::CODE, opcode::Fallocate::CODE];
        submitter.register_restrictions(&mut allowed.map(Restriction::sqe_op))?;
        submitter.register_enable_rings()?;
        let slots: Vec<_> = (0..depth).map(|_| None).collect();
        Ok(Self { uring, free: (0..slots.len()).collect(), slots })
    }

    /// Requests that the kernel has.
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Requests that can be begun.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Takes a request in; what is finished at once comes back. Without room it is done on this thread.
    pub fn begin(&mut self, job: Job) -> Option<Finished> {
        let Some(index) = self.free.pop() else {
            let mut job = job;
            let result = job.run();
            return Some((job, result));
        };
        self.go_on(index, Slot { job, iovecs: Vec::new(), done: 0 })
    }

    /// Whether there is something to [`submit`](Self::submit): also the next steps of requests, which `reap` begins.
    pub fn has_unsubmitted(&mut self) -> bool {
        !self.uring.submission().is_empty()
    }

    /// Hands the kernel what was begun.
    ///
    /// # Errors
    /// The kernel took none, and may later.
    pub fn submit(&mut self) -> io::Result<()> {
        if !self.has_unsubmitted() {
            return Ok(());
        }
        match self.uring.submit() {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    /// Waits until the kernel is done with something.
    ///
    /// # Errors
    /// The kernel's; nothing was waited for.
    pub fn wait(&self) -> io::Result<()> {
        match self.uring.submit_and_wait(1) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    /// Takes what the kernel is done with; requests that are finished go to `finished`, others go on.
    pub fn reap(&mut self, finished: &mut impl Extend<Finished>) {
        loop {
            let Some(entry) = self.uring.completion().next() else { return };
            let index = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
            let Some(slot) = self.slots.get_mut(index).and_then(Option::take) else { continue };
            finished.extend(self.take_in(index, slot, entry.result()));
        }
    }

    /// Waits for all requests that the kernel has, and forgets them.
    pub fn drain(&mut self) {
        let mut finished = Vec::new();
        while self.in_flight() > 0 {
            if let Err(error) = self.wait() {
                tracing::error!("cannot wait for a drive's requests, whose memory is kept: {error}");
                std::mem::forget(std::mem::take(&mut self.slots));
                self.free.clear();
                return;
            }
            self.reap(&mut finished);
        }
    }

    /// What the kernel says about a slot's step.
    fn take_in(&mut self, index: usize, mut slot: Slot, result: i32) -> Option<Finished> {
        let Ok(count) = usize::try_from(result) else {
            let error = io::Error::from_raw_os_error(-result);
            if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) {
                return self.go_on(index, slot);
            }
            let Some(other) = slot.job.steps.front().and_then(|step| step.instead(&error)) else {
                return self.end(index, slot, Err(error));
            };
            slot.job.steps.pop_front();
            slot.job.steps.push_front(other);
            return self.go_on(index, slot);
        };
        let is_complete = match slot.job.steps.front() {
            Some(Step::Read { start, len, .. }) if count == 0 => {
                // The file's end.
                slot.job.data.get().range(start + slot.done, len - slot.done).zero();
                true
            }
            Some(Step::Write { .. }) if count == 0 => {
                return self.end(index, slot, Err(io::ErrorKind::WriteZero.into()));
            }
            Some(Step::Read { len, .. } | Step::Write { len, .. }) => {
                slot.done += count;
                slot.done >= *len
            }
            _ => true,
        };
        if is_complete {
            slot.job.steps.pop_front();
            slot.done = 0;
        }
        self.go_on(index, slot)
    }

    /// Begins the next step that is the kernel's, or the rest of one.
    fn go_on(&mut self, index: usize, mut slot: Slot) -> Option<Finished> {
        while let Some(Step::Zero { start, len }) = slot.job.steps.front() {
            slot.job.data.get().range(*start, *len).zero();
            slot.job.steps.pop_front();
        }
        let Some(step) = slot.job.steps.front() else {
            return self.end(index, slot, Ok(()));
        };
        if let Step::Read { start, len, .. } | Step::Write { start, len, .. } = step {
            slot.iovecs = slot.job.data.get().range(start + slot.done, len - slot.done).iovecs();
        }
        let entry = entry(step, &slot.iovecs, slot.done).user_data(index as u64);
        // SAFETY: what the entry points to is good until its completion: the iovecs are the slot's, which stays in `slots`
        // until then; they describe guest memory that the job keeps mapped, and the step keeps its file open. `drop` waits for
        // all completions.
        match unsafe { self.uring.submission().push(&entry) } {
            Ok(()) => {
                self.slots[index] = Some(slot);
                None
            }
            // There are as many entries as slots.
            Err(_) => self.end(index, slot, Err(io::ErrorKind::ResourceBusy.into())),
        }
    }

    fn end(&mut self, index: usize, slot: Slot, result: io::Result<()>) -> Option<Finished> {
        self.free.push(index);
        Some((slot.job, result))
    }
}

/// The entry for a step, from its byte `done` on.
fn entry(step: &Step, iovecs: &[libc::iovec], done: usize) -> squeue::Entry {
    let fd = |file: &std::fs::File| types::Fd(file.as_raw_fd());
    // At most IOV_MAX.
    let count = iovecs.len() as u32;
    match step {
        Step::Read { file, at, .. } => {
            opcode::Readv::new(fd(file), iovecs.as_ptr(), count).offset(at + done as u64).build()
        }
        Step::Write { file, at, .. } => {
            opcode::Writev::new(fd(file), iovecs.as_ptr(), count).offset(at + done as u64).build()
        }
        Step::Sync { file } => opcode::Fsync::new(fd(file)).flags(types::FsyncFlags::DATASYNC).build(),
        Step::Allocate { file, flags, at, len } => {
            opcode::Fallocate::new(fd(file), *len).offset(*at).mode(flags.bits().cast_signed()).build()
        }
        // Never the kernel's.
        Step::Zero { .. } => opcode::Nop::new().build(),
    }
}

impl AsRawFd for Ring {
    /// Readable while there is something to [`reap`](Ring::reap).
    fn as_raw_fd(&self) -> RawFd {
        self.uring.as_raw_fd()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.drain();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_operations_are_refused() {
        let mut ring = match Ring::new(4) {
            Ok(ring) => ring,
            Err(error) => return eprintln!("skipped: io_uring: {error}"),
        };
        let root = c"/".as_ptr();
        let buffer = [0_u8; 8];
        let entries = [
            opcode::Nop::new().build(),
            opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), root).build(),
            opcode::Write::new(types::Fd(1), buffer.as_ptr(), 0).build(),
            opcode::Socket::new(libc::AF_UNIX, libc::SOCK_STREAM, 0).build(),
            opcode::Fsync::new(types::Fd(-1)).build().flags(squeue::Flags::ASYNC),
        ];
        for entry in entries {
            // SAFETY: the path and the buffer outlive the wait below.
            unsafe { ring.uring.submission().push(&entry) }.unwrap();
            ring.uring.submit_and_wait(1).unwrap();
            let result = ring.uring.completion().next().unwrap().result();
            assert_eq!(result, -libc::EACCES, "{entry:?}");
        }
        // One of its own passes the restriction and fails by itself.
        let entry = opcode::Fsync::new(types::Fd(-1)).build();
        // SAFETY: it points to nothing.
        unsafe { ring.uring.submission().push(&entry) }.unwrap();
        ring.uring.submit_and_wait(1).unwrap();
        assert_eq!(ring.uring.completion().next().unwrap().result(), -libc::EBADF);
    }
}
