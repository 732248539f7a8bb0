//! What happens on the host's sockets.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::SendFlags;
use tokio::sync::oneshot;

use super::connection::{Connection, Key, Phase, Waiter};
use super::greeting::{Greeting, read_line, say};
use super::guest::socket_pair;
use super::handle::{ConnectRequest, guest_gone};
use super::mux::Mux;
use super::poll::{Edge, LISTENER, TIMER, WAKE};

/// Clients that have not said yet where they want to go.
const MAX_GREETINGS: usize = 256;
/// How long such a client may take.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// Batches of edges taken before the guest gets its turn.
const MAX_ROUNDS: usize = 4;
/// When to try again after `accept` failed for want of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);

/// The listening socket and clients that have not finished their first line.
#[derive(Debug)]
pub struct HostListener {
    listener: UnixListener,
    path: PathBuf,
    greetings: HashMap<u64, (UnixStream, Instant)>,
    retry: Option<Instant>,
}

impl HostListener {
    pub fn bind(path: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, path: path.to_owned(), greetings: HashMap::new(), retry: None })
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    pub fn greetings(&self) -> usize {
        self.greetings.len()
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.greetings.values().map(|(_, deadline)| *deadline).chain(self.retry).min()
    }
}

impl Drop for HostListener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Mux {
    /// Handles what happened on the host since the last call. Never waits, and leaves the rest for the next call when
    /// the host is too busy.
    pub fn poll_host(&mut self) {
        for _ in 0..MAX_ROUNDS {
            let edges = self.poll.take();
            if edges.is_empty() {
                return;
            }
            for edge in edges {
                match edge.token {
                    WAKE => self.take_requests(),
                    LISTENER => self.accept_clients(),
                    TIMER => self.expire(),
                    _ => self.stream_edge(edge),
                }
            }
        }
    }

    fn stream_edge(&mut self, edge: Edge) {
        let token = edge.token;
        if self.host.as_ref().is_some_and(|host| host.greetings.contains_key(&token)) {
            return self.read_greeting(token);
        }
        let abandoned = self.update(token, |connection| {
            connection.mark(edge);
            connection.flush();
            match connection.phase {
                Phase::Requested(_) => edge.hung_up,
                Phase::Draining => connection.buffered() == 0,
                Phase::Established | Phase::Closing => false,
            }
        });
        if abandoned == Some(true) {
            self.abandon(token);
        }
        self.limit_stuck(token);
        self.schedule(token);
    }

    /// Nobody on the host wants the connection any more.
    fn abandon(&mut self, token: u64) {
        let Some(connection) = self.remove(token) else {
            return;
        };
        if matches!(connection.phase, Phase::Requested(_)) && !connection.pending.request {
            self.send_reset(connection.key);
        }
    }

    fn take_requests(&mut self) {
        self.shared.clear_wake();
        while let Some(request) = self.shared.next_request() {
            let ConnectRequest { port, reply } = request;
            if let Err((reply, error)) = self.connect_handle(port, reply) {
                let _ = reply.send(Err(error));
            }
        }
    }

    fn connect_handle(&mut self, port: u32, reply: Reply) -> Result<(), (Reply, io::Error)> {
        if self.is_full() {
            return Err((reply, io::ErrorKind::QuotaExceeded.into()));
        }
        let made = socket_pair().and_then(|(ours, theirs)| Ok((self.watch(&ours)?, ours, theirs)));
        match made {
            Ok((token, ours, stream)) => {
                self.request_connection(token, port, ours, Waiter::Handle { reply, stream });
                Ok(())
            }
            Err(error) => Err((reply, error)),
        }
    }

    fn request_connection(&mut self, token: u64, guest_port: u32, socket: UnixStream, waiter: Waiter) {
        let key = Key { host_port: self.new_port(guest_port), guest_port };
        let mut connection = Connection::new(key, Phase::Requested(waiter), socket);
        connection.pending.request = true;
        connection.deadline = Some(Instant::now() + self.config.connect_timeout);
        self.insert(token, connection);
    }

    /// The guest accepted a connection that the host asked for.
    pub fn guest_accepted(&mut self, token: u64) {
        let Some(connection) = self.get(token) else {
            return;
        };
        connection.deadline = None;
        let told = match std::mem::replace(&mut connection.phase, Phase::Established) {
            Phase::Requested(Waiter::Client) => {
                let line = format!("OK {}\n", connection.key.host_port);
                // The socket's buffer is empty: it takes the line whole or the client is gone.
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                rustix::net::send(&connection.socket, line.as_bytes(), flags) == Ok(line.len())
            }
            Phase::Requested(Waiter::Handle { reply, stream }) => reply.send(Ok(stream)).is_ok(),
            Phase::Established | Phase::Closing | Phase::Draining => true,
        };
        if !told {
            let key = connection.key;
            self.send_reset(key);
            self.remove(token);
        }
    }

