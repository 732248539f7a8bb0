//! The only program of a test guest that stands where the agent does: it reports that it listens, serves the stdio port
//! with frames that depend on the container's id, and obeys one-line commands. Built by the test with `rustc`, without
//! crates.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::MetadataExt;
use std::sync::{Condvar, Mutex};

const AF_VSOCK: i32 = 40;
const SOCK_STREAM: i32 = 1;
const HOST_CID: u32 = 2;
const ANY_CID: u32 = u32::MAX;
const STDIO_PORT: u32 = 1025;
const READY_PORT: u32 = 1026;
const COMMAND_PORT: u32 = 2000;

#[repr(C)]
struct SockaddrVm {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    zero: [u8; 4],
}

unsafe extern "C" {
    fn tcdrain(fd: i32) -> i32;
    fn socket(domain: i32, kind: i32, protocol: i32) -> i32;
    fn connect(fd: i32, address: *const SockaddrVm, len: u32) -> i32;
    fn bind(fd: i32, address: *const SockaddrVm, len: u32) -> i32;
    fn listen(fd: i32, backlog: i32) -> i32;
    fn accept(fd: i32, address: *mut SockaddrVm, len: *mut u32) -> i32;
    fn mount(source: *const i8, target: *const i8, kind: *const i8, flags: u64, data: *const i8) -> i32;
    fn reboot(command: i32) -> i32;
}

fn address(cid: u32, port: u32) -> SockaddrVm {
    SockaddrVm { family: AF_VSOCK as u16, reserved: 0, port, cid, zero: [0; 4] }
}

fn vsock() -> File {
    let fd = unsafe { socket(AF_VSOCK, SOCK_STREAM, 0) };
    assert!(fd >= 0, "socket: {}", std::io::Error::last_os_error());
    unsafe { File::from_raw_fd(fd) }
}

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

/// Set by the command `go`.
static GONE: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());

fn send(stream: &mut File, kind: u8, payload: &[u8]) {
    let mut frame = vec![kind, 0, 0, 0];
    frame.extend((payload.len() as u32).to_le_bytes());
    frame.extend(payload);
    // A host that is gone ends this program soon enough.
    let _ = stream.write_all(&frame);
}

/// The first field of a `StdioHello` is the container's id.
fn hello(stream: &mut File) -> String {
    let mut header = [0; 8];
    stream.read_exact(&mut header).unwrap();
    let mut payload = vec![0; u32::from_le_bytes(header[4..].try_into().unwrap()) as usize];
    stream.read_exact(&mut payload).unwrap();
    assert_eq!((header[0], payload[0]), (0, 0x0a));
    String::from_utf8(payload[2..2 + usize::from(payload[1])].to_vec()).unwrap()
}

fn stdio(mut stream: File) {
    // ExitStatus { code: 3, finished_at_ns: 5 }
    let exit = [0x08, 3, 0x18, 5];
    match hello(&mut stream).as_str() {
        "lines" => {
            send(&mut stream, 3, b"one\ntwo\n");
            send(&mut stream, 4, b"oops\n");
            send(&mut stream, 3, b"no newline");
            send(&mut stream, 5, &exit);
        }
        "two-parts" => {
            send(&mut stream, 3, b"before\n");
            let gone = GONE.0.lock().unwrap();
            drop(GONE.1.wait_while(gone, |gone| !*gone).unwrap());
            send(&mut stream, 3, b"after\n");
            send(&mut stream, 5, &exit);
        }
        "endless" => {
            send(&mut stream, 3, b"so far\nand no");
            let _ = stream.read(&mut [0; 1]);
        }
        "flood" => {
            let lines: Vec<u8> =
                (0..1000).flat_map(|n| format!("line {n:05} of a flood that comes fast\n").into_bytes()).collect();
            for _ in 0..200 {
                send(&mut stream, 3, &lines);
            }
            send(&mut stream, 5, &exit);
        }
        _ => send(&mut stream, 6, b"no such container"),
    }
}

fn try_write(path: &str) -> std::io::Result<()> {
    OpenOptions::new().write(true).create(true).truncate(true).open(path)?.write_all(b"from the guest")
}

fn command(mut stream: File) {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while stream.read(&mut byte).is_ok_and(|count| count == 1) && byte != *b"\n" {
        line.extend(byte);
    }
    let line = String::from_utf8(line).unwrap();
    let (verb, path) = line.split_once(' ').unwrap_or((&line, ""));
    let code = |error: std::io::Error| format!("errno {}", error.raw_os_error().unwrap_or(0));
    let answer = match verb {
        "read" => fs::read_to_string(path).unwrap_or_else(code),
        "write" => try_write(path).map_or_else(code, |()| "written".into()),
        "stat" => fs::metadata(path).map_or_else(code, |meta| format!("{}:{}:{}", meta.dev(), meta.ino(), meta.uid())),
        "own" => std::os::unix::fs::chown(path, Some(1234), Some(1234)).map_or_else(code, |()| "owned".into()),
        "list" => fs::read_dir(path).map_or_else(code, |entries| {
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names.join(",")
        }),
        "go" => {
            *GONE.0.lock().unwrap() = true;
            GONE.1.notify_all();
            "gone".into()
        }
        "reset" => {
            unsafe { reboot(0x0123_4567) };
            unreachable!()
        }
        "die" => std::process::exit(7),
        "off" => {
            println!("bulkhead-agent: power off");
            // What a reset finds in the console's buffer is lost.
            unsafe { tcdrain(1) };
            unsafe { reboot(0x0123_4567) };
            unreachable!()
        }
        _ => "what?".into(),
    };
    let _ = stream.write_all(answer.as_bytes());
}

fn main() {
    unsafe {
        mount(c"proc".as_ptr(), c"/proc".as_ptr(), c"proc".as_ptr(), 0, std::ptr::null());
        mount(c"volumes".as_ptr(), c"/volumes".as_ptr(), c"virtiofs".as_ptr(), 0, std::ptr::null());
    }
    if fs::read_to_string("/proc/cmdline").unwrap().contains("test.mute") {
        unsafe { reboot(0x0123_4567) };
    }
    serve(STDIO_PORT, stdio);
    serve(COMMAND_PORT, command);
    let ready = vsock();
    assert_eq!(unsafe { connect(ready.as_raw_fd(), &address(HOST_CID, READY_PORT), 16) }, 0);
    loop {
        std::thread::park();
    }
}
