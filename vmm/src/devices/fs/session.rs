//! A vhost-user connection to the file server, seen from the front end.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, GuestMemory, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::devices::GuestRam;
use crate::devices::rate_limiter::RetryTimer;
use crate::devices::worker::{Handler, Stop, Worker};

/// How long the server may take for all the answers of one step.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no session, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The socket.
    #[error("cannot connect to the file server: {0}")]
    Connect(io::Error),
    /// The thread that bounds its answers.
    #[error("cannot watch the file server: {0}")]
    Watchdog(io::Error),
    /// A message or its answer.
    #[error("the file server does not take {step}: {source}")]
    Message {
        /// What it was told.
        step: &'static str,
        /// Why it did not.
        source: vhost::Error,
    },
    /// The driver accepted features that the server does not have.
    #[error("the file server lacks features {0:#x} that the guest uses")]
    Features(u64),
    /// The server cannot tell when it has obeyed.
    #[error("the file server does not acknowledge messages (VHOST_USER_PROTOCOL_F_REPLY_ACK)")]
    NoAcknowledgement,
    /// Memory without a file cannot be shared.
    #[error("guest memory at {0:#x} is not backed by a file that the file server can map")]
    Memory(u64),
}

/// What the server needs to know of a queue.
#[derive(Debug)]
pub struct Ring<'a> {
    /// Its number.
    pub index: usize,
    /// Where its rings are.
    pub queue: &'a Queue,
    /// Written by the driver's notifications.
    pub kick: &'a EventFd,
    /// Written by the server's interrupts.
    pub call: &'a EventFd,
}

/// A connection.
pub struct Session {
    frontend: Frontend,
    watchdog: Watchdog,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("fd", &self.frontend.as_raw_fd()).finish_non_exhaustive()
    }
}

/// Ends the connection to a server that is silent for too long. The front end would wait for ever: it takes a socket's
/// timeouts for interruptions, and tries again.
#[derive(Debug)]
struct Watchdog {
    timer: Arc<RetryTimer>,
    patience: Duration,
    _thread: Worker<Biter>,
}

/// What runs on the watchdog's thread.
#[derive(Debug)]
struct Biter {
    timer: Arc<RetryTimer>,
    stream: UnixStream,
}

/// While it lives, the server's time runs.
struct Step(Arc<RetryTimer>);

impl Watchdog {
    fn start(stream: UnixStream, patience: Duration) -> io::Result<Self> {
        let timer = Arc::new(RetryTimer::new()?);
        let thread = Worker::start("fs-watchdog", Biter { timer: timer.clone(), stream })?;
        Ok(Self { timer, patience, _thread: thread })
    }

    fn step(&self) -> Step {
        self.timer.arm(self.patience);
        Step(self.timer.clone())
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.0.disarm();
    }
}

impl Handler for Biter {
    fn watched(&self) -> Vec<(RawFd, u64)> {
        vec![(self.timer.as_fd().as_raw_fd(), 0)]
    }

    fn handle(&mut self, _token: u64, _stop: &Stop) {
        if self.timer.has_run_out() {
            tracing::error!("the file server does not answer; ending its connection");
            // Whoever waits for it reads its end. Fails only when it has ended already.
            let _ = self.stream.shutdown(Shutdown::Both);
        }
    }
}

fn message(step: &'static str) -> impl FnOnce(vhost::Error) -> SessionError {
    move |source| SessionError::Message { step, source }
}

impl Session {
    /// Negotiates over a new connection for so many queues. A server that is silent for ten seconds, now or in a later step,
    /// loses it.
    ///
    /// # Errors
    /// When the server does not answer in time, or is none that works with this front end.
    pub fn new(stream: UnixStream, queues: usize) -> Result<Self, SessionError> {
        Self::begin(stream, queues, PATIENCE)
    }

