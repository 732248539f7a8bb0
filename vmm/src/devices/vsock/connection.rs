//! One vsock connection.
//!
//! ```text
//!  host asks:  Requested --RESPONSE--> Established <---- guest asks
//!                  | RST, timeout          |  both directions shut by the host: Closing, until RST or timeout
//!                  v                       v
//!                refused          RST or both directions shut by the guest: Draining while the host's
//!                                 socket has not taken all bytes, then closed
//! ```

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::net::SendFlags;
use tokio::sync::oneshot;

use super::credit::{Credit, CreditViolation};
use super::packet::{HOST_CID, Header, MAX_PAYLOAD, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM};
use super::poll::Edge;
use crate::devices::slices::GuestSlices;

/// Names a connection; the guest's context id is the device's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    pub host_port: u32,
    pub guest_port: u32,
}

/// Who waits for the guest's answer.
#[derive(Debug)]
pub enum Waiter {
    /// A client of the listening socket: told in a line on its own stream.
    Client,
    /// A handle, which gets the other end of the pair.
    Handle { reply: oneshot::Sender<io::Result<UnixStream>>, stream: UnixStream },
}

/// Where a connection stands; see the module's drawing.
#[derive(Debug)]
pub enum Phase {
    Requested(Waiter),
    Established,
    Closing,
    Draining,
}

/// Packets that wait to be sent, apart from data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pending {
    pub request: bool,
    pub response: bool,
    pub credit_update: bool,
    pub credit_request: bool,
}

/// What `emit` did.
#[derive(Debug, PartialEq, Eq)]
pub enum Emit {
    /// A packet for the guest: its payload already lies in the buffer behind the header.
    Packet(Header),
    /// Nothing to send.
    Nothing,
    /// The host's socket failed: reset the connection.
    Failed,
}

/// The host's side of a connection.
#[derive(Debug)]
pub struct Connection {
    pub key: Key,
    pub phase: Phase,
    pub socket: UnixStream,
    pub credit: Credit,
    pub pending: Pending,
    /// In the multiplexer's list of connections with something to send.
    pub queued: bool,
    pub deadline: Option<Instant>,
    /// Bytes of the guest that the socket did not take yet.
    buffer: VecDeque<u8>,
    /// No `EAGAIN` since the last edge.
    readable: bool,
    writable: bool,
    /// The poll tells when the socket takes bytes again.
    pub watches_writable: bool,
    /// The host writes no more: reading on finds the end.
    ended: bool,
    /// The host closed its end altogether.
    hung_up: bool,
    /// The host's socket takes no more; what the guest still sends is dropped.
    deaf: bool,
    /// SHUTDOWN flags from the guest, wanted for the guest, and sent to it.
    guest_shutdown: u32,
    host_shutdown: u32,
    told_shutdown: u32,
    write_shut: bool,
}

impl Connection {
    /// A connection over a non-blocking stream.
    pub fn new(key: Key, phase: Phase, socket: UnixStream) -> Self {
        Self {
            key,
            phase,
            socket,
            credit: Credit::default(),
            pending: Pending::default(),
            queued: false,
            deadline: None,
            buffer: VecDeque::new(),
            readable: true,
            writable: true,
            watches_writable: false,
            ended: false,
            hung_up: false,
            deaf: false,
            guest_shutdown: 0,
            host_shutdown: 0,
            told_shutdown: 0,
            write_shut: false,
        }
    }

