//! The devices against a real Linux driver: a guest under QEMU's software emulation reads and writes both drives and
//! speaks vsock in both directions. Needs `qemu-system-x86_64`, `rustc`, and a guest kernel (`BULKHEAD_TEST_KERNEL`, or
//! the newest one that guest-image built); says what is missing and skips otherwise.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bulkhead_vmm::devices::block::{BlockConfig, BlockDevice, FlushPolicy, ImageDrive, RawFile};
use bulkhead_vmm::devices::vsock::{VsockConfig, VsockDevice, VsockHandle};
use bulkhead_vmm::vhost_user::{ServerHandle, serve_block, serve_vsock};

const MIB: usize = 1 << 20;
const IMAGE_MIB: u64 = 64;
const LIMIT: Duration = Duration::from_secs(60);

/// Ends QEMU however the test ends.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Machine {
    directory: tempfile::TempDir,
    vsock: VsockHandle,
    servers: Vec<ServerHandle>,
    image_sum: u64,
    blocks: [Arc<BlockDevice>; 2],
}

fn kernel() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("BULKHEAD_TEST_KERNEL") {
        return Some(path.into());
    }
    let home = PathBuf::from(std::env::var_os("HOME")?);
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or(home.join(".cache"), PathBuf::from).join("bulkhead");
    let kernels = std::fs::read_dir(cache).ok()?.flatten().map(|entry| entry.path().join("vmlinux"));
    kernels.filter(|path| path.is_file()).max_by_key(|path| path.metadata().and_then(|meta| meta.modified()).ok())
}

