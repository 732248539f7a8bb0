//! The guest's CPUs: all that the machine has are there from boot on, and as many as the pod may use are online.

use std::fs;
use std::io;
use std::path::Path;

/// Where the kernel shows them.
pub(super) const DEVICES: &str = "/sys/devices/system/cpu";

/// Takes the lowest CPUs online and the others offline, until `wanted` are online; gives how many are.
pub(super) fn set_online(devices: &Path, wanted: u32) -> io::Result<u32> {
    let present = count(&fs::read_to_string(devices.join("present"))?)?;
    if !(1..=present).contains(&wanted) {
        let what = format!("the machine has {present}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    // The first one cannot be switched: the kernel has no file for it.
    for cpu in 1..present {
        let file = devices.join(format!("cpu{cpu}/online"));
        let state = if cpu < wanted { "1" } else { "0" };
        if fs::read_to_string(&file)?.trim() != state {
            fs::write(&file, state)?;
        }
    }
    count(&fs::read_to_string(devices.join("online"))?)
}

/// Of a list as the kernel writes it, "0-2,5".
fn count(list: &str) -> io::Result<u32> {
    let bad = || io::Error::new(io::ErrorKind::InvalidData, format!("{:?} is no list of CPUs", list.trim()));
    let number = |text: &str| text.parse::<u32>().map_err(|_| bad());
    list.trim().split(',').try_fold(0_u32, |sum, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let more = number(last)?.checked_sub(number(first)?).and_then(|span| span.checked_add(1)).ok_or_else(bad)?;
        sum.checked_add(more).ok_or_else(bad)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_counted() {
        for (list, cpus) in [("0\n", 1), ("0-3\n", 4), ("0,2-3\n", 3)] {
            assert_eq!(count(list).unwrap(), cpus);
        }
        for list in ["", "a", "3-1", "0-4294967295"] {
            assert!(count(list).is_err(), "{list}");
        }
    }

    #[test]
    fn the_lowest_are_online() {
        let directory = tempfile::tempdir().unwrap();
        let devices = directory.path();
        fs::write(devices.join("present"), "0-3\n").unwrap();
        fs::write(devices.join("online"), "0-1\n").unwrap();
        for cpu in 1..4 {
            fs::create_dir(devices.join(format!("cpu{cpu}"))).unwrap();
            fs::write(devices.join(format!("cpu{cpu}/online")), if cpu == 3 { "1\n" } else { "0\n" }).unwrap();
        }
        set_online(devices, 2).unwrap();
        let states: Vec<_> =
            (1..4).map(|cpu| fs::read_to_string(devices.join(format!("cpu{cpu}/online"))).unwrap()).collect();
        assert_eq!(states, ["1", "0\n", "0"]);
        for wrong in [0, 5] {
            assert!(set_online(devices, wrong).unwrap_err().to_string().contains("has 4"));
        }
    }
}
