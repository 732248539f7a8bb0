//! Token buckets: how many bytes and operations a device may move.
//!
//! A bucket starts full, fills evenly, and may go into debt by one operation, so that one larger than the bucket passes too.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bulkhead_proto::launch::RateLimit;
use rustix::event::Timespec;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime};

/// Shortest wait before another try: what a host's timers and threads can keep.
const MIN_WAIT: Duration = Duration::from_millis(1);

/// So much in such a time. Either of them zero stands for no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Bytes or operations; also the most that can be saved up.
    pub amount: u64,
    /// The time in which an empty bucket becomes full.
    pub period: Duration,
}

impl Limit {
    /// So many a second in the long run, of which `burst` may be saved up; a burst of zero stands for a second's worth, a rate
    /// of zero for no limit.
    #[must_use]
    pub fn per_second(rate: u64, burst: u64) -> Option<Self> {
        let amount = if burst == 0 { rate } else { burst };
        let nanos = (u128::from(amount) * 1_000_000_000).checked_div(u128::from(rate))?;
        // What is more than a token each nanosecond is no limit that could be kept.
        let period = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX).max(1));
        Some(Self { amount, period })
    }
}

/// The limits of one direction of a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes.
    pub bytes: Option<Limit>,
    /// Frames or requests.
    pub operations: Option<Limit>,
}

impl From<RateLimit> for Limits {
    fn from(limit: RateLimit) -> Self {
        Self {
            bytes: Limit::per_second(limit.bytes_per_second, limit.bytes_burst),
            operations: Limit::per_second(limit.operations_per_second, limit.operations_burst),
        }
    }
}

#[derive(Debug)]
struct Bucket {
    limit: Limit,
    balance: i128,
    /// Up to when the balance has been filled.
    filled: Instant,
}

impl Bucket {
    fn new(limit: Limit, now: Instant) -> Option<Self> {
        let unlimited = limit.amount == 0 || limit.period.is_zero();
        (!unlimited).then(|| Self { limit, balance: i128::from(limit.amount), filled: now })
    }

    fn fill(&mut self, now: Instant) {
        let (amount, period) = (i128::from(self.limit.amount), self.limit.period.as_nanos() as i128);
        let passed = now.saturating_duration_since(self.filled).as_nanos().min(i64::MAX as u128) as i128;
        let tokens = passed * amount / period;
        if self.balance + tokens >= amount {
            self.balance = amount;
            self.filled = now;
        } else if tokens > 0 {
            self.balance += tokens;
            // The time that made no whole token stays.
            let used = tokens * period / amount;
            self.filled += Duration::from_nanos(u64::try_from(used).unwrap_or(u64::MAX));
        }
    }

    /// Until one token is there.
    fn wait(&self) -> Option<Duration> {
        let missing = 1 - self.balance;
        if missing <= 0 {
            return None;
        }
        let nanos = missing.saturating_mul(self.limit.period.as_nanos() as i128) / i128::from(self.limit.amount);
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)).max(MIN_WAIT))
    }
}

/// Limits of one direction, shared by its queues.
#[derive(Debug, Default)]
pub struct RateLimiter {
    buckets: Mutex<Vec<(Unit, Bucket)>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Byte,
    Operation,
}

impl RateLimiter {
    /// With full buckets.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let limiter = Self::default();
        limiter.set(limits);
        limiter
    }

    /// Replaces the limits; the buckets are full again.
    pub fn set(&self, limits: Limits) {
        let now = Instant::now();
        let wanted = [(Unit::Byte, limits.bytes), (Unit::Operation, limits.operations)];
        let buckets = wanted.into_iter().filter_map(|(unit, limit)| Some((unit, Bucket::new(limit?, now)?)));
        *self.buckets.lock().unwrap_or_else(PoisonError::into_inner) = buckets.collect();
    }

    /// How long the next operation has to wait; `None` when it need not.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets
            .iter_mut()
            .filter_map(|(_, bucket)| {
                bucket.fill(now);
                bucket.wait()
            })
            .max()
    }

    /// [`wait`](Self::wait) as of now. Looks at the clock only where there is a limit.
    pub fn wait_now(&self) -> Option<Duration> {
        if self.buckets.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            return None;
        }
        self.wait(Instant::now())
    }

    /// An operation of so many bytes took place.
    pub fn charge(&self, bytes: u64) {
        for (unit, bucket) in &mut *self.buckets.lock().unwrap_or_else(PoisonError::into_inner) {
            bucket.balance -= if *unit == Unit::Byte { i128::from(bytes) } else { 1 };
        }
    }
}

/// Wakes a device's thread when its limiter lets it go on.
#[derive(Debug)]
pub struct RetryTimer(OwnedFd);

