//! The only program of the benchmark's guest (`make bench-vmm`): serves the same ports over TCP and vsock, reads and writes
//! the drive when told, or prints the kernel's log. Built by scripts/bench-vmm.sh with `rustc`, without crates.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Instant;

const AF_VSOCK: i32 = 40;
const SOCK_STREAM: i32 = 1;
const ANY_CID: u32 = u32::MAX;
const O_DIRECT: i32 = 0x4000;
const SERIAL: u16 = 0x3f8;
const MIB: usize = 1 << 20;
const SYSLOG_READ_ALL: i32 = 3;

const SOURCE_PORT: u32 = 7001;
const SINK_PORT: u32 = 7002;
const ECHO_PORT: u32 = 7003;
const DRIVE_PORT: u32 = 7004;

#[repr(C)]
struct SockaddrVm {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    zero: [u8; 4],
}

unsafe extern "C" {
    fn socket(domain: i32, kind: i32, protocol: i32) -> i32;
    fn bind(fd: i32, address: *const SockaddrVm, len: u32) -> i32;
    fn listen(fd: i32, backlog: i32) -> i32;
    fn accept(fd: i32, address: *mut SockaddrVm, len: *mut u32) -> i32;
    fn ioctl(fd: i32, request: u64, ...) -> i32;
    fn mount(source: *const i8, target: *const i8, kind: *const i8, flags: u64, data: *const i8) -> i32;
    fn ioperm(from: u64, count: u64, on: i32) -> i32;
    fn klogctl(kind: i32, buffer: *mut u8, len: i32) -> i32;
}

fn handle(port: u32, stream: File) {
    // A peer that goes away in the middle has seen enough.
    let _ = match port {
        SOURCE_PORT => source(stream),
        SINK_PORT => sink(stream),
        ECHO_PORT => echo(stream),
        _ => drive(stream),
    };
}

/// Sends as many bytes as the first eight say.
fn source(mut stream: File) -> std::io::Result<()> {
    let mut count = [0; 8];
    stream.read_exact(&mut count)?;
    let mut left = u64::from_le_bytes(count) as usize;
    let bytes = vec![0x5a; 256 << 10];
    while left > 0 {
        let len = left.min(bytes.len());
        stream.write_all(&bytes[..len])?;
        left -= len;
    }
    Ok(())
}

/// Takes as many bytes as the first eight say, then answers one.
fn sink(mut stream: File) -> std::io::Result<()> {
    let mut count = [0; 8];
    stream.read_exact(&mut count)?;
    let mut left = u64::from_le_bytes(count) as usize;
    let mut bytes = vec![0; 256 << 10];
    while left > 0 {
        let len = left.min(bytes.len());
        let got = stream.read(&mut bytes[..len])?;
        if got == 0 {
            return Ok(());
        }
        left -= got;
    }
    stream.write_all(&[1])
}

fn echo(mut stream: File) -> std::io::Result<()> {
    let mut bytes = [0; 4096];
    loop {
        let got = stream.read(&mut bytes)?;
        if got == 0 {
            return Ok(());
        }
        stream.write_all(&bytes[..got])?;
    }
}

#[repr(align(4096))]
struct Aligned([u8; MIB]);

/// "read|write|random BYTES COUNT" for each line: requests of that size, past the guest's cache, and their nanoseconds.
fn drive(mut stream: File) -> std::io::Result<()> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    loop {
        if stream.read(&mut byte)? == 0 {
            return Ok(());
        }
        if byte != *b"\n" {
            line.push(byte[0]);
            continue;
        }
        let text = String::from_utf8_lossy(&line).into_owned();
        let words: Vec<&str> = text.split(' ').collect();
        let answer = match words[..] {
            [verb, bytes, count] => match (bytes.parse(), count.parse()) {
                (Ok(bytes), Ok(count)) => {
                    requests(verb, bytes, count).map_or_else(|error| error.to_string(), |ns| ns.to_string())
                }
                _ => "not numbers".into(),
            },
            _ => "not three words".into(),
        };
        writeln!(stream, "{answer}")?;
        line.clear();
    }
}

