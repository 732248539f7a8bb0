//! The virtio-blk device.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use virtio_queue::Queue;

use super::job::{Job, Subject};
use super::plan::{MAX_SEGMENT_SECTORS, Plan, respond};
use super::request::{MAX_SEGMENTS, Status};
use super::{BlockBackend, BlockIo, SECTOR};
use crate::devices::limit::LogLimit;
use crate::devices::rate_limiter::{Limits, RateLimiter};
use crate::devices::{BrokenQueue, GuestRam, RING_FEATURES, queue};

/// Virtio device type of a block device.
pub const DEVICE_TYPE: u32 = 2;
/// Descriptors per queue.
pub const QUEUE_SIZE: u16 = 128;

const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
pub(super) const F_FLUSH: u64 = 1 << 9;
const F_MQ: u64 = 1 << 12;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// Data buffers in one request: a queue's descriptors less header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// After a kernel that is short of something.
const RETRY: Duration = Duration::from_millis(1);
/// Bytes of `virtio_blk_config` up to and with the WRITE_ZEROES fields.
const CONFIG_LEN: usize = 60;

/// What a guest sees of a drive beside its bytes.
#[derive(Debug, Clone)]
pub struct BlockConfig {
    /// At most 20 bytes are shown as the drive's serial.
    pub serial: String,
    /// Number of request queues, from 1.
    pub queues: u16,
}

/// Bytes that went through a drive since it was made.
#[derive(Debug, Default)]
pub struct BlockCounters {
    read: AtomicU64,
    written: AtomicU64,
}

impl BlockCounters {
    /// Bytes the guest read.
    #[must_use]
    pub fn read_bytes(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Bytes the guest wrote.
    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

/// What one call of [`BlockDevice::process`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Turn {
    /// The driver wants an interrupt.
    pub notify: bool,
    /// There may be more to do at once.
    pub more: bool,
    /// There may be requests after this time, of which the driver does not notify.
    pub wait: Option<Duration>,
}

/// A virtio block device. Its queues may be processed by different threads at once.
#[derive(Debug)]
pub struct BlockDevice {
    pub(super) backend: Arc<dyn BlockBackend>,
    pub(super) config: BlockConfig,
    counters: Arc<BlockCounters>,
    /// What the driver negotiated; all there is to save and restore beside the queues.
    acked_features: AtomicU64,
    pub(super) limiter: RateLimiter,
    log: Mutex<LogLimit>,
}

impl BlockDevice {
    /// A device over this storage.
    #[must_use]
    pub fn new(backend: Arc<dyn BlockBackend>, config: BlockConfig) -> Self {
        Self {
            backend,
            config,
            counters: Arc::default(),
            acked_features: AtomicU64::new(0),
            limiter: RateLimiter::default(),
            log: Mutex::default(),
        }
    }

    /// Limits bytes and requests of all queues together, from now on.
    pub fn set_limits(&self, limits: Limits) {
        self.limiter.set(limits);
    }

    /// The drive's counters, shared.
    #[must_use]
    pub fn counters(&self) -> Arc<BlockCounters> {
        self.counters.clone()
    }

    /// Number of request queues.
    #[must_use]
    pub fn queues(&self) -> u16 {
        self.config.queues.max(1)
    }

    /// Feature bits offered to the driver.
    #[must_use]
    pub fn features(&self) -> u64 {
        let mut features = RING_FEATURES | F_SEG_MAX | F_BLK_SIZE | F_FLUSH;
        if self.backend.is_read_only() {
            features |= F_RO;
        } else if self.backend.can_discard() {
            features |= F_DISCARD | F_WRITE_ZEROES;
        }
        if self.queues() > 1 {
            features |= F_MQ;
        }
        features
    }

    /// What the driver accepted, also after a restore.
    pub fn set_acked_features(&self, features: u64) {
        self.acked_features.store(features, Ordering::Relaxed);
    }

    /// What the driver accepted.
    #[must_use]
    pub fn acked_features(&self) -> u64 {
        self.acked_features.load(Ordering::Relaxed)
    }

    /// `len` bytes of configuration space from `offset`; zeros past its end.
    #[must_use]
    pub fn read_config(&self, offset: usize, len: usize) -> Vec<u8> {
        let space = self.config_space();
        (0..len).map(|at| offset.checked_add(at).and_then(|at| space.get(at)).copied().unwrap_or(0)).collect()
    }

