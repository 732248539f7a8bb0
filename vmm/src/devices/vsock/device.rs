//! The virtio-vsock device: queues on one side, the multiplexer on the other.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use virtio_queue::{Queue, QueueT};

use super::handle::{Shared, VsockHandle};
use super::mux::Mux;
use super::packet::{HEADER_LEN, Header};
use crate::devices::chain::Buffers;
use crate::devices::{BrokenQueue, GuestRam, RING_FEATURES, queue};

/// Index of the queue that carries packets to the guest.
pub const RX_QUEUE: usize = 0;
/// Index of the queue that carries packets from the guest.
pub const TX_QUEUE: usize = 1;
/// Index of the queue for events.
pub const EVENT_QUEUE: usize = 2;

/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET, as it stands in guest memory.
const EVENT_TRANSPORT_RESET: [u8; 4] = [0; 4];

/// How a guest's sockets reach the host.
#[derive(Debug, Clone)]
pub struct VsockConfig {
    /// The guest's context id, from 3. Each pod has a device of its own, so all may have the same.
    pub guest_cid: u64,
    /// Listening unix socket for connections into the guest, made by the device and removed with it. Connections of the
    /// guest to port P that nobody takes in process go to `<listen_path>_P`. Without it only handles connect.
    pub listen_path: Option<PathBuf>,
    /// How long a guest may take to answer a connection request.
    pub connect_timeout: Duration,
}

/// A virtio socket device. Nothing here waits: the transport calls `process_host` when [`host_events`](Self::host_events)
/// is readable, `process_tx` and `process_rx` when the driver notifies, and both again while
/// [`has_more_work`](Self::has_more_work).
#[derive(Debug)]
pub struct VsockDevice {
    mux: Mux,
    acked_features: u64,
    /// Chains are left in the transmit queue that could be taken now, or once there is room for replies.
    tx_left: bool,
    /// Packets and buffers for them are left.
    rx_left: bool,
    /// The driver must be told that its connections are gone.
    reset_event: bool,
}

impl Drop for VsockDevice {
    /// Also without [`disconnect`](VsockDevice::disconnect): nobody waits for a device that is no more.
    fn drop(&mut self) {
        self.mux.shared.close();
    }
}

impl VsockDevice {
    /// Binds the listening socket. Handles work from now on; what they ask for waits for the guest's driver.
    pub fn new(config: VsockConfig) -> io::Result<(Self, VsockHandle)> {
        let shared = Arc::new(Shared::new()?);
        let handle = VsockHandle { shared: shared.clone() };
        let mux = Mux::new(config, shared)?;
        Ok((Self { mux, acked_features: 0, tx_left: false, rx_left: false, reset_event: false }, handle))
    }

    /// Feature bits offered to the driver.
    #[must_use]
    pub fn features(&self) -> u64 {
        RING_FEATURES
    }

    /// What the driver accepted, also after a restore.
    pub fn set_acked_features(&mut self, features: u64) {
        self.acked_features = features;
    }

    /// What the driver accepted.
    #[must_use]
    pub fn acked_features(&self) -> u64 {
        self.acked_features
    }

    /// `len` bytes of configuration space (the guest's CID) from `offset`; zeros past its end.
    #[must_use]
    pub fn read_config(&self, offset: usize, len: usize) -> Vec<u8> {
        let space = self.mux.config.guest_cid.to_le_bytes();
        (0..len).map(|at| offset.checked_add(at).and_then(|at| space.get(at)).copied().unwrap_or(0)).collect()
    }

