//! Huge pages of the host below what every guest touches: one fault where there were 512, and one entry of the processor's
//! tables.
#![allow(unsafe_code)]

use vm_memory::{Address, Bytes, GuestAddress, GuestMemory, GuestMemoryRegion};

use super::layout::HUGE_PAGE;
use crate::devices::GuestRam;

/// Backs `address` to `end` with huge pages, as far as they lie in the guest's memory and before anything is in it. A host
/// that has none, or none left, does as it did before: that is slower, and no error.
pub fn prefer(ram: &GuestRam, address: u64, end: u64) {
    let end = end.min(ram.last_addr().raw_value());
    for page in (address / HUGE_PAGE * HUGE_PAGE..end).step_by(HUGE_PAGE as usize) {
        let Some(region) = ram.find_region(GuestAddress(page)) else { continue };
        if region.last_addr().raw_value() < page + (HUGE_PAGE - 1) || !collapse(ram, page) {
            return;
        }
    }
}

/// The kernel makes a huge page of one that has something in it already, whatever it does with huge pages by itself.
fn collapse(ram: &GuestRam, page: u64) -> bool {
    if ram.write_obj(0_u64, GuestAddress(page)).is_err() {
        return false;
    }
    let Ok(slice) = ram.get_slice(GuestAddress(page), HUGE_PAGE as usize) else { return false };
    let guard = slice.ptr_guard_mut();
    // SAFETY: the range is guest memory that stays mapped while `ram` is borrowed. Its contents stay the same.
    unsafe { libc::madvise(guard.as_ptr().cast(), guard.len(), libc::MADV_COLLAPSE) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_outside_or_has_no_huge_pages_stays_as_it_is() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 3 << 20)]).unwrap();
        prefer(&ram, 0x10_0000, u64::MAX / 2);
        prefer(&ram, 0x10_0000, 4 << 20);
        ram.write_obj(7_u64, GuestAddress(0x10_0000)).unwrap();
        assert_eq!(ram.read_obj::<u64>(GuestAddress(0x10_0000)).unwrap(), 7);
    }
}
