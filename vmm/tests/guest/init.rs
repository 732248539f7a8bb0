//! The only program of the test guest: exercises the drives and sockets that the host's devices show it, reports over
//! vsock, and powers off. Built by the test with `rustc`, without crates.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Instant;

const AF_VSOCK: i32 = 40;
const SOCK_STREAM: i32 = 1;
const HOST_CID: u32 = 2;
const ANY_CID: u32 = u32::MAX;
const O_DIRECT: i32 = 0x4000;
const BLKDISCARD: u64 = 0x1277;
const MIB: usize = 1 << 20;

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
    fn connect(fd: i32, address: *const SockaddrVm, len: u32) -> i32;
    fn bind(fd: i32, address: *const SockaddrVm, len: u32) -> i32;
    fn listen(fd: i32, backlog: i32) -> i32;
    fn accept(fd: i32, address: *mut SockaddrVm, len: *mut u32) -> i32;
    fn shutdown(fd: i32, how: i32) -> i32;
    fn ioctl(fd: i32, request: u64, ...) -> i32;
    fn mount(source: *const i8, target: *const i8, kind: *const i8, flags: u64, data: *const i8) -> i32;
    fn reboot(command: i32) -> i32;
    fn sync();
}

fn vsock() -> File {
    let fd = unsafe { socket(AF_VSOCK, SOCK_STREAM, 0) };
    assert!(fd >= 0, "socket: {}", std::io::Error::last_os_error());
    unsafe { File::from_raw_fd(fd) }
}

fn address(cid: u32, port: u32) -> SockaddrVm {
    SockaddrVm { family: AF_VSOCK as u16, reserved: 0, port, cid, zero: [0; 4] }
}

