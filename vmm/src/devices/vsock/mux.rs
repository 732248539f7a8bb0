//! All connections of a device, and what waits to be sent to the guest.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::VsockConfig;
use super::connection::{Connection, Emit, Key, Pending, Phase};
use super::handle::Shared;
use super::host::HostListener;
use super::packet::{HEADER_LEN, HOST_CID, Header, Op, SHUTDOWN_BOTH, TYPE_STREAM};
use super::poll::{FIRST_STREAM, LISTENER, Poll, WAKE};
use crate::devices::limit::LogLimit;
use crate::devices::slices::GuestSlices;

/// Connections at once; the guest and clients are refused beyond.
pub const MAX_CONNECTIONS: usize = 4096;
/// Bytes of the guest held for slow readers on the host, in all connections; the one that goes beyond is reset.
const MAX_HELD: usize = 32 << 20;
/// Resets that may wait for room in the receive queue before the guest's packets have to wait too.
const MAX_RESETS: usize = 256;
/// How long the guest may take to confirm that a connection is closed, and to take bytes of a host that has closed it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Ports of connections that the host makes, handed out in turn.
const FIRST_PORT: u32 = 1 << 30;
const LAST_PORT: u32 = (1 << 31) - 1;

/// The multiplexer between the guest's packets and the host's sockets.
#[derive(Debug)]
pub struct Mux {
    pub config: VsockConfig,
    pub shared: Arc<Shared>,
    pub poll: Poll,
    pub host: Option<HostListener>,
    pub log: LogLimit,
    connections: HashMap<u64, Connection>,
    by_key: HashMap<Key, u64>,
    next_token: u64,
    next_port: u32,
    /// Connections with something to send, in turn.
    ready: VecDeque<u64>,
    /// Resets of connections that do not exist (any more).
    resets: VecDeque<Header>,
    held: usize,
}

impl Mux {
    pub fn new(config: VsockConfig, shared: Arc<Shared>) -> io::Result<Self> {
        let poll = Poll::new()?;
        poll.add(shared.wake.as_fd(), WAKE)?;
        let host = config.listen_path.as_deref().map(HostListener::bind).transpose()?;
        if let Some(host) = &host {
            poll.add(host.as_fd(), LISTENER)?;
        }
        Ok(Self {
            config,
            shared,
            poll,
            host,
            log: LogLimit::default(),
            connections: HashMap::new(),
            by_key: HashMap::new(),
            next_token: FIRST_STREAM,
            next_port: FIRST_PORT,
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            held: 0,
        })
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.poll.as_fd()
    }

    /// Whether the guest's packets must wait until it takes some of ours.
    pub fn is_congested(&self) -> bool {
        self.resets.len() >= MAX_RESETS
    }

    pub fn has_outgoing(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.connections.len() + self.host.as_ref().map_or(0, HostListener::greetings) >= MAX_CONNECTIONS
    }

    pub fn len(&self) -> usize {
        self.connections.len()
    }

    pub fn find(&self, key: Key) -> Option<u64> {
        self.by_key.get(&key).copied()
    }

    pub fn get(&mut self, token: u64) -> Option<&mut Connection> {
        self.connections.get_mut(&token)
    }

    pub fn new_token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    /// A host port that no connection to this guest port uses.
    pub fn new_port(&mut self, guest_port: u32) -> u32 {
        // Ends: there are fewer connections than ports.
        loop {
            let host_port = self.next_port;
            self.next_port = if host_port == LAST_PORT { FIRST_PORT } else { host_port + 1 };
            if !self.by_key.contains_key(&Key { host_port, guest_port }) {
                return host_port;
            }
        }
    }

    /// Takes in a connection whose socket is watched under this token already.
    pub fn insert(&mut self, token: u64, connection: Connection) {
        if let Some(deadline) = connection.deadline {
            self.poll.arm(deadline);
        }
        self.by_key.insert(connection.key, token);
        self.connections.insert(token, connection);
        self.schedule(token);
    }

    /// Puts a connection in the list when it has something to send.
    pub fn schedule(&mut self, token: u64) {
        if let Some(connection) = self.connections.get_mut(&token)
            && !connection.queued
            && connection.has_work()
        {
            connection.queued = true;
            self.ready.push_back(token);
        }
    }

    /// Runs `change` on a connection and accounts for the bytes it holds then. False when it may not hold that much.
    pub fn update<T>(&mut self, token: u64, change: impl FnOnce(&mut Connection) -> T) -> Option<T> {
        let connection = self.connections.get_mut(&token)?;
        let before = connection.buffered();
        let result = change(connection);
        self.held = self.held + connection.buffered() - before;
        let waits = connection.waits_for_writable();
        if waits != connection.watches_writable {
            // Re-armed: if the socket takes bytes by now, the edge comes at once.
            connection.watches_writable =
                self.poll.watch_writable(connection.socket.as_fd(), token, waits).is_ok() == waits;
        }
        Some(result)
    }

