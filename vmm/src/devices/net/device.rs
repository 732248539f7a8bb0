//! The virtio-net device: what its queues share, and one pair of queues.

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::features::{self, tap_offloads};
use super::{HEADER_LEN, MAX_FRAME, NetBackend};
use crate::devices::limit::LogLimit;
use crate::devices::rate_limiter::{Limits, RateLimiter};
use crate::state::NetState;

/// VIRTIO_NET_S_LINK_UP.
const LINK_UP: u16 = 1;
/// Bytes of `virtio_net_config` up to and with the MTU.
const CONFIG_LEN: usize = 12;

/// What a guest sees of its network device beside the frames.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// For logs and thread names; at most 9 bytes show.
    pub name: String,
    /// Without it the driver chooses one.
    pub mac: Option<[u8; 6]>,
    /// The greatest MTU the driver may use; without it the driver begins with 1500.
    pub mtu: Option<u16>,
    /// To the guest.
    pub rx_limits: Limits,
    /// From the guest.
    pub tx_limits: Limits,
}

/// Frames that went through a device since it was made. Bytes are without the virtio header.
#[derive(Debug, Default)]
pub struct NetCounters {
    /// Bytes that reached the guest.
    pub rx_bytes: AtomicU64,
    /// Frames that reached the guest.
    pub rx_frames: AtomicU64,
    /// Frames for the guest that had no place in its buffers.
    pub rx_dropped: AtomicU64,
    /// Bytes that the guest sent.
    pub tx_bytes: AtomicU64,
    /// Frames that the guest sent.
    pub tx_frames: AtomicU64,
    /// Frames of the guest that were malformed or refused by the kernel.
    pub tx_dropped: AtomicU64,
}

impl NetCounters {
    pub(super) fn add(counter: &AtomicU64, amount: usize) {
        counter.fetch_add(amount as u64, Ordering::Relaxed);
    }
}

/// A network device. Its pairs may be served by different threads at once.
#[derive(Debug)]
pub struct NetDevice {
    pub(super) config: NetConfig,
    pub(super) backends: Vec<Box<dyn NetBackend>>,
    pub(super) rx_limit: RateLimiter,
    pub(super) tx_limit: RateLimiter,
    pub(super) counters: Arc<NetCounters>,
    mac: Mutex<Option<[u8; 6]>>,
    link_up: AtomicBool,
    acked_features: AtomicU64,
    /// GUEST_* features that are switched on.
    offloads: AtomicU64,
    /// Pairs that the driver uses.
    active_pairs: AtomicU16,
    log: Mutex<LogLimit>,
}

impl NetDevice {
    /// A device with one queue pair for each backend, of which there is at least one.
    #[must_use]
    pub fn new(backends: Vec<Box<dyn NetBackend>>, config: NetConfig) -> Self {
        Self {
            rx_limit: RateLimiter::new(config.rx_limits),
            tx_limit: RateLimiter::new(config.tx_limits),
            mac: Mutex::new(config.mac),
            config,
            backends,
            counters: Arc::default(),
            link_up: AtomicBool::new(true),
            acked_features: AtomicU64::new(0),
            offloads: AtomicU64::new(0),
            active_pairs: AtomicU16::new(1),
            log: Mutex::default(),
        }
    }

    /// The device's counters, shared.
    #[must_use]
    pub fn counters(&self) -> Arc<NetCounters> {
        self.counters.clone()
    }

    /// Queue pairs, from 1.
    #[must_use]
    pub fn pairs(&self) -> u16 {
        u16::try_from(self.backends.len()).unwrap_or(u16::MAX).max(1)
    }

    /// Pairs that the driver uses.
    #[must_use]
    pub fn active_pairs(&self) -> u16 {
        self.active_pairs.load(Ordering::Relaxed)
    }

    /// Index of the control queue with these features.
    #[must_use]
    pub fn control_queue(&self, features: u64) -> usize {
        if features & features::MQ == 0 { 2 } else { usize::from(self.pairs()) * 2 }
    }

    /// Feature bits offered to the driver.
    #[must_use]
    pub fn features(&self) -> u64 {
        let mut offered = features::BASE;
        if self.config.mac.is_some() {
            offered |= features::MAC;
        }
        if self.config.mtu.is_some() {
            offered |= features::MTU;
        }
        if self.pairs() > 1 {
            offered |= features::MQ;
        }
        if self.backends.iter().all(|backend| backend.segments_udp()) {
            offered |= features::USO;
        }
        offered
    }

    /// What the driver accepted. Switches the backends to it, and to one queue pair (5.1.6.5.5).
    ///
    /// # Errors
    /// When a backend refuses.
    pub fn set_acked_features(&self, features: u64) -> std::io::Result<()> {
        self.acked_features.store(features, Ordering::Relaxed);
        self.set_offloads(features)?;
        self.set_active_pairs(1)
    }

    /// What the driver accepted.
    #[must_use]
    pub fn acked_features(&self) -> u64 {
        self.acked_features.load(Ordering::Relaxed)
    }

    pub(super) fn accepted(&self, bits: u64) -> bool {
        self.acked_features() & bits != 0
    }

    pub(super) fn set_offloads(&self, offloads: u64) -> std::io::Result<()> {
        let flags = tap_offloads(offloads);
        self.backends.iter().try_for_each(|backend| backend.set_offloads(flags))?;
        self.offloads.store(offloads & features::GUEST_OFFLOADS, Ordering::Relaxed);
        Ok(())
    }

