//! The virtio-blk device.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use virtio_queue::Queue;

use super::request::{Header, ID_LEN, Kind, MAX_SEGMENTS, Status, read_segments};
use super::{BlockBackend, SECTOR};
use crate::devices::chain::{Buffers, ChainError};
use crate::devices::limit::LogLimit;
use crate::devices::rate_limiter::{Limits, RateLimiter};
use crate::devices::slices::GuestSlices;
use crate::devices::{BrokenQueue, GuestRam, RING_FEATURES, queue};

/// Virtio device type of a block device.
pub const DEVICE_TYPE: u32 = 2;
/// Descriptors per queue.
pub const QUEUE_SIZE: u16 = 128;

const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_MQ: u64 = 1 << 12;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// Data buffers in one request: a queue's descriptors less header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Most data in one request; Linux asks for at most 1280 KiB unless told otherwise.
const MAX_DATA: usize = 64 << 20;
/// Most sectors in one segment of DISCARD or WRITE_ZEROES: 4 GiB.
const MAX_SEGMENT_SECTORS: u32 = 8 << 20;
/// VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP.
const FLAG_UNMAP: u32 = 1;
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

/// What one call of [`BlockDevice::process_next`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The queue is empty, and the driver will notify of the next request.
    Idle,
    /// The limits are reached: there may be requests again after this time, of which the driver does not notify.
    Throttled(Duration),
    /// One request is answered.
    Done {
        /// The driver wants an interrupt.
        notify: bool,
    },
}

/// A virtio block device. Its queues may be processed by different threads at once.
#[derive(Debug)]
pub struct BlockDevice {
    backend: Arc<dyn BlockBackend>,
    config: BlockConfig,
    counters: Arc<BlockCounters>,
    /// What the driver negotiated; all there is to save and restore beside the queues.
    acked_features: AtomicU64,
    limiter: RateLimiter,
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

    /// Limits bytes and requests of all queues together, from now on. Only a transport that waits when it is told to may
    /// serve the device then.
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

    /// Answers the next request of a queue. I/O happens on the calling thread.
    pub fn process_next(&self, ram: &GuestRam, requests: &mut Queue, index: usize) -> Result<Progress, BrokenQueue> {
        if let Some(wait) = self.limiter.wait(Instant::now()) {
            return Ok(Progress::Throttled(wait));
        }
        let chain = loop {
            if let Some(chain) = queue::pop(ram, requests, index)? {
                break chain;
            }
            if !queue::enable_notification(ram, requests, index)? {
                return Ok(Progress::Idle);
            }
        };
        let head = chain.head_index();
        let written = match Buffers::parse(ram, chain) {
            Ok(buffers) => self.answer(&buffers),
            Err(error) => {
                self.complain(&error);
                0
            }
        };
        queue::give_back(ram, requests, index, head, written)?;
        Ok(Progress::Done { notify: queue::needs_notification(ram, requests, index)? })
    }

    /// Executes one request; the bytes written to guest memory.
    fn answer(&self, buffers: &Buffers<'_>) -> u32 {
        let Some(data_len) = buffers.writable.len().checked_sub(1) else {
            // Without room for a status there is no way to answer.
            self.complain(&ChainError::Empty);
            return 0;
        };
        self.limiter.charge(data_len.max(buffers.readable.len()).min(MAX_DATA) as u64);
        let data_in = buffers.writable.range(0, data_len);
        let status_byte = buffers.writable.range(data_len, 1);
        let (status, filled) = match Header::read(&buffers.readable) {
            Some(header) => {
                let data_out = buffers.readable.range(super::request::HEADER_LEN, usize::MAX);
                self.execute(header, &data_in, &data_out)
            }
            None => (Status::IoError, 0),
        };
        if !status_byte.write_all(&[status as u8]) {
            return 0;
        }
        // The status byte lies behind the data, so what a failed read left untouched counts as not written.
        if filled == data_len {
            u32::try_from(filled + 1).unwrap_or(u32::MAX)
        } else {
            u32::try_from(filled).unwrap_or(0).max(1)
        }
    }

    fn execute(&self, header: Header, data_in: &GuestSlices<'_>, data_out: &GuestSlices<'_>) -> (Status, usize) {
        match header.kind {
            Kind::Read => self.read(header.sector, data_in),
            Kind::Write => (self.write(header.sector, data_out), 0),
            Kind::Flush => (status_of(self.backend.flush()), 0),
            Kind::GetId => self.get_id(data_in),
            Kind::Discard | Kind::WriteZeroes => (self.zero_segments(header.kind, data_out), 0),
            Kind::Unknown(_) => (Status::Unsupported, 0),
        }
    }

