//! Why processors left the guest, counted.

use std::sync::atomic::{AtomicU64, Ordering};

/// A reason that costs a trip through this process. Others end inside the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitKind {
    /// `in`.
    PortRead,
    /// `out`.
    PortWrite,
    /// A load from a device's registers.
    MmioRead,
    /// A store to a device's registers.
    MmioWrite,
    /// A signal: the processor was to be held up.
    Interrupted,
    /// The guest ended, or cannot go on.
    End,
    /// Any other.
    Other,
}

impl ExitKind {
    /// All, as [`ExitCounters`] has them.
    pub const ALL: [Self; 7] =
        [Self::PortRead, Self::PortWrite, Self::MmioRead, Self::MmioWrite, Self::Interrupted, Self::End, Self::Other];

    /// For statistics: lower case, words joined by `_`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PortRead => "port_read",
            Self::PortWrite => "port_write",
            Self::MmioRead => "mmio_read",
            Self::MmioWrite => "mmio_write",
            Self::Interrupted => "interrupted",
            Self::End => "end",
            Self::Other => "other",
        }
    }
}

/// How often each happened, in the order of [`ExitKind::ALL`].
pub type Exits = [(ExitKind, u64); ExitKind::ALL.len()];

/// Of one processor, since it started.
#[derive(Debug, Default)]
pub struct ExitCounters([AtomicU64; ExitKind::ALL.len()]);

impl ExitCounters {
    /// One more.
    pub fn count(&self, kind: ExitKind) {
        self.0[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// In the order of [`ExitKind::ALL`].
    #[must_use]
    pub fn all(&self) -> Exits {
        ExitKind::ALL.map(|kind| (kind, self.0[kind as usize].load(Ordering::Relaxed)))
    }
}
