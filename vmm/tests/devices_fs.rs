//! virtio-fs: the front end against the file server's library, and servers that misbehave.
#![allow(clippy::unwrap_used, reason = "tests")]

mod driver;

use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use bulkhead_vmm::devices::fs::{Fs, FsConfig, connected};
use bulkhead_vmm::devices::virtio::VirtioDevice;
use driver::memory::shared_ram;
use driver::transport::Machine;
use driver::{BUFFERS, readable, writable};
use vhost::vhost_user::Listener;
use vhost_user_backend::VhostUserDaemon;
use virtiofsd::passthrough::{Config, PassthroughFs};
use virtiofsd::vhost_user::VhostUserFsBackendBuilder;
use vm_memory::{Bytes, GuestAddress, GuestMemoryAtomic, GuestMemoryMmap};

const FUSE_INIT: u32 = 26;
const FUSE_GETATTR: u32 = 3;
const FEATURES: u64 = 1 << 32;

fn config() -> FsConfig {
    FsConfig { tag: "volumes".into(), request_queues: 1 }
}

/// A file server on a directory of its own.
struct Served {
    directory: tempfile::TempDir,
    connections: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

fn serve() -> (Served, Fs) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let root_dir = directory.path().to_str().unwrap().to_owned();
    let thread = std::thread::spawn(move || {
        let files = PassthroughFs::new(Config { root_dir, ..Config::default() }).unwrap();
        let backend = Arc::new(VhostUserFsBackendBuilder::default().build(files).unwrap());
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let mut daemon = VhostUserDaemon::new("fs".into(), backend, memory).unwrap();
        let _ = daemon.start(&mut Listener::from(listener)).and_then(|()| daemon.wait());
    });
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    let connect = move || {
        count.fetch_add(1, Ordering::SeqCst);
        UnixStream::connect(&path)
    };
    (Served { directory, connections, thread }, Fs::new(config(), Box::new(connect)))
}

/// `fuse_in_header` and a body.
fn request(opcode: u32, unique: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend((40 + body.len() as u32).to_le_bytes());
    bytes.extend(opcode.to_le_bytes());
    bytes.extend(unique.to_le_bytes());
    bytes.extend(1_u64.to_le_bytes());
    bytes.extend([0; 16]);
    bytes.extend(body);
    bytes
}

fn init() -> Vec<u8> {
    // Version 7.38 with read-ahead of 128 KiB and no flags.
    let body: Vec<u8> = [7_u32, 38, 1 << 17, 0].iter().flat_map(|word| word.to_le_bytes()).chain([0; 48]).collect();
    request(FUSE_INIT, 1, &body)
}

/// Sends a request through queue 1; the error and unique number of the answer.
fn ask(machine: &mut Machine<Fs>, request: &[u8]) -> (i32, u64) {
    machine.ram.write_slice(request, GuestAddress(BUFFERS)).unwrap();
    let chain =
        [readable(BUFFERS, 40), readable(BUFFERS + 40, request.len() as u32 - 40), writable(BUFFERS + 0x1000, 1024)];
    machine.rings[1].submit(&machine.ram, &chain);
    machine.kick(1);
    machine.wait_used(1);
    let ram = &machine.ram;
    (ram.read_obj(GuestAddress(BUFFERS + 0x1004)).unwrap(), ram.read_obj(GuestAddress(BUFFERS + 0x1008)).unwrap())
}

#[test]
fn the_server_is_reached_at_the_first_request() {
    let (served, fs) = serve();
    std::fs::write(served.directory.path().join("file"), "content").unwrap();
    let mut machine = Machine::new(fs, shared_ram().0, 2, 64);
    assert_eq!(machine.device.read_config(0, 9), b"volumes\0\0");
    assert_eq!(machine.device.read_config(34, 8), [0, 0, 1, 0, 0, 0, 0, 0]);
    machine.activate(FEATURES).unwrap();
    machine.device.reset();
    machine.activate(FEATURES).unwrap();
    assert_eq!(served.connections.load(Ordering::SeqCst), 0);
    assert_eq!(ask(&mut machine, &init()), (0, 1));
    assert_eq!(ask(&mut machine, &request(FUSE_GETATTR, 2, &[0; 16])), (0, 2));
    // The next driver finds the same server.
    machine.device.reset();
    let mut machine = Machine::new(machine.device, shared_ram().0, 2, 32);
    machine.activate(FEATURES).unwrap();
    assert_eq!(ask(&mut machine, &init()), (0, 1));
    assert_eq!(served.connections.load(Ordering::SeqCst), 1);
    drop(machine);
    served.thread.join().unwrap();
}

/// A server that does this with its one connection.
fn misbehaving(behave: impl FnOnce(UnixStream) + Send + 'static) -> Machine<Fs> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    std::thread::spawn(move || behave(theirs));
    let mut machine = Machine::new(Fs::new(config(), connected(ours)), shared_ram().0, 2, 64);
    machine.activate(FEATURES).unwrap();
    machine
}

#[test]
fn a_server_that_fails_stops_the_device_only() {
    let closes: fn(UnixStream) = drop;
    let babbles: fn(UnixStream) = |mut stream| {
        let _ = std::io::Write::write_all(&mut stream, &[0xff; 4096]);
        let _ = stream.read(&mut [0; 4096]);
    };
    for behave in [closes, babbles] {
        let mut machine = misbehaving(behave);
        machine.kick(1);
        machine.raised.wait_needs_reset();
        machine.kick(1);
        machine.device.reset();
        // The server takes no second connection.
        machine.activate(FEATURES).unwrap();
        machine.device.reset();
    }
}

#[test]
fn a_server_that_never_answers_holds_no_reset_up() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut machine = Machine::new(Fs::new(config(), connected(ours)), shared_ram().0, 2, 64);
    machine.activate(FEATURES).unwrap();
    machine.kick(1);
    // The device's thread waits for the answer from here on.
    theirs.read_exact(&mut [0]).unwrap();
    machine.device.reset();
    drop(theirs);
}

#[test]
fn a_server_that_dies_is_noticed() {
    let (served, fs) = serve();
    let socket = Arc::new(std::sync::Mutex::new(None::<UnixStream>));
    drop(fs);
    let (path, keep) = (served.directory.path().join("socket"), socket.clone());
    let connect = move || {
        let stream = UnixStream::connect(&path)?;
        *keep.lock().unwrap() = Some(stream.try_clone()?);
        Ok(stream)
    };
    let mut machine = Machine::new(Fs::new(config(), Box::new(connect)), shared_ram().0, 2, 64);
    machine.activate(FEATURES).unwrap();
    assert_eq!(ask(&mut machine, &init()), (0, 1));
    // What the end of the server's process does to its socket.
    socket.lock().unwrap().take().unwrap().shutdown(std::net::Shutdown::Both).unwrap();
    machine.raised.wait_needs_reset();
    machine.device.reset();
    served.thread.join().unwrap();
}

#[test]
fn memory_without_a_file_cannot_be_shared() {
    let (served, fs) = serve();
    let mut machine = Machine::new(fs, driver::ram(), 2, 64);
    machine.activate(FEATURES).unwrap();
    machine.kick(0);
    machine.raised.wait_needs_reset();
    machine.device.reset();
    served.thread.join().unwrap();
}
