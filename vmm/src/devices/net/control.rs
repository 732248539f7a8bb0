//! The control queue (5.1.6.5): queue pairs, offloads, MAC address.

use virtio_queue::{Queue, QueueT};

use super::NetDevice;
use super::features::{CTRL_GUEST_OFFLOADS, CTRL_MAC_ADDR, GUEST_OFFLOADS, MQ};
use crate::devices::chain::Buffers;
use crate::devices::queue::{self, Batch};
use crate::devices::slices::GuestSlices;
use crate::devices::{BrokenQueue, GuestRam};

/// VIRTIO_NET_OK.
const OK: u8 = 0;
/// VIRTIO_NET_ERR.
const ERROR: u8 = 1;

/// (class, command) of VIRTIO_NET_CTRL_*.
const MAC_ADDR_SET: [u8; 2] = [1, 1];
const MQ_VQ_PAIRS_SET: [u8; 2] = [4, 0];
const GUEST_OFFLOADS_SET: [u8; 2] = [5, 0];

impl NetDevice {
    /// Obeys what the driver has asked for, at most a queue's worth.
    ///
    /// # Errors
    /// When the queue cannot be used any more.
    pub fn process_control(&self, ram: &GuestRam, control: &mut Queue, index: usize) -> Result<Batch, BrokenQueue> {
        let before = control.next_used();
        let mut more = true;
        for _ in 0..control.size() {
            let Some(chain) = queue::pop(ram, control, index)? else {
                if queue::enable_notification(ram, control, index)? {
                    continue;
                }
                more = false;
                break;
            };
            let head = chain.head_index();
            let written = match Buffers::parse(ram, chain) {
                Ok(buffers) => {
                    let obeyed = self.obey(&buffers.readable);
                    let answer = if obeyed { OK } else { ERROR };
                    u32::from(buffers.writable.write_all(&[answer]))
                }
                Err(error) => {
                    self.complain("a command of the guest", error);
                    0
                }
            };
            queue::give_back(ram, control, index, head, written)?;
        }
        Ok(Batch { notify: queue::needs_notification_since(ram, control, index, before)?, more })
    }

    fn obey(&self, command: &GuestSlices<'_>) -> bool {
        let Some(kind) = read::<2>(command, 0) else {
            return false;
        };
        match kind {
            MAC_ADDR_SET if self.accepted(CTRL_MAC_ADDR) => match read::<6>(command, 2) {
                // Neither a group's address nor none at all.
                Some(mac) if mac[0] & 1 == 0 && mac != [0; 6] => {
                    self.set_mac(mac);
                    true
                }
                _ => false,
            },
            MQ_VQ_PAIRS_SET if self.accepted(MQ) => {
                let pairs = read::<2>(command, 2).map(u16::from_le_bytes);
                let pairs = pairs.filter(|pairs| (1..=self.pairs()).contains(pairs));
                pairs.is_some_and(|pairs| self.try_to("steer flows", self.set_active_pairs(pairs)))
            }
            GUEST_OFFLOADS_SET if self.accepted(CTRL_GUEST_OFFLOADS) => {
                let offloads = read::<8>(command, 2).map(u64::from_le_bytes);
                let offloads = offloads.filter(|offloads| offloads & !(self.acked_features() & GUEST_OFFLOADS) == 0);
                offloads.is_some_and(|offloads| self.try_to("switch offloads", self.set_offloads(offloads)))
            }
            _ => false,
        }
    }

    fn try_to(&self, what: &str, result: std::io::Result<()>) -> bool {
        if let Err(error) = &result {
            self.complain("a command of the guest", format_args!("cannot {what}: {error}"));
        }
        result.is_ok()
    }
}

fn read<const N: usize>(command: &GuestSlices<'_>, at: usize) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    command.range(at, N).read_exact(&mut bytes).then_some(bytes)
}