    /// The connections together hold more than they may.
    pub fn holds_too_much(&self) -> bool {
        self.held > MAX_HELD
    }

    /// Forgets a connection and closes its socket.
    pub fn remove(&mut self, token: u64) -> Option<Connection> {
        let connection = self.connections.remove(&token)?;
        self.held -= connection.buffered();
        self.release_key(token, connection.key);
        if connection.queued {
            self.ready.retain(|ready| *ready != token);
        }
        Some(connection)
    }

    fn release_key(&mut self, token: u64, key: Key) {
        if self.by_key.get(&key) == Some(&token) {
            self.by_key.remove(&key);
        }
    }

    /// The guest is done with a connection: closes it when the host's socket has taken everything.
    pub fn drain(&mut self, token: u64) {
        let drained = self.update(token, |connection| {
            connection.phase = Phase::Draining;
            connection.deadline = None;
            connection.pending = Pending::default();
            // Its socket learns of the end when the last byte is written.
            connection.take_shutdown(SHUTDOWN_BOTH);
            (connection.buffered() == 0, connection.key)
        });
        match drained {
            Some((true, _)) => drop(self.remove(token)),
            Some((false, key)) => self.release_key(token, key),
            None => {}
        }
    }

    /// Answers a packet that belongs to no connection.
    pub fn reply_reset(&mut self, packet: &Header) {
        if packet.op() != Some(Op::Reset) {
            self.resets.push_back(packet.reset());
        }
    }

    /// Tells the guest that a connection does not exist.
    pub fn send_reset(&mut self, key: Key) {
        self.resets.push_back(Header {
            src_cid: HOST_CID,
            dst_cid: self.config.guest_cid,
            src_port: key.host_port,
            dst_port: key.guest_port,
            kind: TYPE_STREAM,
            op: Op::Reset as u16,
            ..Header::default()
        });
    }

    /// Writes the next packet for the guest into `buffers`, at least a header long. `None` when there is none; zero bytes
    /// when the buffers are too short for what is there.
    pub fn fill(&mut self, buffers: &GuestSlices<'_>) -> Option<u32> {
        if let Some(header) = self.resets.pop_front() {
            return Some(write_packet(buffers, header));
        }
        let payload = buffers.range(HEADER_LEN, usize::MAX);
        for _ in 0..self.ready.len() {
            let Some(token) = self.ready.pop_front() else {
                break;
            };
            let Some(connection) = self.connections.get_mut(&token) else {
                continue;
            };
            connection.queued = false;
            match connection.emit(&payload) {
                Emit::Packet(mut header) => {
                    header.dst_cid = self.config.guest_cid;
                    self.shared.counters.to_guest.fetch_add(u64::from(header.len), Ordering::Relaxed);
                    self.after_emit(token);
                    return Some(write_packet(buffers, header));
                }
                Emit::Nothing => self.schedule(token),
                Emit::Failed => {
                    let key = connection.key;
                    self.send_reset(key);
                    self.drain(token);
                }
            }
        }
        match self.resets.pop_front() {
            Some(header) => Some(write_packet(buffers, header)),
            None => (payload.is_empty() && self.has_outgoing()).then_some(0),
        }
    }

    fn after_emit(&mut self, token: u64) {
        self.schedule(token);
        let Some(connection) = self.connections.get_mut(&token) else {
            return;
        };
        if connection.told_all() && matches!(connection.phase, Phase::Established) {
            connection.phase = Phase::Closing;
            let deadline = Instant::now() + CLOSE_TIMEOUT;
            connection.deadline = Some(deadline);
            self.poll.arm(deadline);
        }
        self.limit_stuck(token);
    }

    /// Gives a guest that does not read what a host sent before it closed a last chance; the connection is reset then.
    pub fn limit_stuck(&mut self, token: u64) {
        if let Some(connection) = self.connections.get_mut(&token)
            && connection.is_stuck()
        {
            let deadline = Instant::now() + CLOSE_TIMEOUT;
            connection.deadline = Some(deadline);
            self.poll.arm(deadline);
        }
    }

    /// Tokens of connections that `select` picks.
    pub fn tokens(&self, select: impl Fn(&Connection) -> bool) -> Vec<u64> {
        self.connections.iter().filter(|(_, connection)| select(connection)).map(|(token, _)| *token).collect()
    }

    /// The earliest deadline of a connection.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.connections.values().filter_map(|connection| connection.deadline).min()
    }

    /// Packets for a driver that is no more.
    pub fn forget_packets(&mut self) {
        self.resets.clear();
    }

    /// Watches a new stream.
    pub fn watch(&mut self, stream: &UnixStream) -> io::Result<u64> {
        let token = self.new_token();
        self.poll.add(stream.as_fd(), token)?;
        Ok(token)
    }
}

fn write_packet(buffers: &GuestSlices<'_>, header: Header) -> u32 {
    if buffers.write_all(&header.encode()) { HEADER_LEN as u32 + header.len } else { 0 }
}
