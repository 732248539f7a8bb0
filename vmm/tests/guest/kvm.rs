//! The only program of the guest that kvm_boot boots: tells what it sees, and ends the machine as the command line says.
//! Built by the test with `rustc`, without crates.

use std::fs;
use std::time::Duration;

unsafe extern "C" {
    fn mount(source: *const i8, target: *const i8, kind: *const i8, flags: u64, data: *const i8) -> i32;
    fn reboot(command: i32) -> i32;
    fn ioperm(from: u64, count: u64, on: i32) -> i32;
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn power_off() {
    unsafe {
        assert_eq!(ioperm(0x604, 2, 1), 0);
        std::arch::asm!("out dx, ax", in("dx") 0x604_u16, in("ax") 0x2000_u16);
    }
}

fn main() {
    for (name, target) in [(c"devtmpfs", c"/dev"), (c"proc", c"/proc"), (c"sysfs", c"/sys")] {
        unsafe { mount(name.as_ptr(), target.as_ptr(), name.as_ptr(), 0, std::ptr::null()) };
    }
    let clock = read("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    println!("cpus {} clock {clock}", read("/sys/devices/system/cpu/online"));
    let command_line = read("/proc/cmdline");
    let command = command_line.split_whitespace().find_map(|word| word.strip_prefix("end="));
    match command.unwrap_or_default() {
        "panic" => fs::write("/proc/sysrq-trigger", "c").unwrap(),
        "reboot" | "triple_fault" => drop(unsafe { reboot(0x0123_4567) }),
        "power_off" => power_off(),
        "exit" => return,
        "drive" => {
            let drive = fs::read("/dev/vda").unwrap();
            println!("drive {} {}", drive.len(), drive.iter().map(|byte| u64::from(*byte)).sum::<u64>());
            power_off();
        }
        _ => {}
    }
    for tick in 0_u64.. {
        println!("tick {tick}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
