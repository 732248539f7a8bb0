//! What the device waits for on the host: one epoll descriptor that the transport's thread watches.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime};

/// Tokens of descriptors that are no stream.
pub const WAKE: u64 = 0;
pub const LISTENER: u64 = 1;
pub const TIMER: u64 = 2;
/// Streams have tokens from here on, never used twice.
pub const FIRST_STREAM: u64 = 16;

/// Events taken at once.
const BATCH: usize = 64;

/// Epoll with a timer. Everything is edge-triggered: what is not consumed at once is remembered by its owner.
#[derive(Debug)]
pub struct Poll {
    epoll: OwnedFd,
    timer: OwnedFd,
    armed: Option<Instant>,
}

/// An edge.
#[derive(Debug, Clone, Copy)]
pub struct Edge {
    pub token: u64,
    pub readable: bool,
    pub writable: bool,
    /// The peer writes no more.
    pub ended: bool,
    /// The peer closed.
    pub hung_up: bool,
}

impl Poll {
    pub fn new() -> io::Result<Self> {
        let poll = Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            timer: timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?,
            armed: None,
        };
        poll.add(poll.timer.as_fd(), TIMER)?;
        Ok(poll)
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Watches a descriptor until it is closed.
    pub fn add(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        use epoll::EventFlags as Flags;
        let flags = Flags::IN | Flags::RDHUP | Flags::ET;
        Ok(epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token), flags)?)
    }

    /// Whether edges of a watched descriptor that takes bytes again come too; the first at once if it does.
    pub fn watch_writable(&self, fd: BorrowedFd<'_>, token: u64, wanted: bool) -> io::Result<()> {
        use epoll::EventFlags as Flags;
        let mut flags = Flags::IN | Flags::RDHUP | Flags::ET;
        flags.set(Flags::OUT, wanted);
        Ok(epoll::modify(&self.epoll, fd, epoll::EventData::new_u64(token), flags)?)
    }

    /// Some edges since the last call, without waiting; none when there are no more.
    pub fn take(&self) -> Vec<Edge> {
        let mut events = Vec::with_capacity(BATCH);
        // EINTR means that nothing was taken; the transport's level-triggered watch comes back.
        let _ = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&Timespec::default()));
        events.iter().map(edge).collect()
    }

    /// Makes sure that a TIMER edge comes at `at` or before.
    pub fn arm(&mut self, at: Instant) {
        if self.armed.is_some_and(|armed| armed <= at) {
            return;
        }
        // A duration of zero would disarm it.
        let wait = at.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        if self.set_timer(wait) {
            self.armed = Some(at);
        }
    }

    /// After a TIMER edge.
    pub fn disarm(&mut self) {
        self.armed = None;
        self.set_timer(Duration::ZERO);
    }

    fn set_timer(&self, wait: Duration) -> bool {
        let it_value =
            Timespec { tv_sec: wait.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: wait.subsec_nanos().into() };
        let once = Itimerspec { it_interval: Timespec::default(), it_value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once).is_ok()
    }
}

fn edge(event: &epoll::Event) -> Edge {
    use epoll::EventFlags as Flags;
    let (flags, data) = (event.flags, event.data);
    Edge {
        token: data.u64(),
        readable: flags.intersects(Flags::IN | Flags::RDHUP | Flags::ERR),
        writable: flags.contains(Flags::OUT),
        ended: flags.contains(Flags::RDHUP),
        hung_up: flags.intersects(Flags::HUP | Flags::ERR),
    }
}
