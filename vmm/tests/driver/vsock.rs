//! A vsock driver: packets put together and taken apart on their own terms.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bulkhead_vmm::devices::GuestRam;
use bulkhead_vmm::devices::vsock::{VsockConfig, VsockDevice, VsockHandle};
use rustix::event::{PollFd, PollFlags, Timespec};
use virtio_queue::Queue;
use vm_memory::{Bytes, GuestAddress};

use super::{BUFFERS, Ring, readable, writable};

pub const REQUEST: u16 = 1;
pub const RESPONSE: u16 = 2;
pub const RST: u16 = 3;
pub const SHUTDOWN: u16 = 4;
pub const RW: u16 = 5;
pub const CREDIT_UPDATE: u16 = 6;
pub const CREDIT_REQUEST: u16 = 7;

pub const GUEST_CID: u64 = 3;
const QUEUE_SIZE: u16 = 128;
const RX_BUFFER: u32 = 4096;
const TX_AREA: u64 = BUFFERS + QUEUE_SIZE as u64 * RX_BUFFER as u64;
/// Longest a test waits for something that must happen.
const PATIENCE: Duration = Duration::from_secs(10);

/// A packet's header and payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
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
    pub payload: Vec<u8>,
}

impl Packet {
    /// From a port of the guest to one of the host, by a guest with 1 MiB of room that has taken nothing yet.
    pub fn new(op: u16, guest_port: u32, host_port: u32) -> Self {
        Self {
            src_cid: GUEST_CID,
            dst_cid: 2,
            src_port: guest_port,
            dst_port: host_port,
            len: 0,
            kind: 1,
            op,
            flags: 0,
            buf_alloc: 1 << 20,
            fwd_cnt: 0,
            payload: Vec::new(),
        }
    }

    pub fn data(guest_port: u32, host_port: u32, payload: &[u8]) -> Self {
        Self { len: payload.len() as u32, payload: payload.to_vec(), ..Self::new(RW, guest_port, host_port) }
    }

    pub fn header(&self) -> [u8; 44] {
        let mut bytes = Vec::new();
        bytes.extend(self.src_cid.to_le_bytes());
        bytes.extend(self.dst_cid.to_le_bytes());
        bytes.extend(self.src_port.to_le_bytes());
        bytes.extend(self.dst_port.to_le_bytes());
        bytes.extend(self.len.to_le_bytes());
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.op.to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(self.buf_alloc.to_le_bytes());
        bytes.extend(self.fwd_cnt.to_le_bytes());
        bytes.try_into().unwrap()
    }

    fn parse(bytes: &[u8]) -> Self {
        let u16_at = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        Self {
            src_cid: u64_at(0),
            dst_cid: u64_at(8),
            src_port: u32_at(16),
            dst_port: u32_at(20),
            len: u32_at(24),
            kind: u16_at(28),
            op: u16_at(30),
            flags: u32_at(32),
            buf_alloc: u32_at(36),
            fwd_cnt: u32_at(40),
            payload: bytes[44..].to_vec(),
        }
    }
}

/// A device and its driver.
pub struct Rig {
    pub ram: GuestRam,
    pub device: VsockDevice,
    pub handle: VsockHandle,
    pub rx: Ring,
    pub tx: Ring,
    pub rx_queue: Queue,
    pub tx_queue: Queue,
    pub directory: tempfile::TempDir,
}

impl Rig {
    /// With receive buffers for a whole queue.
    pub fn new() -> Self {
        let mut rig = Self::without_buffers(Duration::from_millis(300));
        for slot in 0..QUEUE_SIZE {
            rig.give_buffer(slot);
        }
        rig
    }

    pub fn without_buffers(connect_timeout: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listen_path = Some(directory.path().join("vsock"));
        let config = VsockConfig { guest_cid: GUEST_CID, listen_path, connect_timeout };
        let (device, handle) = VsockDevice::new(config).unwrap();
        let (rx, tx) = (Ring::new(0x1_0000, QUEUE_SIZE), Ring::new(0x2_0000, QUEUE_SIZE));
        let (rx_queue, tx_queue) = (rx.queue(), tx.queue());
        Self { ram: super::ram(), device, handle, rx, tx, rx_queue, tx_queue, directory }
    }

    /// Offers the receive buffer with this number.
    pub fn give_buffer(&mut self, slot: u16) {
        let address = BUFFERS + u64::from(slot) * u64::from(RX_BUFFER);
        self.rx.describe(&self.ram, slot, writable(address, RX_BUFFER), 0);
        self.rx.offer(&self.ram, slot);
    }

