//! The tap that a guest's network card is connected to: persistent, so that monitors find it by name.
#![allow(unsafe_code)]

use std::fs::File;
use std::time::Duration;

use anyhow::{Context, Result};
use bulkhead_tests::command;
use rustix::ioctl::{Setter, ioctl, opcode};

/// Its name on this machine.
pub const NAME: &str = "benchvmm0";
/// This machine's address; the guest's is the next.
pub const ADDRESS: &str = "192.0.2.1/24";

const TUNSETIFF: rustix::ioctl::Opcode = opcode::write::<i32>(b'T', 202);
const IFF_TAP: u16 = 0x2;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const IFREQ_LEN: usize = 40;

/// Removed when dropped.
#[derive(Debug)]
pub struct Tap;

impl Tap {
    /// Makes it and gives this machine its address.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn new() -> Result<Self> {
        ip(&["tuntap", "add", "dev", NAME, "mode", "tap", "vnet_hdr"])?;
        let tap = Self;
        ip(&["address", "add", ADDRESS, "dev", NAME])?;
        ip(&["link", "set", NAME, "up"])?;
        Ok(tap)
    }

    /// A descriptor of it, as the daemon hands one to bulkhead-vmm.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(&self) -> Result<File> {
        let file = File::options().read(true).write(true).open("/dev/net/tun").context("cannot open /dev/net/tun")?;
        let mut request = [0; IFREQ_LEN];
        request[..NAME.len()].copy_from_slice(NAME.as_bytes());
        request[16..18].copy_from_slice(&(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR).to_ne_bytes());
        // SAFETY: TUNSETIFF reads one `ifreq`, 40 bytes on x86-64, which `request` is.
        unsafe { ioctl(&file, Setter::<TUNSETIFF, [u8; IFREQ_LEN]>::new(request)) }.context("TUNSETIFF")?;
        Ok(file)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if let Err(error) = ip(&["link", "delete", NAME]) {
            eprintln!("bench-vmm: {error:#}");
        }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    command::run("ip", arguments, Duration::from_secs(30))?.success().map(drop)
}