fn dial(port: u32) -> std::io::Result<File> {
    let stream = vsock();
    match unsafe { connect(stream.as_raw_fd(), &address(HOST_CID, port), 16) } {
        0 => Ok(stream),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Serves each connection to the port on a thread of its own.
fn serve(port: u32, handler: fn(File)) {
    let listener = vsock();
    assert_eq!(unsafe { bind(listener.as_raw_fd(), &address(ANY_CID, port), 16) }, 0);
    assert_eq!(unsafe { listen(listener.as_raw_fd(), 64) }, 0);
    std::thread::spawn(move || {
        loop {
            let fd = unsafe { accept(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut()) };
            assert!(fd >= 0, "accept: {}", std::io::Error::last_os_error());
            let stream = unsafe { File::from_raw_fd(fd) };
            std::thread::spawn(move || handler(stream));
        }
    });
}

fn echo(mut stream: File) {
    let mut buffer = vec![0; 65536];
    while let Ok(count) = stream.read(&mut buffer) {
        if count == 0 || stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

/// Sums everything up to the end of the stream, then answers: works only when half-close does.
fn sink(mut stream: File) {
    let mut buffer = vec![0; 65536];
    let (mut count, mut sum) = (0_u64, 0_u64);
    loop {
        let got = stream.read(&mut buffer).unwrap();
        if got == 0 {
            break;
        }
        count += got as u64;
        sum = buffer[..got].iter().fold(sum, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    }
    let _ = write!(stream, "{count} {sum}");
}

fn source(mut stream: File) {
    let buffer: Vec<u8> = (0..MIB).map(|at| (at % 251) as u8).collect();
    for _ in 0..32 {
        stream.write_all(&buffer).unwrap();
    }
    unsafe { shutdown(stream.as_raw_fd(), 1) };
    let _ = stream.read(&mut [0; 1]);
}

#[repr(align(4096))]
struct Aligned([u8; MIB]);

fn direct(path: &str, write: bool) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(write).custom_flags(O_DIRECT).open(path)
}

/// Reads the image that lies at 1 MiB; its first eight bytes say how many MiB it has.
fn read_image(report: &mut String) {
    let mut drive = direct("/dev/vda", false).unwrap();
    let mut buffer = Box::new(Aligned([0; MIB]));
    drive.read_exact(&mut buffer.0).unwrap();
    assert!(buffer.0.iter().all(|byte| *byte == 0), "sector 0 is not empty");
    let (mut sum, mut mib, started) = (0_u64, 0, Instant::now());
    let mut total = u64::MAX;
    while mib < total {
        drive.read_exact(&mut buffer.0).unwrap();
        if mib == 0 {
            total = u64::from_le_bytes(buffer.0[..8].try_into().unwrap());
        }
        for chunk in buffer.0.chunks_exact(4096) {
            sum = sum.wrapping_mul(31).wrapping_add(u64::from_le_bytes(chunk[..8].try_into().unwrap()));
        }
        mib += 1;
    }
    let seconds = started.elapsed().as_secs_f64();
    report.push_str(&format!("image_sum {sum}\nimage_mib_per_s {:.0}\n", mib as f64 / seconds));
    drive.seek(SeekFrom::Start(63 << 40)).unwrap();
    drive.read_exact(&mut buffer.0).unwrap();
    report.push_str(&format!("far_is_zero {}\n", buffer.0.iter().all(|byte| *byte == 0)));
    let written = direct("/dev/vda", true).and_then(|mut drive| drive.write_all(&buffer.0));
    report.push_str(&format!("image_written {}\n", written.is_ok()));
    let ro = std::fs::read_to_string("/sys/block/vda/ro").unwrap();
    report.push_str(&format!("image_ro {}\n", ro.trim()));
}

fn use_scratch(report: &mut String) {
    let mut drive = direct("/dev/vdb", true).unwrap();
    let mut buffer = Box::new(Aligned([0x5a; MIB]));
    let started = Instant::now();
    for at in 0..32_u8 {
        buffer.0[0] = at;
        drive.write_all(&buffer.0).unwrap();
    }
    drive.sync_all().unwrap();
    report.push_str(&format!("scratch_write_mib_per_s {:.0}\n", 32.0 / started.elapsed().as_secs_f64()));
    let range = [MIB as u64, MIB as u64];
    let discarded = unsafe { ioctl(drive.as_raw_fd(), BLKDISCARD, range.as_ptr()) };
    drive.seek(SeekFrom::Start(0)).unwrap();
    let mut firsts = Vec::new();
    for _ in 0..3 {
        drive.read_exact(&mut buffer.0).unwrap();
        firsts.push(format!("{}:{}", buffer.0[0], buffer.0[1]));
    }
    report.push_str(&format!("scratch {} {discarded}\n", firsts.join(",")));
    for name in ["vda", "vdb"] {
        let serial = std::fs::read_to_string(format!("/sys/block/{name}/serial")).unwrap();
        report.push_str(&format!("serial_{name} {}\n", serial.trim()));
    }
}

/// Everything after this runs on the device's second life.
fn restart_vsock_driver() {
    let drivers = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport";
    let device = std::fs::read_dir(drivers).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
    let device = device.filter(|name| name.starts_with("virtio")).next().unwrap();
    std::fs::write(format!("{drivers}/unbind"), &device).unwrap();
    std::fs::write(format!("{drivers}/bind"), &device).unwrap();
}

fn run() {
    unsafe {
        mount(c"devtmpfs".as_ptr(), c"/dev".as_ptr(), c"devtmpfs".as_ptr(), 0, std::ptr::null());
        mount(c"sysfs".as_ptr(), c"/sys".as_ptr(), c"sysfs".as_ptr(), 0, std::ptr::null());
    }
    restart_vsock_driver();
    serve(50, echo);
    serve(51, sink);
    serve(52, source);
    let mut report = String::new();
    read_image(&mut report);
    use_scratch(&mut report);
    let mut on_path = dial(1001).unwrap();
    let mut greeting = String::new();
    on_path.write_all(b"hello").unwrap();
    on_path.read_to_string(&mut greeting).unwrap();
    report.push_str(&format!("unix_path {greeting}\n"));
    report.push_str(&format!("refused {}\n", dial(1002).unwrap_err().raw_os_error().unwrap_or(0)));
    let mut control = dial(1000).unwrap();
    control.write_all(format!("{report}ready\n").as_bytes()).unwrap();
    // The host closes its end when it has seen enough.
    let _ = control.read(&mut [0; 1]);
}

fn main() {
    if std::panic::catch_unwind(run).is_err() {
        eprintln!("the test guest failed");
    }
    unsafe {
        sync();
        reboot(0x0123_4567);
    }
}
