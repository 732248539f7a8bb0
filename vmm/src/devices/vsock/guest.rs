//! What the guest's packets do.

use std::fmt::Display;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::connection::{Connection, Key, Phase};
use super::handle::Offered;
use super::mux::Mux;
use super::packet::{HOST_CID, Header, Op, TYPE_STREAM};
use crate::devices::slices::GuestSlices;

impl Mux {
    /// One packet of the guest; `buffers` hold what follows its header.
    pub fn receive(&mut self, header: &Header, buffers: &GuestSlices<'_>) {
        if header.src_cid != self.config.guest_cid {
            self.complain(format_args!("a packet that claims to be from CID {}", header.src_cid));
            return;
        }
        if header.dst_cid != HOST_CID || header.kind != TYPE_STREAM {
            self.reply_reset(header);
            return;
        }
        let key = Key { host_port: header.dst_port, guest_port: header.src_port };
        let known = self.find(key);
        match (header.op(), known) {
            (Some(Op::Request), None) => self.accept_guest(key, header),
            (Some(Op::Reset), Some(token)) => self.guest_reset(token),
            (Some(Op::Reset), None) => {}
            (_, None) => self.reply_reset(header),
            (None | Some(Op::Request), Some(token)) => {
                self.violation(token, format_args!("operation {} on an open connection", header.op));
            }
            (Some(op), Some(token)) => self.guest_packet(token, op, header, buffers),
        }
    }

    fn guest_packet(&mut self, token: u64, op: Op, header: &Header, buffers: &GuestSlices<'_>) {
        let Some(connection) = self.get(token) else {
            return;
        };
        if let Err(error) = connection.credit.hear(header.buf_alloc, header.fwd_cnt) {
            return self.violation(token, error);
        }
        let requested = matches!(connection.phase, Phase::Requested(_));
        match op {
            Op::Response if requested && !connection.pending.request => self.guest_accepted(token),
            _ if requested => {
                return self.violation(token, format_args!("{op:?} before it accepted"));
            }
            Op::Data => self.guest_data(token, header, buffers),
            Op::Shutdown => self.guest_shutdown(token, header),
            Op::CreditRequest => connection.pending.credit_update = true,
            Op::CreditUpdate => {}
            Op::Request | Op::Response | Op::Reset => {
                return self.violation(token, format_args!("{op:?} on an open connection"));
            }
        }
        self.schedule(token);
    }

    fn guest_data(&mut self, token: u64, header: &Header, buffers: &GuestSlices<'_>) {
        let len = header.len as usize;
        if len > buffers.len() {
            return self.violation(token, format_args!("a packet of {len} bytes in {} bytes", buffers.len()));
        }
        let Some((shut, taken)) = self.update(token, |connection| {
            (connection.guest_sends_no_more(), connection.take_data(&buffers.range(0, len)))
        }) else {
            return;
        };
        self.shared.counters.from_guest.fetch_add(u64::from(header.len), Ordering::Relaxed);
        if shut {
            self.violation(token, "data after it shut that direction down");
        } else if let Err(error) = taken {
            self.violation(token, error);
        } else if self.holds_too_much() {
            self.violation(token, "too many bytes wait for slow readers on the host");
        }
    }

    fn guest_shutdown(&mut self, token: u64, header: &Header) {
        let done = self.update(token, |connection| connection.take_shutdown(header.flags));
        if done == Some(true) {
            self.reply_reset(header);
            self.drain(token);
        }
    }

    fn guest_reset(&mut self, token: u64) {
        let requested = self.get(token).is_some_and(|connection| matches!(connection.phase, Phase::Requested(_)));
        if requested {
            self.refuse(token, io::ErrorKind::ConnectionRefused, "the guest refused the connection");
        } else {
            self.drain(token);
        }
    }

    /// The guest connects to a port of the host.
    fn accept_guest(&mut self, key: Key, header: &Header) {
        let socket =
            if self.is_full() { Err(io::ErrorKind::QuotaExceeded.into()) } else { self.open_host(key.host_port) };
        let inserted = socket.and_then(|socket| {
            let token = self.watch(&socket)?;
            let mut connection = Connection::new(key, Phase::Established, socket);
            // The first word of a connection cannot break its counters.
            let _ = connection.credit.hear(header.buf_alloc, 0);
            connection.pending.response = true;
            self.insert(token, connection);
            Ok(())
        });
        if inserted.is_err() {
            self.reply_reset(header);
        }
    }

    /// A stream to whoever serves the port: a listener in this process, else a unix socket.
    fn open_host(&self, port: u32) -> io::Result<UnixStream> {
        if self.shared.has_listener(port) {
            let (ours, theirs) = socket_pair()?;
            match self.shared.offer(port, theirs) {
                Ok(()) => return Ok(ours),
                Err(Offered::Busy) => return Err(io::ErrorKind::WouldBlock.into()),
                Err(Offered::NoListener) => {}
            }
        }
        let Some(path) = &self.config.listen_path else {
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        let mut path = path.clone().into_os_string();
        path.push(format!("_{port}"));
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // Never waits: a listener with a full backlog refuses.
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(socket.into())
    }

    /// Resets a connection that the guest misuses.
    pub fn violation(&mut self, token: u64, what: impl Display) {
        let Some(key) = self.get(token).map(|connection| connection.key) else {
            return;
        };
        self.complain(format_args!("guest port {} to host port {}: {what}", key.guest_port, key.host_port));
        self.send_reset(key);
        self.refuse(token, io::ErrorKind::ConnectionReset, "the guest broke the protocol");
    }

    pub fn complain(&mut self, what: impl Display) {
        if let Some(suppressed) = self.log.allow() {
            tracing::warn!(suppressed, "vsock: refused what the guest sent: {what}");
        }
    }
}

/// Both ends of a connection within this process, non-blocking.
pub fn socket_pair() -> io::Result<(UnixStream, UnixStream)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    Ok((ours.into(), theirs.into()))
}
