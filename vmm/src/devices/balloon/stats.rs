//! What the guest says about its memory (5.5.6.3). Claims, for people to look at.

use crate::devices::slices::GuestSlices;

/// Bytes of one statistic.
const ENTRY: usize = 10;
/// Most that are looked at; Linux sends 16.
const MAX_ENTRIES: usize = 64;

/// The guest's statistics, in bytes or events since its boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Swapped in.
    pub swap_in: Option<u64>,
    /// Swapped out.
    pub swap_out: Option<u64>,
    /// Page faults that needed the disk.
    pub major_faults: Option<u64>,
    /// Other page faults.
    pub minor_faults: Option<u64>,
    /// Unused memory.
    pub free: Option<u64>,
    /// All memory.
    pub total: Option<u64>,
    /// Memory that can be had without swapping.
    pub available: Option<u64>,
    /// Page cache.
    pub caches: Option<u64>,
    /// Times that the guest ran out of memory and killed a process.
    pub oom_kills: Option<u64>,
}

impl Stats {
    /// What a buffer of the driver says; unknown entries and half ones are passed over.
    pub(super) fn read(buffer: &GuestSlices<'_>) -> Self {
        let mut stats = Self::default();
        for at in (0..MAX_ENTRIES).map(|index| index * ENTRY) {
            let mut entry = [0; ENTRY];
            if !buffer.range(at, ENTRY).read_exact(&mut entry) {
                break;
            }
            let (tag, value) = entry.split_at(2);
            let value = value.first_chunk().map(|value| u64::from_le_bytes(*value));
            match tag.first_chunk().map(|tag| u16::from_le_bytes(*tag)) {
                Some(0) => stats.swap_in = value,
                Some(1) => stats.swap_out = value,
                Some(2) => stats.major_faults = value,
                Some(3) => stats.minor_faults = value,
                Some(4) => stats.free = value,
                Some(5) => stats.total = value,
                Some(6) => stats.available = value,
                Some(7) => stats.caches = value,
                Some(10) => stats.oom_kills = value,
                _ => {}
            }
        }
        stats
    }
}
