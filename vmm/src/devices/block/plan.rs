//! What a request comes to, after it is checked.

use std::collections::VecDeque;

use virtio_queue::DescriptorChain;

use super::device::F_FLUSH;
use super::job::{Job, PUNCH_HOLE, Step, Subject, ZERO_RANGE};
use super::request::{HEADER_LEN, Header, ID_LEN, Kind, Status, read_segments};
use super::{BlockDevice, Place, SECTOR};
use crate::devices::GuestRam;
use crate::devices::chain::{Buffers, ChainError};
use crate::devices::slices::GuestSlices;

/// Most data in one request; Linux asks for at most 1280 KiB unless told otherwise.
const MAX_DATA: usize = 64 << 20;
/// Most sectors in one segment of DISCARD or WRITE_ZEROES: 4 GiB.
pub const MAX_SEGMENT_SECTORS: u32 = 8 << 20;
/// VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP.
const FLAG_UNMAP: u32 = 1;

/// What becomes of a chain.
#[derive(Debug)]
pub enum Plan {
    /// It is given back with so many bytes written.
    Answered { written: u32 },
    /// There is something to do first.
    Begin(Job),
}

/// What becomes of a request that can be answered.
enum Outcome<'a> {
    /// A status, and bytes of data that were filled.
    Now(Status, usize),
    Later {
        subject: Subject,
        offset: u64,
        steps: VecDeque<Step>,
        data: &'a GuestSlices<'a>,
    },
}

const FAILED: Outcome<'static> = Outcome::Now(Status::IoError, 0);

impl BlockDevice {
    /// Checks a chain. Only what is answered at once is written to.
    pub(super) fn plan(&self, ram: &GuestRam, chain: DescriptorChain<&GuestRam>) -> Plan {
        let head = chain.head_index();
        let dropped = |error: ChainError| {
            self.complain(&format_args!("dropped a block request of the guest: {error}"));
            Plan::Answered { written: 0 }
        };
        let buffers = match Buffers::parse(ram, chain) {
            Ok(buffers) => buffers,
            Err(error) => return dropped(error),
        };
        let Some(writable) = buffers.writable.len().checked_sub(1) else {
            // Without room for a status there is no way to answer.
            return dropped(ChainError::Empty);
        };
        self.limiter.charge(writable.max(buffers.readable.len()).min(MAX_DATA) as u64);
        let (data_in, status_byte) = (buffers.writable.range(0, writable), buffers.writable.range(writable, 1));
        let data_out = buffers.readable.range(HEADER_LEN, usize::MAX);
        let outcome = match Header::read(&buffers.readable) {
            Some(header) => self.outcome(header, &data_in, &data_out),
            None => FAILED,
        };
        match outcome {
            Outcome::Now(status, filled) => Plan::Answered { written: respond(&status_byte, status, filled, writable) },
            Outcome::Later { subject, offset, steps, data } => match (data.hold(ram), status_byte.hold(ram)) {
                (Some(data), Some(status)) => Plan::Begin(Job { head, subject, offset, steps, data, status, writable }),
                _ => Plan::Answered { written: respond(&status_byte, Status::IoError, 0, writable) },
            },
        }
    }

    fn outcome<'a>(&self, header: Header, data_in: &'a GuestSlices<'a>, data_out: &'a GuestSlices<'a>) -> Outcome<'a> {
        match header.kind {
            Kind::Read => self.read(header.sector, data_in),
            Kind::Write => self.write(header.sector, data_out),
            Kind::Flush => self.flush(data_out),
            Kind::GetId => self.get_id(data_in),
            Kind::Discard | Kind::WriteZeroes => self.zero_segments(header.kind, data_out),
            Kind::Unknown(_) => Outcome::Now(Status::Unsupported, 0),
        }
    }

    fn read<'a>(&self, sector: u64, data: &'a GuestSlices<'a>) -> Outcome<'a> {
        let Some(offset) = self.byte_range(sector, data.len()) else { return FAILED };
        let step = |place, start, len| match place {
            Place::File { file, at, .. } => Step::Read { file, at, start, len },
            Place::Hole { .. } => Step::Zero { start, len },
        };
        match self.steps(offset, data.len(), step) {
            Some(steps) => Outcome::Later { subject: Subject::Read, offset, steps, data },
            None => FAILED,
        }
    }