    fn read(&self, sector: u64, data: &GuestSlices<'_>) -> (Status, usize) {
        let Some(offset) = self.byte_range(sector, data.len()) else {
            return (Status::IoError, 0);
        };
        match self.backend.read_at(data, offset) {
            Ok(()) => {
                self.counters.read.fetch_add(data.len() as u64, Ordering::Relaxed);
                (Status::Ok, data.len())
            }
            Err(error) => {
                self.complain_io("read", offset, data.len(), &error);
                (Status::IoError, 0)
            }
        }
    }

    fn write(&self, sector: u64, data: &GuestSlices<'_>) -> Status {
        if self.backend.is_read_only() {
            return Status::IoError;
        }
        let Some(offset) = self.byte_range(sector, data.len()) else {
            return Status::IoError;
        };
        let mut result = self.backend.write_at(data, offset);
        // A driver that cannot flush expects writes to be durable when they are answered (5.2.6.2).
        if result.is_ok() && self.acked_features() & F_FLUSH == 0 {
            result = self.backend.flush();
        }
        match result {
            Ok(()) => {
                self.counters.written.fetch_add(data.len() as u64, Ordering::Relaxed);
                Status::Ok
            }
            Err(error) => {
                self.complain_io("write", offset, data.len(), &error);
                Status::IoError
            }
        }
    }

    fn get_id(&self, data: &GuestSlices<'_>) -> (Status, usize) {
        let mut id = [0_u8; ID_LEN];
        for (to, from) in id.iter_mut().zip(self.config.serial.bytes()) {
            *to = from;
        }
        match data.write_all(&id) {
            true => (Status::Ok, ID_LEN),
            false => (Status::IoError, 0),
        }
    }

    fn zero_segments(&self, kind: Kind, data: &GuestSlices<'_>) -> Status {
        if self.backend.is_read_only() || !self.backend.can_discard() {
            return Status::Unsupported;
        }
        let Some(segments) = read_segments(data) else {
            return Status::IoError;
        };
        let allowed_flags = if kind == Kind::WriteZeroes { FLAG_UNMAP } else { 0 };
        for segment in &segments {
            if segment.flags & !allowed_flags != 0 {
                return Status::Unsupported;
            }
        }
        for segment in segments {
            let len = u64::from(segment.sectors) * SECTOR;
            let in_range = segment.sectors <= MAX_SEGMENT_SECTORS && segment.sectors > 0;
            let Some(offset) = self.offset_of(segment.sector, len).filter(|_| in_range) else {
                return Status::IoError;
            };
            let result = match kind {
                Kind::WriteZeroes => self.backend.write_zeroes(offset, len, segment.flags & FLAG_UNMAP != 0),
                _ => self.backend.discard(offset, len),
            };
            if let Err(error) = result {
                self.complain_io("discard or zero", offset, segment.sectors as usize * SECTOR as usize, &error);
                return Status::IoError;
            }
        }
        Status::Ok
    }

    /// The first byte of a request's data, when it is whole sectors, not too much, and inside the drive.
    fn byte_range(&self, sector: u64, len: usize) -> Option<u64> {
        if len == 0 || len > MAX_DATA || !(len as u64).is_multiple_of(SECTOR) {
            return None;
        }
        self.offset_of(sector, len as u64)
    }

    fn offset_of(&self, sector: u64, len: u64) -> Option<u64> {
        let offset = sector.checked_mul(SECTOR)?;
        (offset.checked_add(len)? <= self.backend.len()).then_some(offset)
    }

    fn complain(&self, error: &ChainError) {
        if let Some(suppressed) = self.allow_log() {
            tracing::warn!(drive = %self.config.serial, suppressed, "dropped a block request of the guest: {error}");
        }
    }

    fn complain_io(&self, verb: &str, offset: u64, len: usize, error: &std::io::Error) {
        if let Some(suppressed) = self.allow_log() {
            tracing::warn!(drive = %self.config.serial, suppressed, "cannot {verb} {len} bytes at {offset}: {error}");
        }
    }

    fn allow_log(&self) -> Option<u64> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).allow()
    }
}

fn status_of(result: std::io::Result<()>) -> Status {
    if result.is_ok() { Status::Ok } else { Status::IoError }
}