    /// `struct virtio_blk_config` (5.2.4).
    fn config_space(&self) -> [u8; CONFIG_LEN] {
        let mut space = [0_u8; CONFIG_LEN];
        let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(self.backend.len() / SECTOR).to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        put(34, &self.queues().to_le_bytes());
        if self.backend.can_discard() {
            put(36, &MAX_SEGMENT_SECTORS.to_le_bytes());
            put(40, &(MAX_SEGMENTS as u32).to_le_bytes());
            // Discards smaller than a block of the host's file system free nothing.
            put(44, &(4096 / SECTOR as u32).to_le_bytes());
            put(48, &MAX_SEGMENT_SECTORS.to_le_bytes());
            put(52, &(MAX_SEGMENTS as u32).to_le_bytes());
            put(56, &[1]);
        }
        space
    }

    /// Begins what the driver of a queue has offered, as far as limits and `io` allow, and answers what is done. To be called
    /// when the driver notifies, when [`BlockIo::event`] is readable, and as the [`Turn`] says.
    pub fn process(
        &self,
        ram: &GuestRam,
        requests: &mut Queue,
        index: usize,
        io: &mut BlockIo,
    ) -> Result<Turn, BrokenQueue> {
        let mut turn = Turn::default();
        let mut answered = false;
        // A queue's worth: whoever calls looks at other things in between.
        for _ in 0..QUEUE_SIZE {
            if !io.has_room() {
                break;
            }
            turn.wait = self.limiter.wait_now();
            if turn.wait.is_some() {
                break;
            }
            let Some(chain) = queue::pop(ram, requests, index)? else {
                if queue::enable_notification(ram, requests, index)? {
                    continue;
                }
                break;
            };
            turn.more = true;
            let head = chain.head_index();
            match self.plan(ram, chain) {
                Plan::Answered { written } => {
                    queue::give_back(ram, requests, index, head, written)?;
                    answered = true;
                }
                Plan::Begin(job) => io.begin(job),
            }
        }
        if let Err(error) = io.submit() {
            // Memory or room in the kernel, of which there is more when something is done, and else soon.
            self.complain(&format_args!("the kernel takes no requests now: {error}"));
            turn.wait.get_or_insert(RETRY);
        }
        answered |= self.answer(ram, requests, index, io)?;
        turn.more |= answered || io.has_unsubmitted();
        turn.notify = answered && queue::needs_notification(ram, requests, index)?;
        Ok(turn)
    }

    /// Waits for all requests in flight and answers them. True when the driver wants an interrupt.
    pub fn finish(
        &self,
        ram: &GuestRam,
        requests: &mut Queue,
        index: usize,
        io: &mut BlockIo,
    ) -> Result<bool, BrokenQueue> {
        let mut answered = self.answer(ram, requests, index, io)?;
        while io.in_flight() > 0 {
            if let Err(error) = io.wait() {
                // When it is dropped, it waits again.
                self.complain(&format_args!("cannot wait for requests in flight: {error}"));
                break;
            }
            answered |= self.answer(ram, requests, index, io)?;
        }
        Ok(answered && queue::needs_notification(ram, requests, index)?)
    }

    /// Answers what is done; whether there was something.
    fn answer(
        &self,
        ram: &GuestRam,
        requests: &mut Queue,
        index: usize,
        io: &mut BlockIo,
    ) -> Result<bool, BrokenQueue> {
        io.reap();
        let mut answered = false;
        while let Some((job, result)) = io.take() {
            let written = self.conclude(&job, result);
            queue::give_back(ram, requests, index, job.head, written)?;
            answered = true;
        }
        Ok(answered)
    }

    /// Counts or complains, and writes the status; the bytes written to guest memory.
    fn conclude(&self, job: &Job, result: std::io::Result<()>) -> u32 {
        let data = job.data.get();
        let (status, filled) = match (result, job.subject) {
            (Ok(()), Subject::Read) => {
                self.counters.read.fetch_add(data.len() as u64, Ordering::Relaxed);
                (Status::Ok, data.len())
            }
            (Ok(()), Subject::Write) => {
                self.counters.written.fetch_add(data.len() as u64, Ordering::Relaxed);
                (Status::Ok, 0)
            }
            (Ok(()), Subject::Flush | Subject::DiscardOrZero) => (Status::Ok, 0),
            (Err(error), subject) => {
                let (verb, offset) = (subject.verb(), job.offset);
                self.complain(&format_args!("cannot {verb} {} bytes at {offset}: {error}", data.len()));
                (Status::IoError, 0)
            }
        };
        respond(job.status.get(), status, filled, job.writable)
    }

    pub(super) fn complain(&self, what: &dyn std::fmt::Display) {
        if let Some(suppressed) = self.log.lock().unwrap_or_else(PoisonError::into_inner).allow() {
            tracing::warn!(drive = %self.config.serial, suppressed, "{what}");
        }
    }
}