fn runs(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// A cpio archive (newc) of /init, /dev, /sys and the console that the kernel opens for /init.
fn initramfs(directory: &Path) -> PathBuf {
    let init = directory.join("init");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/init.rs");
    let built = Command::new("rustc")
        .args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-C", "panic=unwind", "-o"])
        .arg(&init)
        .arg(source)
        .status()
        .unwrap();
    assert!(built.success(), "the test guest's init does not build");
    let mut archive = Vec::new();
    let mut entry = |name: &str, mode: u32, device: (u32, u32), data: &[u8]| {
        let name_len = name.len() + 1;
        let fields = [0, mode, 0, 0, 1, 0, data.len() as u32, 0, 0, device.0, device.1, name_len as u32, 0];
        archive.extend(b"070701");
        fields.iter().for_each(|field| archive.extend(format!("{field:08x}").bytes()));
        archive.extend(name.bytes().chain([0]));
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(data);
        archive.resize(archive.len().next_multiple_of(4), 0);
    };
    entry("dev", 0o040755, (0, 0), &[]);
    entry("sys", 0o040755, (0, 0), &[]);
    entry("dev/console", 0o020600, (5, 1), &[]);
    entry("init", 0o100755, (0, 0), &std::fs::read(&init).unwrap());
    entry("TRAILER!!!", 0, (0, 0), &[]);
    let path = directory.join("initramfs");
    std::fs::write(&path, archive).unwrap();
    path
}

/// Two parts whose pages each begin with their number, and the sum that the guest should find.
fn image_drive(directory: &Path) -> (ImageDrive, u64) {
    let (mut sum, mut parts) = (0_u64, Vec::new());
    let lens = [MIB as u64, (IMAGE_MIB - 1) * MIB as u64];
    let mut page = 0_u64;
    for (part, len) in lens.into_iter().enumerate() {
        let file = File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .open(directory.join(format!("part{part}")))
            .unwrap();
        for at in 0..len / 4096 {
            // The guest learns the image's size from its first bytes.
            let word = if page == 0 { IMAGE_MIB } else { page * 7919 };
            let mut bytes = [page as u8; 4096];
            bytes[..8].copy_from_slice(&word.to_le_bytes());
            file.write_all_at(&bytes, at * 4096).unwrap();
            sum = sum.wrapping_mul(31).wrapping_add(word);
            page += 1;
        }
        parts.push((file, len));
    }
    let drive = ImageDrive::new();
    let extent = drive.map("image", parts).unwrap();
    assert_eq!((extent.start_sector, extent.sectors), (2048, IMAGE_MIB * 2048));
    (drive, sum)
}

fn serve_machine() -> Machine {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let config = VsockConfig { guest_cid: 3, listen_path: Some(at("vsock")), connect_timeout: Duration::from_secs(5) };
    let (device, vsock) = VsockDevice::new(config).unwrap();
    let (drive, image_sum) = image_drive(directory.path());
    let scratch = File::options().create_new(true).read(true).write(true).open(at("scratch")).unwrap();
    scratch.set_len(64 * MIB as u64).unwrap();
    let scratch = RawFile::new(scratch, FlushPolicy::Ephemeral).unwrap();
    let block = |serial: &str| BlockConfig { serial: serial.into(), queues: 1 };
    let blocks = [
        Arc::new(BlockDevice::new(Arc::new(drive), block("images"))),
        Arc::new(BlockDevice::new(Arc::new(scratch), block("scratch"))),
    ];
    let listen = |name: &str| UnixListener::bind(at(name)).unwrap();
    let servers = vec![
        serve_vsock(device, listen("c0"), "vsock").unwrap(),
        serve_block(blocks[0].clone(), listen("c1"), "images").unwrap(),
        serve_block(blocks[1].clone(), listen("c2"), "scratch").unwrap(),
    ];
    Machine { directory, vsock, servers, image_sum, blocks }
}

fn start(machine: &Machine, kernel: &Path, initramfs: &Path) -> Guest {
    let at = |name: &str| machine.directory.path().join(name);
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-M", "microvm,acpi=off,rtc=on,pit=on,pic=on,memory-backend=mem", "-accel", "tcg", "-cpu", "max"])
        .args(["-m", "256", "-object", "memory-backend-memfd,id=mem,size=256M,share=on"])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args(["-global", "virtio-mmio.force-legacy=false", "-serial"])
        .arg(format!("file:{}", at("console").display()))
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", "console=ttyS0 quiet reboot=t panic=-1"]);
    for (index, device) in ["vhost-user-vsock-device", "vhost-user-blk", "vhost-user-blk"].iter().enumerate() {
        qemu.arg("-chardev").arg(format!("socket,id=c{index},path={}", at(&format!("c{index}")).display()));
        qemu.arg("-device").arg(format!("{device},chardev=c{index}"));
    }
    Guest(qemu.stdin(Stdio::null()).spawn().unwrap())
}

fn connect(machine: &Machine, port: u32) -> UnixStream {
    let mut stream = UnixStream::connect(machine.directory.path().join("vsock")).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    writeln!(stream, "CONNECT {port}").unwrap();
    assert!(read_line(&mut stream).starts_with("OK "));
    stream
}

fn read_line(stream: &mut UnixStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte).unwrap();
        line.extend(byte);
    }
    String::from_utf8(line).unwrap()
}

/// Memory of this process that is neither the guest's nor a file's.
fn anonymous_kib() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn round_trips(machine: &Machine) {
    let mut stream = connect(machine, 50);
    let mut times = Vec::new();
    for _ in 0..2000 {
        let started = Instant::now();
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        times.push(started.elapsed());
    }
    times.sort();
    println!("vsock round trip: median {:?}, min {:?}, max {:?}", times[1000], times[0], times[1999]);
}

fn bulk(machine: &Machine) {
    let data: Vec<u8> = (0..32 * MIB).map(|at| (at % 253) as u8).collect();
    let sum = data.iter().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    let started = Instant::now();
    let mut stream = connect(machine, 51);
    stream.write_all(&data).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, format!("{} {sum}", data.len()));
    println!("vsock to the guest: {:.0} MiB/s", 32.0 / started.elapsed().as_secs_f64());

    let started = Instant::now();
    let mut stream = connect(machine, 52);
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    println!("vsock from the guest: {:.0} MiB/s", 32.0 / started.elapsed().as_secs_f64());
    assert_eq!(received.len(), 32 * MIB);
    assert!(received.iter().enumerate().all(|(at, byte)| *byte == (at % MIB % 251) as u8));
}

