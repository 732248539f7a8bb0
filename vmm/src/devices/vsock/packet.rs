//! The header of a vsock packet (virtio 1.2, section 5.10.6).

use crate::devices::slices::GuestSlices;

/// Bytes of a header.
pub const HEADER_LEN: usize = 44;
/// Most payload in one packet.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// The host's context id.
pub const HOST_CID: u64 = 2;
/// VIRTIO_VSOCK_TYPE_STREAM.
pub const TYPE_STREAM: u16 = 1;
/// The sender of SHUTDOWN will not receive any more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// The sender of SHUTDOWN will not send any more.
pub const SHUTDOWN_SEND: u32 = 2;
/// Both.
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// VIRTIO_VSOCK_OP_*.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    Request = 1,
    Response = 2,
    Reset = 3,
    Shutdown = 4,
    Data = 5,
    CreditUpdate = 6,
    CreditRequest = 7,
}

impl Op {
    fn from_u16(value: u16) -> Option<Self> {
        Some(match value {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

/// A header, as it was read once from guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

impl Header {
    /// The header at the start of the buffers; `None` when they are too short.
    pub fn read(buffers: &GuestSlices<'_>) -> Option<Self> {
        let mut bytes = [0_u8; HEADER_LEN];
        buffers.read_exact(&mut bytes).then(|| Self::decode(&bytes))
    }

    fn decode(bytes: &[u8; HEADER_LEN]) -> Self {
        Self {
            src_cid: u64::from_le_bytes(field(bytes, 0)),
            dst_cid: u64::from_le_bytes(field(bytes, 8)),
            src_port: u32::from_le_bytes(field(bytes, 16)),
            dst_port: u32::from_le_bytes(field(bytes, 20)),
            len: u32::from_le_bytes(field(bytes, 24)),
            kind: u16::from_le_bytes(field(bytes, 28)),
            op: u16::from_le_bytes(field(bytes, 30)),
            flags: u32::from_le_bytes(field(bytes, 32)),
            buf_alloc: u32::from_le_bytes(field(bytes, 36)),
            fwd_cnt: u32::from_le_bytes(field(bytes, 40)),
        }
    }

    /// The header's bytes in guest memory.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0_u8; HEADER_LEN];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &self.src_cid.to_le_bytes());
        put(8, &self.dst_cid.to_le_bytes());
        put(16, &self.src_port.to_le_bytes());
        put(20, &self.dst_port.to_le_bytes());
        put(24, &self.len.to_le_bytes());
        put(28, &self.kind.to_le_bytes());
        put(30, &self.op.to_le_bytes());
        put(32, &self.flags.to_le_bytes());
        put(36, &self.buf_alloc.to_le_bytes());
        put(40, &self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// What the packet is about; `None` for numbers the specification does not know.
    pub fn op(&self) -> Option<Op> {
        Op::from_u16(self.op)
    }

    /// The reset that answers this packet.
    pub fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: Op::Reset as u16,
            ..Self::default()
        }
    }
}

/// `N` bytes at a constant offset inside the header.
fn field<const N: usize>(bytes: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    let mut value = [0_u8; N];
    value.copy_from_slice(&bytes[at..at + N]);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_a_round_trip() {
        let header = Header {
            src_cid: 3,
            dst_cid: HOST_CID,
            src_port: 0x0102_0304,
            dst_port: 1024,
            len: 77,
            kind: TYPE_STREAM,
            op: Op::Data as u16,
            flags: SHUTDOWN_BOTH,
            buf_alloc: 65536,
            fwd_cnt: u32::MAX,
        };
        assert_eq!(Header::decode(&header.encode()), header);
        assert_eq!(header.encode()[28..32], [1, 0, 5, 0]);
    }

    #[test]
    fn a_reset_goes_back_where_the_packet_came_from() {
        let header = Header { src_cid: 3, dst_cid: 9, src_port: 1, dst_port: 2, kind: 7, op: 1, ..Header::default() };
        let reset = header.reset();
        assert_eq!((reset.src_cid, reset.dst_cid, reset.src_port, reset.dst_port), (9, 3, 2, 1));
        assert_eq!((reset.op(), reset.kind), (Some(Op::Reset), 7));
    }

    #[test]
    fn unknown_operations_have_no_name() {
        for op in [0, 8, 0xffff] {
            assert_eq!(Header { op, ..Header::default() }.op(), None);
        }
    }
}
