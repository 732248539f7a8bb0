//! Feature bits (5.5.3), and which queue is which.

use crate::devices::RING_FEATURES;

pub const STATS_VQ: u64 = 1 << 1;
pub const DEFLATE_ON_OOM: u64 = 1 << 2;
pub const PAGE_POISON: u64 = 1 << 4;
pub const REPORTING: u64 = 1 << 5;

/// What is always offered.
pub const OFFERED: u64 = RING_FEATURES | STATS_VQ | PAGE_POISON | REPORTING;

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Pages that the guest gives.
    Inflate,
    /// Pages that it takes back.
    Deflate,
    /// Statistics.
    Stats,
    /// Ranges that are free for now.
    Reporting,
}

impl Role {
    /// The roles of the queues, by their index: those of features that the driver did not accept are left out.
    #[must_use]
    pub fn of_queues(features: u64) -> Vec<Self> {
        let mut roles = vec![Self::Inflate, Self::Deflate];
        if features & STATS_VQ != 0 {
            roles.push(Self::Stats);
        }
        if features & REPORTING != 0 {
            roles.push(Self::Reporting);
        }
        roles
    }
}