    fn begin(stream: UnixStream, queues: usize, patience: Duration) -> Result<Self, SessionError> {
        let watchdog = stream.try_clone().and_then(|stream| Watchdog::start(stream, patience));
        let watchdog = watchdog.map_err(SessionError::Watchdog)?;
        let step = watchdog.step();
        let mut frontend = Frontend::from_stream(stream, queues as u64);
        frontend.set_owner().map_err(message("its owner"))?;
        let offered = frontend.get_features().map_err(message("a question for its features"))?;
        if offered & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            return Err(SessionError::NoAcknowledgement);
        }
        let protocol = frontend.get_protocol_features().map_err(message("a question for its protocol"))?;
        let wanted = VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::MQ;
        if !protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            return Err(SessionError::NoAcknowledgement);
        }
        frontend.set_protocol_features(protocol & wanted).map_err(message("the protocol's features"))?;
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        drop(step);
        Ok(Self { frontend, watchdog })
    }

    /// Hands over memory and rings. When this returns, the server works.
    ///
    /// # Errors
    /// When the server refuses anything, or the driver accepted what it cannot.
    pub fn start(&mut self, ram: &GuestRam, features: u64, rings: &[Ring<'_>]) -> Result<(), SessionError> {
        let _step = self.watchdog.step();
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        let offered = self.frontend.get_features().map_err(message("a question for its features"))?;
        if features & !offered != 0 {
            return Err(SessionError::Features(features & !offered));
        }
        self.frontend.set_features(features | protocol).map_err(message("the guest's features"))?;
        self.frontend.set_mem_table(&memory_table(ram)?).map_err(message("the guest's memory"))?;
        for ring in rings {
            let index = ring.index;
            let addresses = VringConfigData {
                queue_max_size: ring.queue.max_size(),
                queue_size: ring.queue.size(),
                flags: 0,
                desc_table_addr: ring.queue.desc_table(),
                used_ring_addr: ring.queue.used_ring(),
                avail_ring_addr: ring.queue.avail_ring(),
                log_addr: None,
            };
            self.frontend.set_vring_num(index, ring.queue.size()).map_err(message("a queue's size"))?;
            self.frontend.set_vring_addr(index, &addresses).map_err(message("a queue's addresses"))?;
            self.frontend.set_vring_base(index, ring.queue.next_avail()).map_err(message("a queue's position"))?;
            self.frontend.set_vring_call(index, ring.call).map_err(message("a queue's interrupt"))?;
            self.frontend.set_vring_kick(index, ring.kick).map_err(message("a queue's notification"))?;
        }
        for ring in rings {
            self.frontend.set_vring_enable(ring.index, true).map_err(message("a queue's start"))?;
        }
        for ring in rings {
            // A server may drop a notification that arrives before it has enabled the queue. Fails only when the counter is
            // full, and then the server is notified anyway.
            let _ = ring.kick.write(1);
        }
        Ok(())
    }

    /// Takes a queue away. When this returns, the server does not touch it any more.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn stop(&mut self, index: usize) -> Result<(), SessionError> {
        let _step = self.watchdog.step();
        self.frontend.set_vring_enable(index, false).map_err(message("a queue's end"))?;
        self.frontend.get_vring_base(index).map(drop).map_err(message("a question for a queue's position"))
    }

    /// The socket: at its end when the server is gone.
    #[must_use]
    pub fn as_raw_fd(&self) -> RawFd {
        self.frontend.as_raw_fd()
    }
}

/// The server sees guest addresses only, none of this process.
fn memory_table(ram: &GuestRam) -> Result<Vec<VhostUserMemoryRegionInfo>, SessionError> {
    let table = ram.iter().map(|region| {
        let address = region.start_addr().raw_value();
        let file = region.file_offset().ok_or(SessionError::Memory(address))?;
        Ok(VhostUserMemoryRegionInfo {
            guest_phys_addr: address,
            memory_size: region.len(),
            userspace_addr: address,
            mmap_offset: file.start(),
            mmap_handle: file.file().as_raw_fd(),
        })
    });
    table.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_server_loses_its_connection() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let begun = Session::begin(ours, 2, Duration::from_millis(20));
        assert!(matches!(begun, Err(SessionError::Message { .. })), "{begun:?}");
        drop(theirs);
    }

    #[test]
    fn a_server_that_answers_in_time_keeps_its_connection() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let watchdog = Watchdog::start(theirs, Duration::from_secs(3600)).unwrap();
        drop(watchdog.step());
        assert!(!watchdog.timer.has_run_out());
        drop(watchdog);
        assert_eq!(std::io::Read::read(&mut ours, &mut [0]).unwrap(), 0);
    }
}