    /// Puts a packet in the transmit queue, in two descriptors as Linux does, without running the device.
    pub fn queue_packet(&mut self, packet: &Packet) {
        let header = TX_AREA + u64::from(self.tx_slot()) * 0x1_0080;
        let payload = header + 0x80;
        self.ram.write_slice(&packet.header(), GuestAddress(header)).unwrap();
        self.ram.write_slice(&packet.payload, GuestAddress(payload)).unwrap();
        let mut buffers = vec![readable(header, 44)];
        if !packet.payload.is_empty() {
            buffers.push(readable(payload, packet.payload.len() as u32));
        }
        self.tx.submit(&self.ram, &buffers);
    }

    /// Packets in flight have memory of their own; more than 32 at once must be short.
    fn tx_slot(&self) -> u16 {
        self.tx.next_descriptor % 32
    }

    /// Sends a packet and returns what the device sent back.
    pub fn send(&mut self, packet: &Packet) -> Vec<Packet> {
        self.queue_packet(packet);
        self.run()
    }

    /// Lets the device do everything it can, and takes its packets.
    pub fn run(&mut self) -> Vec<Packet> {
        let mut packets = Vec::new();
        for _ in 0..100_000 {
            self.device.process_host();
            self.device.process_tx(&self.ram, &mut self.tx_queue).unwrap();
            self.device.process_rx(&self.ram, &mut self.rx_queue).unwrap();
            while self.tx.used(&self.ram).is_some() {}
            let got = self.receive();
            let idle = got.is_empty() && !self.device.has_more_work();
            packets.extend(got);
            if idle {
                return packets;
            }
        }
        panic!("the device never comes to rest");
    }

    /// Takes filled receive buffers and offers them again.
    pub fn receive(&mut self) -> Vec<Packet> {
        let mut packets = Vec::new();
        while let Some((slot, len)) = self.rx.used(&self.ram) {
            let mut bytes = vec![0; len as usize];
            let address = BUFFERS + u64::from(slot) * u64::from(RX_BUFFER);
            self.ram.read_slice(&mut bytes, GuestAddress(address)).unwrap();
            if len >= 44 {
                packets.push(Packet::parse(&bytes));
            }
            self.give_buffer(slot as u16);
        }
        packets
    }

    /// Runs the device until `done` returns something.
    pub fn wait<T>(&mut self, mut done: impl FnMut(Vec<Packet>) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            let packets = self.run();
            if let Some(value) = done(packets) {
                return value;
            }
            assert!(Instant::now() < end, "nothing happened for {PATIENCE:?}");
            self.poll(Duration::from_millis(20));
        }
    }

    /// Whether something happens on the host's side within the time.
    pub fn poll(&self, at_most: Duration) -> bool {
        let fd = self.device.host_events();
        let timeout = Timespec { tv_sec: at_most.as_secs() as i64, tv_nsec: at_most.subsec_nanos().into() };
        rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).unwrap() == 1
    }

    /// A connection that the guest makes to an in-process listener.
    pub fn guest_connects(&mut self, guest_port: u32, host_port: u32) -> UnixStream {
        let mut listener = self.handle.listen(host_port).unwrap();
        let answer = self.send(&Packet::new(REQUEST, guest_port, host_port));
        assert_eq!(ops(&answer), [RESPONSE]);
        assert_eq!((answer[0].src_port, answer[0].dst_port), (host_port, guest_port));
        listener.try_recv().unwrap()
    }

    /// A connection that a client of the listening socket makes; the stream and the host's port.
    pub fn client_connects(&mut self, guest_port: u32) -> (UnixStream, u32) {
        let mut client = self.client(&format!("CONNECT {guest_port}\n"));
        let request = self.wait(|packets| packets.into_iter().next());
        assert_eq!((request.op, request.dst_port), (REQUEST, guest_port));
        let host_port = request.src_port;
        self.send(&Packet::new(RESPONSE, guest_port, host_port));
        assert_eq!(read_line(&mut client), format!("OK {host_port}\n"));
        (client, host_port)
    }

    /// A client that has sent its first bytes.
    pub fn client(&self, first: &str) -> UnixStream {
        use io::Write;
        let mut client = UnixStream::connect(self.directory.path().join("vsock")).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(first.as_bytes()).unwrap();
        client
    }
}

/// The operations of some packets.
pub fn ops(packets: &[Packet]) -> Vec<u16> {
    packets.iter().map(|packet| packet.op).collect()
}

/// All payload of some packets.
pub fn payload(packets: &[Packet]) -> Vec<u8> {
    packets.iter().flat_map(|packet| packet.payload.iter().copied()).collect()
}

/// Up to a line's end, and no byte more.
pub fn read_line(stream: &mut UnixStream) -> String {
    use io::Read;
    let mut line = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" && stream.read(&mut byte).unwrap() == 1 {
        line.extend(byte);
    }
    String::from_utf8(line).unwrap()
}

/// Everything that can be read now, from a non-blocking stream.
pub fn read_available(stream: &mut UnixStream) -> Vec<u8> {
    use io::Read;
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => bytes,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => bytes,
        Err(error) => panic!("{error}"),
    }
}
