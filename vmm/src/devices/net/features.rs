//! Feature bits (5.1.3) and what they mean to a tap.

use crate::devices::RING_FEATURES;

pub const CSUM: u64 = 1 << 0;
pub const GUEST_CSUM: u64 = 1 << 1;
pub const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
pub const MTU: u64 = 1 << 3;
pub const MAC: u64 = 1 << 5;
pub const GUEST_TSO4: u64 = 1 << 7;
pub const GUEST_TSO6: u64 = 1 << 8;
pub const GUEST_ECN: u64 = 1 << 9;
pub const GUEST_UFO: u64 = 1 << 10;
pub const HOST_TSO4: u64 = 1 << 11;
pub const HOST_TSO6: u64 = 1 << 12;
pub const HOST_ECN: u64 = 1 << 13;
pub const HOST_UFO: u64 = 1 << 14;
pub const MRG_RXBUF: u64 = 1 << 15;
pub const STATUS: u64 = 1 << 16;
pub const CTRL_VQ: u64 = 1 << 17;
pub const MQ: u64 = 1 << 22;
pub const CTRL_MAC_ADDR: u64 = 1 << 23;
pub const GUEST_USO4: u64 = 1 << 54;
pub const GUEST_USO6: u64 = 1 << 55;
pub const HOST_USO: u64 = 1 << 56;

/// What the driver may switch while it runs (CTRL_GUEST_OFFLOADS).
pub const GUEST_OFFLOADS: u64 = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_UFO | GUEST_USO4 | GUEST_USO6;

/// With any of these, frames for the guest may have 64 KiB.
pub const GUEST_LARGE: u64 = GUEST_TSO4 | GUEST_TSO6 | GUEST_UFO | GUEST_USO4 | GUEST_USO6;

const TUN_F_CSUM: u32 = 0x01;
const TUN_F_TSO4: u32 = 0x02;
const TUN_F_TSO6: u32 = 0x04;
const TUN_F_TSO_ECN: u32 = 0x08;
const TUN_F_UFO: u32 = 0x10;
/// TUN_F_USO4 and TUN_F_USO6, which the kernel takes together only.
pub const TUN_F_USO: u32 = 0x20 | 0x40;
/// What every tap takes.
pub const TUN_F_PROBE: u32 = TUN_F_CSUM | TUN_F_USO;

/// Offered whatever the configuration.
pub const BASE: u64 = RING_FEATURES
    | CSUM
    | GUEST_CSUM
    | GUEST_TSO4
    | GUEST_TSO6
    | GUEST_ECN
    | GUEST_UFO
    | HOST_TSO4
    | HOST_TSO6
    | HOST_ECN
    | HOST_UFO
    | MRG_RXBUF
    | STATUS
    | CTRL_VQ
    | CTRL_GUEST_OFFLOADS
    | CTRL_MAC_ADDR;

/// Offered where the tap can.
pub const USO: u64 = GUEST_USO4 | GUEST_USO6 | HOST_USO;

/// TUNSETOFFLOAD's flags for what the guest can receive. Segments need checksums (5.1.3.1), whatever the driver accepted.
pub fn tap_offloads(features: u64) -> u32 {
    if features & GUEST_CSUM == 0 {
        return 0;
    }
    let has = |bits: u64, flag: u32| if features & bits == bits { flag } else { 0 };
    let segments = has(GUEST_TSO4, TUN_F_TSO4) | has(GUEST_TSO6, TUN_F_TSO6);
    let ecn = if segments == 0 { 0 } else { has(GUEST_ECN, TUN_F_TSO_ECN) };
    TUN_F_CSUM | segments | ecn | has(GUEST_UFO, TUN_F_UFO) | has(GUEST_USO4 | GUEST_USO6, TUN_F_USO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offloads_follow_what_the_guest_takes() {
        assert_eq!(tap_offloads(0), 0);
        assert_eq!(tap_offloads(GUEST_TSO4 | GUEST_USO4), 0);
        assert_eq!(tap_offloads(GUEST_CSUM), TUN_F_CSUM);
        assert_eq!(tap_offloads(GUEST_CSUM | GUEST_ECN), TUN_F_CSUM);
        assert_eq!(tap_offloads(GUEST_CSUM | GUEST_TSO6 | GUEST_ECN), TUN_F_CSUM | TUN_F_TSO6 | TUN_F_TSO_ECN);
        assert_eq!(tap_offloads(GUEST_CSUM | GUEST_USO4), TUN_F_CSUM);
        assert_eq!(tap_offloads(GUEST_OFFLOADS), 0x7f);
        assert_eq!(tap_offloads(HOST_TSO4 | CSUM), 0);
    }
}