impl RetryTimer {
    /// # Errors
    /// When there are no more descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self(timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?))
    }

    /// Readable after this time, once.
    pub fn arm(&self, wait: Duration) {
        let wait = wait.max(MIN_WAIT);
        let it_value =
            Timespec { tv_sec: wait.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: wait.subsec_nanos().into() };
        let once = Itimerspec { it_interval: Timespec::default(), it_value };
        if let Err(error) = timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once) {
            tracing::error!("cannot set a device's timer: {error}");
        }
    }

    /// Takes [`arm`](Self::arm) back.
    pub fn disarm(&self) {
        let never = Itimerspec { it_interval: Timespec::default(), it_value: Timespec::default() };
        // Fails for none of these values.
        let _ = timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &never);
    }

    /// True once after the time has passed, unless it was disarmed.
    #[must_use]
    pub fn has_run_out(&self) -> bool {
        rustix::io::read(&self.0, &mut [0; 8]).is_ok()
    }

    /// Makes it unreadable again.
    pub fn clear(&self) {
        // Nothing to read is as good.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for RetryTimer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn limiter(bytes: u64, operations: u64) -> (RateLimiter, Instant) {
        let limit = |amount| Some(Limit { amount, period: SECOND });
        let limiter = RateLimiter::new(Limits { bytes: limit(bytes), operations: limit(operations) });
        (limiter, Instant::now())
    }

    #[test]
    fn a_bucket_lets_its_content_through_and_then_its_rate() {
        let (limiter, now) = limiter(1000, 0);
        limiter.charge(1000);
        assert_eq!(limiter.wait(now), Some(MIN_WAIT));
        assert_eq!(limiter.wait(now + MIN_WAIT), None);
        limiter.charge(500);
        assert_eq!(limiter.wait(now + MIN_WAIT), Some(Duration::from_millis(500)));
        assert_eq!(limiter.wait(now + MIN_WAIT + SECOND / 2), None);
    }

    #[test]
    fn more_than_the_bucket_passes_and_is_paid_for() {
        let (limiter, now) = limiter(1000, 0);
        limiter.charge(65_000);
        assert!(limiter.wait(now + 63 * SECOND).is_some());
        assert_eq!(limiter.wait(now + 65 * SECOND), None);
    }

    #[test]
    fn time_does_not_pile_up_beyond_the_bucket() {
        let (limiter, now) = limiter(0, 10);
        assert_eq!(limiter.wait(now + 3600 * SECOND), None);
        for _ in 0..10 {
            assert_eq!(limiter.wait(now + 3600 * SECOND), None);
            limiter.charge(1 << 40);
        }
        assert!(limiter.wait(now + 3600 * SECOND).is_some());
    }

    #[test]
    fn the_longer_of_two_waits_counts() {
        let (limiter, now) = limiter(1000, 10);
        limiter.charge(1000);
        for _ in 0..9 {
            limiter.charge(0);
        }
        assert_eq!(limiter.wait(now), Some(SECOND / 10));
    }

    #[test]
    fn nothing_is_no_limit_and_extremes_do_not_overflow() {
        let now = Instant::now();
        let limiter = RateLimiter::default();
        limiter.charge(u64::MAX);
        assert_eq!(limiter.wait(now), None);
        let most = Limit { amount: u64::MAX, period: Duration::from_nanos(1) };
        let least = Limit { amount: 1, period: Duration::MAX };
        limiter.set(Limits { bytes: Some(most), operations: Some(least) });
        for _ in 0..3 {
            limiter.charge(u64::MAX);
            assert!(limiter.wait(now + 1000 * SECOND).is_some());
        }
    }

    #[test]
    fn rates_become_buckets() {
        let limit =
            RateLimit { bytes_per_second: 1000, bytes_burst: 250, operations_per_second: 20, operations_burst: 0 };
        let bytes = Limit { amount: 250, period: SECOND / 4 };
        let operations = Limit { amount: 20, period: SECOND };
        assert_eq!(Limits::from(limit), Limits { bytes: Some(bytes), operations: Some(operations) });
        assert_eq!(Limits::from(RateLimit { bytes_burst: 7, ..RateLimit::default() }), Limits::default());
        let least = Limit { amount: 1, period: Duration::from_nanos(1) };
        assert_eq!(Limit::per_second(u64::MAX, 1), Some(least));
        assert!(Limit::per_second(1, u64::MAX).is_some());
    }

    #[test]
    fn a_timer_wakes_once() {
        use rustix::event::{PollFd, PollFlags, poll};
        let timer = RetryTimer::new().unwrap();
        timer.arm(Duration::ZERO);
        poll(&mut [PollFd::new(&timer, PollFlags::IN)], None).unwrap();
        timer.clear();
        assert_eq!(poll(&mut [PollFd::new(&timer, PollFlags::IN)], Some(&Timespec::default())).unwrap(), 0);
    }
}