    /// Ends a connection; whoever waits for the guest's answer is told why.
    pub fn refuse(&mut self, token: u64, kind: io::ErrorKind, why: &'static str) {
        let Some(mut connection) = self.remove(token) else {
            return;
        };
        match connection.phase {
            Phase::Requested(Waiter::Client) => say(&mut connection.socket, why),
            Phase::Requested(Waiter::Handle { reply, .. }) => {
                let _ = reply.send(Err(io::Error::new(kind, why)));
            }
            Phase::Established | Phase::Closing | Phase::Draining => {}
        }
    }

    fn accept_clients(&mut self) {
        loop {
            let full = self.is_full();
            let Some(host) = &mut self.host else {
                return;
            };
            let mut stream = match host.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    let retry = Instant::now() + ACCEPT_RETRY;
                    host.retry = Some(retry);
                    self.poll.arm(retry);
                    self.complain(format_args!("a client of the listening socket: accept: {error}"));
                    return;
                }
            };
            if full || host.greetings.len() >= MAX_GREETINGS {
                say(&mut stream, "too many connections");
                continue;
            }
            self.greet(stream);
        }
    }

    fn greet(&mut self, stream: UnixStream) {
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        let Ok(token) = self.watch(&stream) else {
            return;
        };
        let deadline = Instant::now() + GREETING_TIMEOUT;
        if let Some(host) = &mut self.host {
            host.greetings.insert(token, (stream, deadline));
        }
        self.poll.arm(deadline);
        self.read_greeting(token);
    }

    fn read_greeting(&mut self, token: u64) {
        let Some(host) = &mut self.host else {
            return;
        };
        let Some((stream, _)) = host.greetings.get_mut(&token) else {
            return;
        };
        let line = read_line(stream);
        if matches!(line, Ok(None)) {
            return;
        }
        let Some((mut stream, _)) = host.greetings.remove(&token) else {
            return;
        };
        match line {
            Ok(Some(port)) => self.request_connection(token, port, stream, Waiter::Client),
            Ok(None) => {}
            Err(Greeting::Malformed) => say(&mut stream, "expected CONNECT <port>"),
            Err(Greeting::Closed) => {}
        }
    }

    /// Ends what waited too long.
    fn expire(&mut self) {
        self.poll.disarm();
        let now = Instant::now();
        for token in self.tokens(|connection| connection.deadline.is_some_and(|deadline| deadline <= now)) {
            if let Some(connection) = self.get(token)
                && !connection.pending.request
            {
                let key = connection.key;
                self.send_reset(key);
            }
            self.refuse(token, io::ErrorKind::TimedOut, "the guest did not answer in time");
        }
        let mut retry = false;
        if let Some(host) = &mut self.host {
            retry = host.retry.take_if(|retry| *retry <= now).is_some();
            for (_, (mut stream, _)) in host.greetings.extract_if(|_, (_, deadline)| *deadline <= now) {
                say(&mut stream, "no CONNECT <port> in time");
            }
        }
        if retry {
            self.accept_clients();
        }
        let listener = self.host.as_ref().and_then(HostListener::next_deadline);
        if let Some(next) = self.next_deadline().into_iter().chain(listener).min() {
            self.poll.arm(next);
        }
    }

    /// The driver was reset: its connections are gone. Requests that it has not seen yet wait for the next driver.
    pub fn driver_reset(&mut self) {
        self.forget_packets();
        for token in self.tokens(|connection| !connection.pending.request) {
            self.end(token);
        }
    }

    /// The guest is gone for good. What it sent is still delivered: `poll_host` until `is_drained`.
    pub fn disconnect(&mut self) {
        self.forget_packets();
        self.shared.close();
        for token in self.tokens(|_| true) {
            self.end(token);
        }
        if let Some(mut host) = self.host.take() {
            for (_, (mut stream, _)) in host.greetings.drain() {
                say(&mut stream, "the guest is gone");
            }
        }
    }

    fn end(&mut self, token: u64) {
        let requested = self.get(token).is_some_and(|connection| matches!(connection.phase, Phase::Requested(_)));
        if requested {
            self.refuse(token, guest_gone().kind(), "the guest is gone");
        } else {
            self.update(token, Connection::flush);
            self.drain(token);
        }
    }
}

type Reply = oneshot::Sender<io::Result<UnixStream>>;