    /// Readable when something happened on the host.
    #[must_use]
    pub fn host_events(&self) -> BorrowedFd<'_> {
        self.mux.as_fd()
    }

    /// Number of connections, those that are being made or closed too.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.mux.len()
    }

    /// Takes in what happened on the host.
    pub fn process_host(&mut self) {
        self.mux.poll_host();
    }

    /// Takes packets from the guest, at most a queue's worth. True when the driver wants an interrupt.
    pub fn process_tx(&mut self, ram: &GuestRam, tx: &mut Queue) -> Result<bool, BrokenQueue> {
        let mut taken = false;
        self.tx_left = true;
        for _ in 0..tx.size() {
            if self.mux.is_congested() {
                break;
            }
            let Some(chain) = queue::pop(ram, tx, TX_QUEUE)? else {
                if queue::enable_notification(ram, tx, TX_QUEUE)? {
                    continue;
                }
                self.tx_left = false;
                break;
            };
            let head = chain.head_index();
            match Buffers::parse(ram, chain) {
                Ok(buffers) => match Header::read(&buffers.readable) {
                    Some(header) => self.mux.receive(&header, &buffers.readable.range(HEADER_LEN, usize::MAX)),
                    None => self.mux.complain("a packet shorter than a header"),
                },
                Err(error) => self.mux.complain(format_args!("a descriptor chain: {error}")),
            }
            queue::give_back(ram, tx, TX_QUEUE, head, 0)?;
            taken = true;
        }
        Ok(taken && queue::needs_notification(ram, tx, TX_QUEUE)?)
    }

    /// Sends packets to the guest, at most a queue's worth. True when the driver wants an interrupt.
    pub fn process_rx(&mut self, ram: &GuestRam, rx: &mut Queue) -> Result<bool, BrokenQueue> {
        let mut given = false;
        self.rx_left = false;
        for round in 0..rx.size() {
            if !self.mux.has_outgoing() {
                break;
            }
            let Some(chain) = queue::pop(ram, rx, RX_QUEUE)? else {
                if queue::enable_notification(ram, rx, RX_QUEUE)? {
                    continue;
                }
                break;
            };
            let head = chain.head_index();
            let written = match Buffers::parse(ram, chain) {
                Ok(buffers) if buffers.writable.len() >= HEADER_LEN => self.mux.fill(&buffers.writable),
                Ok(_) => {
                    self.mux.complain("a receive buffer shorter than a header");
                    Some(0)
                }
                Err(error) => {
                    self.mux.complain(format_args!("a descriptor chain: {error}"));
                    Some(0)
                }
            };
            let Some(written) = written else {
                queue::undo_pop(rx);
                break;
            };
            queue::give_back(ram, rx, RX_QUEUE, head, written)?;
            given = true;
            self.rx_left = round + 1 == rx.size() && self.mux.has_outgoing();
        }
        Ok(given && queue::needs_notification(ram, rx, RX_QUEUE)?)
    }

    /// Ends all connections and tells the driver so, for a driver that runs on with another device: after a restore.
    pub fn transport_reset(&mut self) {
        self.reset();
        self.reset_event = true;
    }

    /// Sends the event of `transport_reset`, once. True when the driver wants an interrupt.
    pub fn process_event(&mut self, ram: &GuestRam, events: &mut Queue) -> Result<bool, BrokenQueue> {
        while self.reset_event {
            let Some(chain) = queue::pop(ram, events, EVENT_QUEUE)? else {
                if queue::enable_notification(ram, events, EVENT_QUEUE)? {
                    continue;
                }
                return Ok(false);
            };
            let head = chain.head_index();
            let written =
                Buffers::parse(ram, chain).is_ok_and(|buffers| buffers.writable.write_all(&EVENT_TRANSPORT_RESET));
            self.reset_event = !written;
            queue::give_back(
                ram,
                events,
                EVENT_QUEUE,
                head,
                if written { EVENT_TRANSPORT_RESET.len() as u32 } else { 0 },
            )?;
            if written {
                return queue::needs_notification(ram, events, EVENT_QUEUE);
            }
        }
        Ok(false)
    }

    /// Whether another round of `process_tx` and `process_rx` would find something at once.
    #[must_use]
    pub fn has_more_work(&self) -> bool {
        self.rx_left || (self.tx_left && !self.mux.is_congested())
    }

    /// The driver was reset or replaced: its connections end on the host too.
    pub fn reset(&mut self) {
        self.tx_left = false;
        self.rx_left = false;
        self.mux.driver_reset();
    }

    /// The guest is gone for good: handles fail, the listening socket disappears, connections end. What the guest had
    /// sent is still delivered by [`process_host`](Self::process_host) until [`is_drained`](Self::is_drained).
    pub fn disconnect(&mut self) {
        self.reset();
        self.mux.disconnect();
    }

    /// After `disconnect`: everything the guest sent was taken, or nobody is left to take it.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.mux.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_a_device_that_was_dropped() {
        let config = VsockConfig { guest_cid: 3, listen_path: None, connect_timeout: Duration::from_secs(3600) };
        let (device, handle) = VsockDevice::new(config).unwrap();
        let waiting = {
            let handle = handle.clone();
            std::thread::spawn(move || handle.connect_blocking(1))
        };
        drop(device);
        assert_eq!(waiting.join().unwrap().unwrap_err().kind(), io::ErrorKind::NotConnected);
        assert_eq!(handle.connect_blocking(1).unwrap_err().kind(), io::ErrorKind::NotConnected);
    }
}