    /// One for each queue pair.
    #[must_use]
    pub fn backends(&self) -> &[Box<dyn NetBackend>] {
        &self.backends
    }

    /// Steers flows to the first `pairs` backends only.
    ///
    /// # Errors
    /// When a backend refuses.
    pub fn set_active_pairs(&self, pairs: u16) -> std::io::Result<()> {
        if self.backends.len() > 1 {
            for (index, backend) in self.backends.iter().enumerate() {
                match backend.set_attached(index < usize::from(pairs)) {
                    // Attached, or detached, already.
                    Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                    other => other?,
                }
            }
        }
        self.active_pairs.store(pairs, Ordering::Relaxed);
        Ok(())
    }

    /// What the driver told, for a snapshot.
    #[must_use]
    pub fn state(&self) -> NetState {
        let offloads = self.offloads.load(Ordering::Relaxed);
        NetState { mac: self.mac(), active_pairs: self.active_pairs(), offloads }
    }

    /// Goes on with what the driver told another device; its features are accepted already.
    ///
    /// # Errors
    /// When a backend refuses, or the driver could not have told that.
    pub fn set_state(&self, state: &NetState) -> std::io::Result<()> {
        if !(1..=self.pairs()).contains(&state.active_pairs) || state.offloads & !self.acked_features() != 0 {
            return Err(std::io::ErrorKind::InvalidInput.into());
        }
        *self.mac.lock().unwrap_or_else(PoisonError::into_inner) = state.mac;
        self.set_offloads(state.offloads)?;
        self.set_active_pairs(state.active_pairs)
    }

    pub(super) fn set_mac(&self, mac: [u8; 6]) {
        *self.mac.lock().unwrap_or_else(PoisonError::into_inner) = Some(mac);
    }

    /// The MAC address as the driver last set it.
    #[must_use]
    pub fn mac(&self) -> Option<[u8; 6]> {
        *self.mac.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Plugs the cable in or pulls it. The caller then interrupts for the changed configuration space.
    pub fn set_link(&self, up: bool) {
        self.link_up.store(up, Ordering::Relaxed);
    }

    /// Replaces the limits; those of the queues that wait are looked at again when their wait is over.
    pub fn set_limits(&self, rx: Limits, tx: Limits) {
        self.rx_limit.set(rx);
        self.tx_limit.set(tx);
    }

    /// `len` bytes of configuration space from `offset`; zeros past its end.
    #[must_use]
    pub fn read_config(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut space = [0_u8; CONFIG_LEN];
        let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.mac().unwrap_or_default());
        let status = if self.link_up.load(Ordering::Relaxed) { LINK_UP } else { 0 };
        put(6, &status.to_le_bytes());
        put(8, &self.pairs().to_le_bytes());
        put(10, &self.config.mtu.unwrap_or_default().to_le_bytes());
        (0..len).map(|at| offset.checked_add(at).and_then(|at| space.get(at)).copied().unwrap_or(0)).collect()
    }

    /// The driver was reset.
    pub fn reset(&self) {
        if let Err(error) = self.set_acked_features(0) {
            tracing::warn!(device = self.config.name, "cannot switch off the offloads of the tap device: {error}");
        }
        *self.mac.lock().unwrap_or_else(PoisonError::into_inner) = self.config.mac;
    }

    pub(super) fn complain(&self, what: &str, why: impl std::fmt::Display) {
        if let Some(suppressed) = self.log.lock().unwrap_or_else(PoisonError::into_inner).allow() {
            tracing::warn!(device = self.config.name, suppressed, "dropped {what}: {why}");
        }
    }
}

/// What a queue waits for after a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Nothing: its share of the thread's time is used up, and there is more to do.
    Nothing,
    /// The driver's notification.
    Driver,
    /// The backend: to be readable, or writable.
    Backend,
    /// The rate limiter.
    Time(Duration),
}

/// What a turn did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// The driver wants an interrupt.
    pub notify: bool,
    /// When the next turn makes sense.
    pub wait: Wait,
}

/// One pair of queues and what they hold on the host.
#[derive(Debug)]
pub struct NetPair {
    pub(super) device: Arc<NetDevice>,
    pub(super) index: u16,
    /// Takes what does not fit in the guest's buffers.
    pub(super) overflow: Vec<u8>,
    /// A frame that was received before there were buffers for it.
    pub(super) pending: Vec<u8>,
    /// Small frames to come before no large one is expected.
    pub(super) large_expected: u8,
}

impl NetPair {
    /// Pair `index` of the device.
    #[must_use]
    pub fn new(device: Arc<NetDevice>, index: u16) -> Self {
        Self { device, index, overflow: vec![0; HEADER_LEN + MAX_FRAME + 1], pending: Vec::new(), large_expected: 0 }
    }

    /// Index of the queue that carries frames to the guest.
    #[must_use]
    pub fn rx_queue(&self) -> usize {
        usize::from(self.index) * 2
    }

    /// Index of the queue that carries frames from the guest.
    #[must_use]
    pub fn tx_queue(&self) -> usize {
        self.rx_queue() + 1
    }

    pub(super) fn backend(&self) -> &dyn NetBackend {
        self.device.backends[usize::from(self.index)].as_ref()
    }
}
