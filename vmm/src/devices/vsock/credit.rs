//! Flow control of one connection (virtio 1.2, section 5.10.6.3), in both directions. All counters wrap.

/// Most bytes of a guest's data that a connection may hold on the host, in bytes. A Linux guest has no more in flight than its
/// own receive buffer is long, which is as much unless its program changes it.
pub const BUF_ALLOC: u32 = 256 * 1024;

/// The guest broke flow control; its connection is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CreditViolation {
    /// `fwd_cnt` went back, or past what was sent.
    #[error("it claims to have taken bytes it never got, or fewer than before")]
    FwdCnt,
    /// More than the host said it had room for.
    #[error("it sent more than it had credit for")]
    Overrun,
}

/// Counters of one connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Credit {
    /// Bytes from the guest, and those of them that reached the host's socket.
    received: u32,
    forwarded: u32,
    /// `forwarded` as the guest last heard it.
    advertised: u32,
    /// Bytes to the guest, those of them that it took, and its room.
    sent: u32,
    peer_fwd_cnt: u32,
    peer_buf_alloc: u32,
}

impl Credit {
    /// Takes in what the guest's header says about its side.
    pub fn hear(&mut self, buf_alloc: u32, fwd_cnt: u32) -> Result<(), CreditViolation> {
        let in_flight = self.sent.wrapping_sub(self.peer_fwd_cnt);
        if fwd_cnt.wrapping_sub(self.peer_fwd_cnt) > in_flight {
            return Err(CreditViolation::FwdCnt);
        }
        self.peer_fwd_cnt = fwd_cnt;
        self.peer_buf_alloc = buf_alloc;
        Ok(())
    }

    /// Bytes that may be sent to the guest now.
    pub fn sendable(&self) -> u32 {
        self.peer_buf_alloc.saturating_sub(self.sent.wrapping_sub(self.peer_fwd_cnt))
    }

    /// Bytes went to the guest, at most [`sendable`](Self::sendable).
    pub fn send(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }

    /// Bytes of the guest that wait on the host.
    pub fn held(&self) -> u32 {
        self.received.wrapping_sub(self.forwarded)
    }

    /// Bytes came from the guest.
    pub fn receive(&mut self, bytes: u32) -> Result<(), CreditViolation> {
        if bytes > BUF_ALLOC - self.held() {
            return Err(CreditViolation::Overrun);
        }
        self.received = self.received.wrapping_add(bytes);
        Ok(())
    }

    /// Bytes reached the host's socket, at most [`held`](Self::held).
    pub fn forward(&mut self, bytes: u32) {
        self.forwarded = self.forwarded.wrapping_add(bytes);
    }

    /// The guest believes that less than half of its window is free, and more is.
    pub fn wants_update(&self) -> bool {
        // Linux also stops at its own receive buffer (`virtio_transport_tx_buf_size`), so half of the room may never fill.
        let window = BUF_ALLOC.min(self.peer_buf_alloc);
        let believed_held = self.received.wrapping_sub(self.advertised);
        self.forwarded != self.advertised && believed_held > window / 2
    }

    /// The pair (`buf_alloc`, `fwd_cnt`) for a packet that leaves now.
    pub fn advertise(&mut self) -> (u32, u32) {
        self.advertised = self.forwarded;
        (BUF_ALLOC, self.forwarded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_may_send_exactly_the_room() {
        let mut credit = Credit::default();
        credit.receive(BUF_ALLOC).unwrap();
        assert_eq!(credit.receive(1), Err(CreditViolation::Overrun));
        credit.forward(10);
        assert_eq!(credit.receive(11), Err(CreditViolation::Overrun));
        credit.receive(10).unwrap();
        assert_eq!(credit.held(), BUF_ALLOC);
    }

    #[test]
    fn credit_never_goes_back() {
        let mut credit = Credit::default();
        credit.hear(1000, 0).unwrap();
        credit.send(600);
        credit.hear(1000, 500).unwrap();
        assert_eq!(credit.hear(1000, 499), Err(CreditViolation::FwdCnt));
        assert_eq!(credit.hear(1000, 601), Err(CreditViolation::FwdCnt));
        credit.hear(1000, 600).unwrap();
        assert_eq!(credit.sendable(), 1000);
    }

    #[test]
    fn a_shrunk_peer_buffer_stops_sending() {
        let mut credit = Credit::default();
        credit.hear(1000, 0).unwrap();
        credit.send(600);
        credit.hear(100, 0).unwrap();
        assert_eq!(credit.sendable(), 0);
    }

    #[test]
    fn counters_wrap() {
        let near = u32::MAX - 5;
        let mut credit = Credit {
            received: near,
            forwarded: near,
            advertised: near,
            sent: near,
            peer_fwd_cnt: near,
            peer_buf_alloc: 100,
        };
        credit.receive(50).unwrap();
        assert_eq!(credit.held(), 50);
        credit.forward(50);
        assert_eq!((credit.held(), credit.advertise().1), (0, 44));
        credit.send(80);
        assert_eq!(credit.sendable(), 20);
        credit.hear(100, 74).unwrap();
        assert_eq!(credit.sendable(), 100);
    }

    #[test]
    fn updates_come_when_half_is_believed_full() {
        let mut credit = Credit::default();
        credit.hear(u32::MAX, 0).unwrap();
        credit.receive(BUF_ALLOC / 2).unwrap();
        credit.forward(BUF_ALLOC / 2);
        assert!(!credit.wants_update());
        credit.receive(1).unwrap();
        assert!(credit.wants_update());
        credit.advertise();
        assert!(!credit.wants_update());
    }

    #[test]
    fn a_guest_with_a_smaller_buffer_hears_sooner() {
        let mut credit = Credit::default();
        credit.hear(1000, 0).unwrap();
        credit.receive(501).unwrap();
        assert!(!credit.wants_update());
        credit.forward(1);
        assert!(credit.wants_update());
    }
}