fn requests(verb: &str, bytes: usize, count: u64) -> std::io::Result<u128> {
    // Monitors differ in the order of their drives; one can be written.
    let is_writable =
        |name: &&str| fs::read_to_string(format!("/sys/block/{name}/ro")).is_ok_and(|ro| ro.trim() == "0");
    let name = ["vda", "vdb"].into_iter().find(is_writable).ok_or(std::io::ErrorKind::NotFound)?;
    let path = format!("/dev/{name}");
    let mut drive = OpenOptions::new().read(true).write(true).custom_flags(O_DIRECT).open(path)?;
    let size = drive.seek(SeekFrom::End(0))?;
    let mut buffer = Box::new(Aligned([0x5a; MIB]));
    let buffer = &mut buffer.0[..bytes.min(MIB)];
    let places = size / buffer.len() as u64;
    let started = Instant::now();
    for number in 0..count {
        let place = if verb == "random" { number.wrapping_mul(0x9e37_79b9) % places } else { number % places };
        drive.seek(SeekFrom::Start(place * buffer.len() as u64))?;
        match verb {
            "write" => drive.write_all(buffer)?,
            _ => drive.read_exact(buffer)?,
        }
    }
    if verb == "write" {
        drive.sync_data()?;
    }
    Ok(started.elapsed().as_nanos())
}

fn serve_vsock(port: u32) {
    let address = SockaddrVm { family: AF_VSOCK as u16, reserved: 0, port, cid: ANY_CID, zero: [0; 4] };
    let fd = unsafe { socket(AF_VSOCK, SOCK_STREAM, 0) };
    // QEMU alone has no such device.
    if fd < 0 || unsafe { bind(fd, &address, 16) } != 0 || unsafe { listen(fd, 64) } != 0 {
        return;
    }
    std::thread::spawn(move || {
        loop {
            let stream = unsafe { accept(fd, std::ptr::null_mut(), std::ptr::null_mut()) };
            if stream < 0 {
                return;
            }
            let stream = unsafe { File::from_raw_fd(stream) };
            std::thread::spawn(move || handle(port, stream));
        }
    });
}

fn serve_tcp(port: u32) {
    let listener = TcpListener::bind(("0.0.0.0", port as u16)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = stream.set_nodelay(true);
            let stream = File::from(OwnedFd::from(stream));
            std::thread::spawn(move || handle(port, stream));
        }
    });
}

/// Gives eth0 the address 192.0.2.2/24 and brings it up.
fn network() {
    const SIOCSIFADDR: u64 = 0x8916;
    const SIOCSIFNETMASK: u64 = 0x891c;
    const SIOCSIFFLAGS: u64 = 0x8914;
    const UP_AND_RUNNING: u16 = 0x41;
    let fd = unsafe { socket(2, 2, 0) };
    let mut request = [0_u8; 40];
    request[..4].copy_from_slice(b"eth0");
    for (verb, address) in [(SIOCSIFADDR, [192, 0, 2, 2]), (SIOCSIFNETMASK, [255, 255, 255, 0])] {
        request[16..18].copy_from_slice(&2_u16.to_ne_bytes());
        request[20..24].copy_from_slice(&address);
        assert_eq!(unsafe { ioctl(fd, verb, request.as_mut_ptr()) }, 0, "{}", std::io::Error::last_os_error());
    }
    request[16..].fill(0);
    request[16..18].copy_from_slice(&UP_AND_RUNNING.to_ne_bytes());
    assert_eq!(unsafe { ioctl(fd, SIOCSIFFLAGS, request.as_mut_ptr()) }, 0, "{}", std::io::Error::last_os_error());
}

/// Through the serial port's register, which every monitor has, whatever the kernel's console is.
fn say(bytes: &[u8]) {
    assert_eq!(unsafe { ioperm(u64::from(SERIAL), 8, 1) }, 0);
    for byte in bytes {
        unsafe { std::arch::asm!("out dx, al", in("dx") SERIAL, in("al") *byte) };
    }
}

fn print_log() {
    let mut log = vec![0; MIB];
    let len = unsafe { klogctl(SYSLOG_READ_ALL, log.as_mut_ptr(), MIB as i32) };
    say(&log[..usize::try_from(len).unwrap_or(0)]);
}

fn main() {
    unsafe {
        mount(c"devtmpfs".as_ptr(), c"/dev".as_ptr(), c"devtmpfs".as_ptr(), 0, std::ptr::null());
        mount(c"proc".as_ptr(), c"/proc".as_ptr(), c"proc".as_ptr(), 0, std::ptr::null());
        mount(c"sysfs".as_ptr(), c"/sys".as_ptr(), c"sysfs".as_ptr(), 0, std::ptr::null());
    }
    if fs::read_to_string("/proc/cmdline").unwrap().contains("bench.log") {
        print_log();
    } else {
        network();
        for port in [SOURCE_PORT, SINK_PORT, ECHO_PORT, DRIVE_PORT] {
            serve_tcp(port);
            serve_vsock(port);
        }
    }
    say(b"~\n");
    loop {
        std::thread::park();
    }
}
