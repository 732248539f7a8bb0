//! A network driver, and a wire of two sockets in the place of a tap.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI8, AtomicU32, Ordering};

use bulkhead_vmm::devices::GuestRam;
use bulkhead_vmm::devices::net::{NetBackend, NetConfig, NetDevice, NetPair};
use bulkhead_vmm::devices::slices::GuestSlices;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use virtio_queue::Queue;
use vm_memory::{Bytes, GuestAddress};

use super::{BUFFERS, Ring, readable, writable};

pub const HEADER: usize = 12;
/// Room for one frame from the guest each, behind the receive buffers.
pub const TX_AREA: u64 = BUFFERS + (2 << 20);
const TX_STRIDE: u64 = 0x2_0000;

/// The device's end of a wire.
#[derive(Debug)]
pub struct Wire {
    fd: OwnedFd,
    pub shared: Arc<Shared>,
}

/// What the device did to a wire.
#[derive(Debug)]
pub struct Shared {
    pub offloads: AtomicU32,
    /// -1 until it is said.
    pub attached: AtomicI8,
}

/// A wire's ends: the device's, the host's, and what happens to the former.
pub fn wire() -> (Wire, OwnedFd, Arc<Shared>) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    for end in [&ours, &theirs] {
        sockopt::set_socket_send_buffer_size(end, 1 << 20).unwrap();
    }
    let shared = Arc::new(Shared { offloads: AtomicU32::new(u32::MAX), attached: AtomicI8::new(-1) });
    (Wire { fd: ours, shared: shared.clone() }, theirs, shared)
}

impl NetBackend for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn receive(&self, buffers: &GuestSlices<'_>) -> io::Result<usize> {
        match buffers.read_once(self.fd.as_fd())? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            len => Ok(len),
        }
    }

    fn send(&self, frame: &GuestSlices<'_>) -> io::Result<()> {
        frame.write_once(self.fd.as_fd()).map(drop)
    }

    fn segments_udp(&self) -> bool {
        true
    }

    fn set_offloads(&self, flags: u32) -> io::Result<()> {
        self.shared.offloads.store(flags, Ordering::SeqCst);
        Ok(())
    }

    fn set_attached(&self, attached: bool) -> io::Result<()> {
        self.shared.attached.store(attached.into(), Ordering::SeqCst);
        Ok(())
    }
}

/// Puts a frame on the wire from the host's end; false when it is full.
pub fn put(host: &OwnedFd, frame: &[u8]) -> bool {
    rustix::net::send(host, frame, SendFlags::NOSIGNAL).is_ok()
}

/// Takes a frame off the wire at the host's end.
pub fn take(host: &OwnedFd) -> Option<Vec<u8>> {
    let mut frame = vec![0; 1 << 17];
    let (count, _) = rustix::net::recv(host, &mut frame[..], RecvFlags::empty()).ok()?;
    frame.truncate(count);
    (count > 0).then_some(frame)
}

/// A frame with a header of zeros and bytes that differ.
pub fn frame(len: usize) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame.extend((0..len).map(|at| (at % 251) as u8));
    frame
}

pub fn config() -> NetConfig {
    NetConfig {
        name: "net0".into(),
        mac: Some([0x52, 0x54, 0, 1, 2, 3]),
        mtu: Some(1450),
        rx_limits: Default::default(),
        tx_limits: Default::default(),
    }
}

/// One pair of a device, and its driver.
pub struct Rig {
    pub ram: GuestRam,
    pub device: Arc<NetDevice>,
    pub pair: NetPair,
    pub rx: Ring,
    pub tx: Ring,
    pub rx_queue: Queue,
    pub tx_queue: Queue,
    sent: u16,
}

impl Rig {
    pub fn new(backend: impl NetBackend + 'static, config: NetConfig, features: u64) -> Self {
        let device = Arc::new(NetDevice::new(vec![Box::new(backend)], config));
        device.set_acked_features(features & device.features()).unwrap();
        let (rx, tx) = (Ring::new(0x1_0000, 64), Ring::new(0x2_0000, 64));
        let (rx_queue, tx_queue) = (rx.queue(), tx.queue());
        let pair = NetPair::new(device.clone(), 0);
        Self { ram: super::ram(), device, pair, rx, tx, rx_queue, tx_queue, sent: 0 }
    }

    /// Offers receive buffers of this length.
    pub fn give(&mut self, slots: std::ops::Range<u16>, len: u32) {
        for slot in slots {
            self.rx.describe(&self.ram, slot, writable(BUFFERS + u64::from(slot) * u64::from(len), len), 0);
            self.rx.offer(&self.ram, slot);
        }
    }

    /// Takes a received frame out of buffers of this length: its bytes, and the slots.
    pub fn received(&mut self, len: u32) -> Option<(Vec<u8>, Vec<u32>)> {
        let (mut frame, mut slots) = (Vec::new(), Vec::new());
        let mut expected = 1;
        while slots.len() < expected {
            let (slot, written) = self.rx.used(&self.ram)?;
            let mut piece = vec![0; written as usize];
            self.ram.read_slice(&mut piece, GuestAddress(BUFFERS + u64::from(slot) * u64::from(len))).unwrap();
            frame.extend(piece);
            slots.push(slot);
            if slots.len() == 1 && written >= HEADER as u32 {
                expected = usize::from(u16::from_le_bytes([frame[10], frame[11]]));
            }
        }
        Some((frame, slots))
    }

    /// Queues a frame in two pieces, header and rest.
    pub fn queue_frame(&mut self, frame: &[u8]) {
        let at = TX_AREA + u64::from(self.sent % 8) * TX_STRIDE;
        self.sent += 1;
        self.ram.write_slice(frame, GuestAddress(at)).unwrap();
        let header = frame.len().min(HEADER) as u32;
        let mut chain = vec![readable(at, header)];
        if frame.len() > HEADER {
            chain.push(readable(at + u64::from(header), frame.len() as u32 - header));
        }
        self.tx.submit(&self.ram, &chain);
    }
}
