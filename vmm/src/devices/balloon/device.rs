//! The virtio-balloon device: its size, and what its queues share with the control side.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::features::{DEFLATE_ON_OOM, OFFERED};
use super::{Held, Stats};
use crate::devices::limit::LogLimit;
use crate::devices::virtio::Interrupt;
use crate::devices::worker::new_eventfd;
use crate::state::BalloonState;

/// Bytes of `virtio_balloon_config`.
const CONFIG_LEN: usize = 16;
const ACTUAL_OFFSET: usize = 4;
const POISON_OFFSET: usize = 12;

/// What the balloon did since it was made, in bytes.
#[derive(Debug, Default)]
pub struct BalloonCounters {
    /// Freed because the guest gave the pages.
    pub inflated: AtomicU64,
    /// Freed because the guest reported the ranges as unused.
    pub reported: AtomicU64,
}

/// A balloon. Shared by the thread that serves its queues and those that set its size.
#[derive(Debug)]
pub struct BalloonDevice {
    target: AtomicU32,
    actual: AtomicU32,
    /// What the guest fills free pages with; its own business as long as that is zero.
    poison: AtomicU32,
    acked_features: AtomicU64,
    deflate_on_oom: bool,
    stats: Mutex<Option<Stats>>,
    stats_wanted: AtomicBool,
    pub(super) stats_asked: EventFd,
    pub(super) counters: BalloonCounters,
    interrupt: Mutex<Option<Arc<dyn Interrupt>>>,
    log: Mutex<LogLimit>,
}

impl BalloonDevice {
    /// An empty balloon that wants to stay so.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            target: AtomicU32::new(0),
            actual: AtomicU32::new(0),
            poison: AtomicU32::new(0),
            acked_features: AtomicU64::new(0),
            deflate_on_oom: false,
            stats: Mutex::default(),
            stats_wanted: AtomicBool::new(false),
            stats_asked: new_eventfd()?,
            counters: BalloonCounters::default(),
            interrupt: Mutex::default(),
            log: Mutex::default(),
        })
    }

    /// Whether a guest that runs out of memory may take back what the balloon holds (VIRTIO_BALLOON_F_DEFLATE_ON_OOM). Without,
    /// what the balloon holds is not the guest's any more, and its MemTotal says so.
    #[must_use]
    pub fn with_deflate_on_oom(self, deflate_on_oom: bool) -> Self {
        Self { deflate_on_oom, ..self }
    }

    /// Feature bits offered to the driver.
    #[must_use]
    pub fn features(&self) -> u64 {
        if self.deflate_on_oom { OFFERED | DEFLATE_ON_OOM } else { OFFERED }
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

    pub(super) fn set_interrupt(&self, interrupt: Option<Arc<dyn Interrupt>>) {
        *self.interrupt.lock().unwrap_or_else(PoisonError::into_inner) = interrupt;
    }

    /// `len` bytes of configuration space from `offset`; zeros past its end.
    #[must_use]
    pub fn read_config(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut space = [0_u8; CONFIG_LEN];
        let fields = [(0, &self.target), (ACTUAL_OFFSET, &self.actual), (POISON_OFFSET, &self.poison)];
        for (at, field) in fields {
            space[at..at + 4].copy_from_slice(&field.load(Ordering::Relaxed).to_le_bytes());
        }
        (0..len).map(|at| offset.checked_add(at).and_then(|at| space.get(at)).copied().unwrap_or(0)).collect()
    }

    /// The driver writes `actual` and `poison_val`, whole; all else is dropped.
    pub fn write_config(&self, offset: usize, bytes: &[u8]) {
        let Some(value) = bytes.first_chunk().filter(|_| bytes.len() == 4).map(|bytes| u32::from_le_bytes(*bytes))
        else {
            return;
        };
        match offset {
            ACTUAL_OFFSET => self.actual.store(value, Ordering::Relaxed),
            POISON_OFFSET => self.poison.store(value, Ordering::Relaxed),
            _ => {}
        }
    }

    /// Its size, for a snapshot; `held` is what its queues hold.
    #[must_use]
    pub fn state(&self, held: Held) -> BalloonState {
        let load = |field: &AtomicU32| field.load(Ordering::Relaxed);
        let (target, actual, poison) = (load(&self.target), load(&self.actual), load(&self.poison));
        BalloonState { target, actual, poison, stats_head: held.head() }
    }

    /// As it was in a snapshot.
    pub fn set_state(&self, state: &BalloonState) {
        self.target.store(state.target, Ordering::Relaxed);
        self.actual.store(state.actual, Ordering::Relaxed);
        self.poison.store(state.poison, Ordering::Relaxed);
    }

    /// Whether a page that was freed looks to the guest as it left it.
    pub(super) fn may_free_reported(&self) -> bool {
        self.poison.load(Ordering::Relaxed) == 0
    }

    pub(super) fn set_stats(&self, stats: Stats) {
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner) = Some(stats);
    }

    pub(super) fn take_stats_wanted(&self) -> bool {
        self.stats_wanted.swap(false, Ordering::Relaxed)
    }

    /// The driver was reset. The target stays.
    pub fn reset(&self) {
        self.set_interrupt(None);
        self.acked_features.store(0, Ordering::Relaxed);
        self.actual.store(0, Ordering::Relaxed);
        self.poison.store(0, Ordering::Relaxed);
    }

    pub(super) fn complain(&self, what: &str, why: impl std::fmt::Display) {
        if let Some(suppressed) = self.log.lock().unwrap_or_else(PoisonError::into_inner).allow() {
            tracing::warn!(suppressed, "balloon: dropped {what} of the guest: {why}");
        }
    }
}

/// Sets the balloon's size from any thread.
#[derive(Debug, Clone)]
pub struct BalloonHandle(pub(super) Arc<BalloonDevice>);

impl BalloonHandle {
    /// Asks the guest for so many pages of 4 KiB; fewer than before give some back. The guest does what it can.
    pub fn set_target(&self, pages: u32) {
        if self.0.target.swap(pages, Ordering::Relaxed) == pages {
            return;
        }
        let interrupt = self.0.interrupt.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(interrupt) = interrupt {
            interrupt.config();
        }
    }

    /// Pages that the guest was asked for.
    #[must_use]
    pub fn target(&self) -> u32 {
        self.0.target.load(Ordering::Relaxed)
    }

    /// Pages that it says it has given.
    #[must_use]
    pub fn actual(&self) -> u32 {
        self.0.actual.load(Ordering::Relaxed)
    }

    /// What the guest last said about its memory.
    #[must_use]
    pub fn stats(&self) -> Option<Stats> {
        *self.0.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for new statistics; they appear in `stats` later, if the guest answers.
    pub fn request_stats(&self) {
        self.0.stats_wanted.store(true, Ordering::Relaxed);
        // Fails only when its counter is full, and then it is readable anyway.
        let _ = self.0.stats_asked.write(1);
    }

    /// What the balloon did.
    #[must_use]
    pub fn counters(&self) -> &BalloonCounters {
        &self.0.counters
    }
}
