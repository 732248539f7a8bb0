//! One container's output, from its connection to its log, on a thread of its own: a log that blocks (a hung network file
//! system, a pipe nobody reads) holds up nothing but its own container.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use bulkhead_proto::agent::ExitStatus;
use protobuf::Message;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use tokio::sync::{oneshot, watch};

use super::format::Formatter;
use super::frames::{Decoder, Piece};
use super::sink::Sink;
use super::timestamp;
use crate::exit::now_ns;
use crate::jail::{self, Role};

/// Bytes taken off the connection at a time.
const CHUNK: usize = 32 * 1024;
/// Enough for a debug build; untouched pages cost nothing.
const STACK: usize = 256 * 1024;

/// How a container's output ended.
#[derive(Debug, Clone, Default)]
pub struct LogEnd {
    /// As the agent reported it; `None` when the connection ended before.
    pub exit: Option<ExitStatus>,
    /// Bytes of the log that could not be written.
    pub lost_bytes: u64,
    /// Why there was no output, or no more.
    pub error: Option<String>,
}

enum Order {
    Reopen(File, oneshot::Sender<()>),
    Stop,
}

/// Orders for a follower's thread.
struct Orders {
    queue: Mutex<VecDeque<Order>>,
    wake: OwnedFd,
}

/// The other side of a follower's thread.
pub struct Follower {
    orders: Arc<Orders>,
    end: watch::Receiver<Option<LogEnd>>,
}

impl Follower {
    /// Copies what comes from `stream` (the hello has been sent) to `target`.
    ///
    /// # Errors
    /// When there is no descriptor or thread left.
    pub fn start(container: &str, stream: UnixStream, target: Option<File>) -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let orders = Arc::new(Orders { queue: Mutex::default(), wake });
        let (ended, end) = watch::channel(None);
        let copy = Copy {
            stream,
            orders: orders.clone(),
            decoder: Decoder::default(),
            formatter: Formatter::default(),
            sink: Sink::new(container, target),
            records: Vec::new(),
        };
        std::thread::Builder::new().name("log".into()).stack_size(STACK).spawn(move || {
            jail::enter_thread(Role::Device);
            ended.send_replace(Some(copy.run()))
        })?;
        Ok(Self { orders, end })
    }

    /// Becomes `Some` when the last line is written.
    pub fn end(&self) -> watch::Receiver<Option<LogEnd>> {
        self.end.clone()
    }

    /// Later records go to `target`. The receiver resolves when all before are in the old file, and fails when the output
    /// has ended.
    pub fn reopen(&self, target: File) -> oneshot::Receiver<()> {
        let (done, waiting) = oneshot::channel();
        self.order(Order::Reopen(target, done));
        waiting
    }

    fn order(&self, order: Order) {
        self.orders.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(order);
        // An eventfd refuses a write only when its counter is full, and then it is readable anyway.
        let _ = rustix::io::write(&self.orders.wake, &1_u64.to_ne_bytes());
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.order(Order::Stop);
    }
}

struct Copy {
    stream: UnixStream,
    orders: Arc<Orders>,
    decoder: Decoder,
    formatter: Formatter,
    sink: Sink,
    records: Vec<u8>,
}

impl Copy {
    fn run(mut self) -> LogEnd {
        let mut end = LogEnd::default();
        match self.copy() {
            Ok(exit) => end.exit = exit,
            Err(error) => end.error = Some(error),
        }
        self.formatter.finish(&timestamp::now(), &mut self.records);
        self.sink.write(&self.records);
        self.sink.finish();
        end.lost_bytes = self.sink.lost();
        end
    }

    /// Until the agent reports the exit, the connection ends (`None`), or nobody wants more (`None`).
    fn copy(&mut self) -> Result<Option<ExitStatus>, String> {
        let broken = |error: io::Error| format!("the connection to the agent broke: {error}");
        let mut chunk = vec![0; CHUNK];
        loop {
            let mut polled = [PollFd::new(&self.stream, PollFlags::IN), PollFd::new(&self.orders.wake, PollFlags::IN)];
            rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, None))
                .map_err(|error| broken(error.into()))?;
            let [has_output, has_orders] = [!polled[0].revents().is_empty(), !polled[1].revents().is_empty()];
            if has_orders && self.obey() {
                return Ok(None);
            }
            if !has_output {
                continue;
            }
            let count = match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(None),
                Ok(count) => count,
                Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {
                    continue;
                }
                Err(error) => return Err(broken(error)),
            };
            if let Some(exit) = self.take(&chunk[..count])? {
                return Ok(Some(exit));
            }
        }
    }

    /// Writes the records that these bytes complete.
    fn take(&mut self, mut bytes: &[u8]) -> Result<Option<ExitStatus>, String> {
        let time = timestamp::now();
        let mut last = Ok(None);
        loop {
            match self.decoder.next(&mut bytes) {
                Ok(Some(Piece::Output(stream, bytes))) => self.formatter.push(stream, bytes, &time, &mut self.records),
                Ok(Some(Piece::Exit(payload))) => {
                    last = exit_status(&payload).map(Some);
                    break;
                }
                Ok(Some(Piece::Error(text))) => {
                    last = Err(format!("the agent says: {}", String::from_utf8_lossy(&text)));
                    break;
                }
                Ok(None) => break,
                Err(error) => {
                    last = Err(format!("the agent broke the stdio protocol: {error}"));
                    break;
                }
            }
        }
        self.sink.write(&self.records);
        self.records.clear();
        last
    }

    /// True when it is time to stop.
    fn obey(&mut self) -> bool {
        let _ = rustix::io::read(&self.orders.wake, &mut [0_u8; 8]);
        loop {
            let order = self.orders.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            match order {
                Some(Order::Reopen(target, done)) => {
                    self.sink.replace(target);
                    // Whoever asked may have gone.
                    let _ = done.send(());
                }
                Some(Order::Stop) => return true,
                None => return false,
            }
        }
    }
}

/// What the agent says, dated by the host's clock: the guest's is a claim, and starts from whole seconds.
fn exit_status(payload: &[u8]) -> Result<ExitStatus, String> {
    let mut status = ExitStatus::parse_from_bytes(payload).map_err(|error| format!("bad exit status: {error}"))?;
    status.code = status.code.clamp(0, 255);
    status.finished_at_ns = now_ns();
    Ok(status)
}