    fn write<'a>(&self, sector: u64, data: &'a GuestSlices<'a>) -> Outcome<'a> {
        if self.backend.is_read_only() {
            return FAILED;
        }
        let Some(offset) = self.byte_range(sector, data.len()) else { return FAILED };
        let step = |place, start, len| match place {
            Place::File { file, at, .. } => Some(Step::Write { file, at, start, len }),
            // Nothing to write to.
            Place::Hole { .. } => None,
        };
        let steps = self.steps(offset, data.len(), step).and_then(|steps| steps.into_iter().collect());
        let Some(mut steps): Option<VecDeque<Step>> = steps else { return FAILED };
        // A driver that cannot flush expects writes to be durable when they are answered (5.2.6.2).
        if self.acked_features() & F_FLUSH == 0 {
            steps.extend(self.backend.to_sync().map(|file| Step::Sync { file }));
        }
        Outcome::Later { subject: Subject::Write, offset, steps, data }
    }

    fn flush<'a>(&self, data: &'a GuestSlices<'a>) -> Outcome<'a> {
        match self.backend.to_sync() {
            Some(file) => {
                let steps = [Step::Sync { file }].into();
                Outcome::Later { subject: Subject::Flush, offset: 0, steps, data }
            }
            None => Outcome::Now(Status::Ok, 0),
        }
    }

    fn get_id(&self, data: &GuestSlices<'_>) -> Outcome<'static> {
        let mut id = [0_u8; ID_LEN];
        for (to, from) in id.iter_mut().zip(self.config.serial.bytes()) {
            *to = from;
        }
        if data.write_all(&id) { Outcome::Now(Status::Ok, ID_LEN) } else { FAILED }
    }

    fn zero_segments<'a>(&self, kind: Kind, data: &'a GuestSlices<'a>) -> Outcome<'a> {
        let unsupported = Outcome::Now(Status::Unsupported, 0);
        if self.backend.is_read_only() || !self.backend.can_discard() {
            return unsupported;
        }
        let Some(segments) = read_segments(data) else { return FAILED };
        let allowed_flags = if kind == Kind::WriteZeroes { FLAG_UNMAP } else { 0 };
        if segments.iter().any(|segment| segment.flags & !allowed_flags != 0) {
            return unsupported;
        }
        let mut steps = VecDeque::new();
        let mut first = None;
        for segment in segments {
            let len = u64::from(segment.sectors) * SECTOR;
            let in_range = segment.sectors <= MAX_SEGMENT_SECTORS && segment.sectors > 0;
            let Some(offset) = self.offset_of(segment.sector, len).filter(|_| in_range) else { return FAILED };
            first = first.or(Some(offset));
            let keeps_space = kind == Kind::WriteZeroes && segment.flags & FLAG_UNMAP == 0;
            let flags = if keeps_space { ZERO_RANGE } else { PUNCH_HOLE };
            match self.backend.locate(offset) {
                Place::File { file, at, len: there } if there >= len => {
                    steps.push_back(Step::Allocate { file, flags, at, len });
                }
                // A drive of several files is read-only.
                Place::File { .. } | Place::Hole { .. } => return FAILED,
            }
        }
        Outcome::Later { subject: Subject::DiscardOrZero, offset: first.unwrap_or(0), steps, data }
    }

    /// One step for each piece of what lies at `offset`; `None` where the drive ends before.
    fn steps<T>(&self, offset: u64, len: usize, step: impl Fn(Place, usize, usize) -> T) -> Option<VecDeque<T>> {
        let mut steps = VecDeque::new();
        let mut done = 0;
        while done < len {
            let place = self.backend.locate(offset.checked_add(done as u64)?);
            let take = usize::try_from(place.len()).unwrap_or(usize::MAX).min(len - done);
            if take == 0 {
                return None;
            }
            steps.push_back(step(place, done, take));
            done += take;
        }
        Some(steps)
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
}

/// Writes the status behind `filled` of `writable` bytes of data; the bytes to report as written.
pub fn respond(status_byte: &GuestSlices<'_>, status: Status, filled: usize, writable: usize) -> u32 {
    if !status_byte.write_all(&[status as u8]) {
        return 0;
    }
    // The status byte lies behind the data, so what a failed read left untouched counts as not written.
    if filled == writable {
        u32::try_from(filled + 1).unwrap_or(u32::MAX)
    } else {
        u32::try_from(filled).unwrap_or(0).max(1)
    }
}