    /// Data flows, or did until the host closed.
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Established | Phase::Closing)
    }

    /// Bytes held for the host's socket.
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// Whether it matters when the socket takes bytes again: the poll wakes nobody for it otherwise.
    pub fn waits_for_writable(&self) -> bool {
        !self.writable && !self.deaf
    }

    /// An edge of the socket.
    pub fn mark(&mut self, edge: Edge) {
        self.readable |= edge.readable || edge.hung_up;
        self.writable |= edge.writable || edge.hung_up;
        self.ended |= edge.ended || edge.hung_up;
        self.hung_up |= edge.hung_up;
        // Otherwise reading on finds the end.
        let reading_is_over = self.host_shutdown & SHUTDOWN_SEND != 0 || self.guest_shutdown & SHUTDOWN_RECEIVE != 0;
        if self.hung_up && reading_is_over {
            self.host_shutdown = SHUTDOWN_BOTH;
        }
    }

    /// Whether `emit` would have something to do.
    pub fn has_work(&self) -> bool {
        if matches!(self.phase, Phase::Draining) {
            return false;
        }
        self.pending != Pending::default() || self.host_shutdown & !self.told_shutdown != 0 || self.can_read()
    }

    /// The host has closed its end, and the guest takes none of what came before: the end cannot be told in its turn.
    pub fn is_stuck(&self) -> bool {
        matches!(self.phase, Phase::Established)
            && self.hung_up
            && self.host_shutdown != SHUTDOWN_BOTH
            && self.credit.sendable() == 0
    }

    fn can_read(&self) -> bool {
        matches!(self.phase, Phase::Established)
            && self.readable
            && self.host_shutdown & SHUTDOWN_SEND == 0
            && self.guest_shutdown & SHUTDOWN_RECEIVE == 0
            && self.credit.sendable() > 0
    }

    /// The next packet for the guest. Data goes from the socket straight into `payload`.
    pub fn emit(&mut self, payload: &GuestSlices<'_>) -> Emit {
        if std::mem::take(&mut self.pending.request) {
            return Emit::Packet(self.header(Op::Request));
        }
        if std::mem::take(&mut self.pending.response) {
            return Emit::Packet(self.header(Op::Response));
        }
        if self.can_read() && !payload.is_empty() {
            match self.emit_data(payload) {
                Emit::Nothing => {}
                done => return done,
            }
        }
        if std::mem::take(&mut self.pending.credit_request) {
            return Emit::Packet(self.header(Op::CreditRequest));
        }
        if std::mem::take(&mut self.pending.credit_update) {
            return Emit::Packet(self.header(Op::CreditUpdate));
        }
        if self.host_shutdown & !self.told_shutdown != 0 {
            self.told_shutdown = self.host_shutdown;
            let mut header = self.header(Op::Shutdown);
            header.flags = self.host_shutdown;
            return Emit::Packet(header);
        }
        Emit::Nothing
    }

    fn emit_data(&mut self, payload: &GuestSlices<'_>) -> Emit {
        let most = payload.len().min(MAX_PAYLOAD).min(self.credit.sendable() as usize);
        match payload.range(0, most).receive(self.socket.as_fd()) {
            Ok(0) => {
                self.readable = false;
                self.host_shutdown |= if self.hung_up { SHUTDOWN_BOTH } else { SHUTDOWN_SEND };
                Emit::Nothing
            }
            Ok(count) => {
                // `most` fits, so does `count`.
                let count = count as u32;
                // Less than asked for: the socket is empty, and what comes next makes an edge, unless that is the end.
                self.readable = count as usize == most || self.ended;
                self.credit.send(count);
                // Out of credit with more to come: a guest that forgot to tell is asked.
                self.pending.credit_request |= self.credit.sendable() == 0;
                let mut header = self.header(Op::Data);
                header.len = count;
                Emit::Packet(header)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Emit::Nothing
            }
            Err(_) => Emit::Failed,
        }
    }

    /// A header that also tells the guest about the room here.
    fn header(&mut self, op: Op) -> Header {
        self.pending.credit_update = false;
        let (buf_alloc, fwd_cnt) = self.credit.advertise();
        Header {
            src_cid: HOST_CID,
            src_port: self.key.host_port,
            dst_port: self.key.guest_port,
            kind: TYPE_STREAM,
            op: op as u16,
            buf_alloc,
            fwd_cnt,
            ..Header::default()
        }
    }

    /// Data from the guest: to the socket as far as it takes it, the rest into the buffer.
    pub fn take_data(&mut self, data: &GuestSlices<'_>) -> Result<(), CreditViolation> {
        // Data cannot be longer than its packet, whose length is a u32.
        let len = data.len() as u32;
        self.credit.receive(len)?;
        if self.deaf {
            self.credit.forward(len);
            return Ok(());
        }
        let mut done = 0;
        if self.buffer.is_empty() && self.writable {
            done = self.send_now(data);
        }
        if self.deaf {
            self.credit.forward(len);
        } else {
            self.credit.forward(done as u32);
            self.hold(&data.range(done, usize::MAX));
        }
        self.note_credit();
        Ok(())
    }

    /// Bytes the socket took without waiting.
    fn send_now(&mut self, data: &GuestSlices<'_>) -> usize {
        let mut done = 0;
        while done < data.len() && self.writable {
            match data.range(done, usize::MAX).send(self.socket.as_fd()) {
                Ok(count) => done += count,
                Err(error) => self.write_failed(&error),
            }
        }
        done
    }

    fn hold(&mut self, rest: &GuestSlices<'_>) {
        if rest.is_empty() {
            return;
        }
        let mut bytes = vec![0; rest.len()];
        if rest.read_exact(&mut bytes) {
            self.buffer.extend(bytes);
        }
    }

    /// Moves held bytes to the socket and, when all are gone, the guest's end of data too.
    pub fn flush(&mut self) {
        while self.writable && !self.buffer.is_empty() {
            let (front, _) = self.buffer.as_slices();
            match rustix::net::send(&self.socket, front, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => {
                    self.buffer.drain(..count);
                    self.credit.forward(count as u32);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => self.write_failed(&error.into()),
            }
        }
        if self.buffer.is_empty() {
            self.buffer = VecDeque::new();
            if self.guest_shutdown & SHUTDOWN_SEND != 0 && !self.write_shut {
                self.write_shut = true;
                let _ = self.socket.shutdown(std::net::Shutdown::Write);
            }
        }
        self.note_credit();
    }

    fn write_failed(&mut self, error: &io::Error) {
        match error.kind() {
            io::ErrorKind::WouldBlock => self.writable = false,
            // The host reads no more. It may still send.
            _ => {
                self.writable = false;
                self.deaf = true;
                self.credit.forward(self.buffer.len() as u32);
                self.buffer.clear();
                self.host_shutdown |= SHUTDOWN_RECEIVE;
            }
        }
    }

    fn note_credit(&mut self) {
        self.pending.credit_update |= self.is_open() && self.credit.wants_update();
    }

    /// The guest's SHUTDOWN; true when it is done with both directions.
    pub fn take_shutdown(&mut self, flags: u32) -> bool {
        self.guest_shutdown |= flags & SHUTDOWN_BOTH;
        if self.guest_shutdown & SHUTDOWN_RECEIVE != 0 {
            let _ = self.socket.shutdown(std::net::Shutdown::Read);
        }
        self.flush();
        self.guest_shutdown == SHUTDOWN_BOTH
    }

    /// The guest said that it sends no more.
    pub fn guest_sends_no_more(&self) -> bool {
        self.guest_shutdown & SHUTDOWN_SEND != 0
    }

    /// The guest was told that both directions are closed.
    pub fn told_all(&self) -> bool {
        self.told_shutdown == SHUTDOWN_BOTH
    }
}