/// The guest's report, once it is ready to be used.
fn read_report(machine: &Machine, control: &mut UnixStream) -> String {
    let mut report = String::new();
    while !report.ends_with("ready\n") {
        report.push_str(&read_line(control));
    }
    print!("{report}");
    for expected in [
        format!("image_sum {}\n", machine.image_sum),
        "far_is_zero true\nimage_written false\nimage_ro 1\n".into(),
        "scratch 0:90,0:0,2:90 0\n".into(),
        "serial_vda images\nserial_vdb scratch\n".into(),
        "unix_path hi\n".into(),
        // ECONNRESET
        "refused 104\n".into(),
    ] {
        assert!(report.contains(&expected), "the guest did not report {expected:?}");
    }
    report
}

#[test]
fn a_linux_guest_uses_drives_and_sockets() {
    let Some(kernel) = kernel().filter(|_| runs("qemu-system-x86_64") && runs("rustc")) else {
        eprintln!("skipped: needs qemu-system-x86_64, rustc, and a guest kernel in BULKHEAD_TEST_KERNEL or the cache");
        return;
    };
    let before = anonymous_kib();
    let machine = serve_machine();
    let initramfs = initramfs(machine.directory.path());
    let mut listener = machine.vsock.listen(1000).unwrap();
    let on_path = UnixListener::bind(machine.directory.path().join("vsock_1001")).unwrap();
    let greeter = std::thread::spawn(move || {
        let (mut stream, _) = on_path.accept().unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
        stream.write_all(b"hi").unwrap();
    });
    let started = Instant::now();
    let mut guest = start(&machine, &kernel, &initramfs);
    let (control, ready) = std::sync::mpsc::channel();
    std::thread::spawn(move || control.send(listener.blocking_recv()));
    let control = ready.recv_timeout(LIMIT).unwrap_or_default();
    let Some(mut control) = control else {
        panic!(
            "the guest did not report: {}",
            std::fs::read_to_string(machine.directory.path().join("console")).unwrap_or_default()
        );
    };
    println!("start to report: {:?}", started.elapsed());
    println!("three devices hold {} KiB", anonymous_kib() - before);
    control.set_nonblocking(false).unwrap();
    read_report(&machine, &mut control);
    greeter.join().unwrap();
    round_trips(&machine);
    bulk(&machine);
    let mut refused = UnixStream::connect(machine.directory.path().join("vsock")).unwrap();
    refused.write_all(b"CONNECT 60\n").unwrap();
    assert_eq!(read_line(&mut refused), "ERR the guest refused the connection\n");
    assert!(machine.vsock.connect_blocking(61).is_err());
    let mut echo = machine.vsock.connect_blocking(50).unwrap();
    echo.set_nonblocking(false).unwrap();
    echo.write_all(b"handle").unwrap();
    let mut answer = [0; 6];
    echo.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"handle");
    let [images, scratch] = machine.blocks.each_ref().map(|block| block.counters());
    assert!(images.read_bytes() >= IMAGE_MIB * MIB as u64 && scratch.written_bytes() >= 32 * MIB as u64);

    drop(control);
    assert!(guest.0.wait().unwrap().success());
    // The guest is gone: so are its connections, the listening socket, and the threads.
    assert_eq!(echo.read(&mut [0]).unwrap_or(0), 0);
    for server in machine.servers {
        let gone = server.disconnected();
        server.join();
        assert!(*gone.borrow());
    }
    assert!(machine.vsock.connect_blocking(50).is_err());
    assert!(!machine.directory.path().join("vsock").exists());
}
