//! The devices' registers by address.

use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use crate::boot::layout::{MMIO, MMIO_SIZE};
use crate::mmio::Transport;

/// Each device has a page of its own, one behind the other.
#[derive(Debug, Default)]
pub struct Bus(RwLock<Vec<Mutex<Transport>>>);

impl Bus {
    /// In the order of their addresses.
    #[must_use]
    pub fn new(devices: Vec<Transport>) -> Self {
        Self(RwLock::new(devices.into_iter().map(Mutex::new).collect()))
    }

    /// A load: all ones where there is nothing.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        let devices = self.devices();
        match find(&devices, address) {
            Some((mut device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A store.
    pub fn write(&self, address: u64, data: &[u8]) {
        let devices = self.devices();
        if let Some((mut device, offset)) = find(&devices, address) {
            device.write(offset, data);
        }
    }

    /// Ends all devices' threads.
    pub fn stop(&self) {
        self.devices().iter().for_each(|device| lock(device).stop());
    }

    /// Drops all devices.
    pub fn release(&self) {
        let devices = std::mem::take(&mut *self.0.write().unwrap_or_else(PoisonError::into_inner));
        drop(devices);
    }

    fn devices(&self) -> RwLockReadGuard<'_, Vec<Mutex<Transport>>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn find(devices: &[Mutex<Transport>], address: u64) -> Option<(MutexGuard<'_, Transport>, u64)> {
    let at = address.checked_sub(MMIO)?;
    let device = devices.get(usize::try_from(at / MMIO_SIZE).ok()?)?;
    Some((lock(device), at % MMIO_SIZE))
}

fn lock(device: &Mutex<Transport>) -> MutexGuard<'_, Transport> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}
