//! The life of a vhost-user server without a guest: front ends that never come, leave at once, or talk nonsense.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_vmm::devices::block::{BlockConfig, BlockDevice, ImageDrive};
use bulkhead_vmm::devices::vsock::{VsockConfig, VsockDevice, VsockHandle};
use bulkhead_vmm::vhost_user::{ServerHandle, serve_block, serve_vsock};

struct Served {
    directory: tempfile::TempDir,
    vsock: VsockHandle,
    servers: [ServerHandle; 2],
}

fn serve() -> Served {
    let directory = tempfile::tempdir().unwrap();
    let listen_path = Some(directory.path().join("vsock"));
    let config = VsockConfig { guest_cid: 3, listen_path, connect_timeout: Duration::from_secs(60) };
    let (device, vsock) = VsockDevice::new(config).unwrap();
    let block = BlockDevice::new(Arc::new(ImageDrive::new()), BlockConfig { serial: "images".into(), queues: 2 });
    let listen = |name: &str| UnixListener::bind(directory.path().join(name)).unwrap();
    let servers = [
        serve_vsock(device, listen("c0"), "vsock").unwrap(),
        serve_block(Arc::new(block), listen("c1"), "images").unwrap(),
    ];
    Served { directory, vsock, servers }
}

impl Served {
    fn sockets(&self) -> [PathBuf; 2] {
        ["c0", "c1"].map(|name| self.directory.path().join(name))
    }

    /// Waits for the servers' threads: a test that hangs here is what fails.
    fn end(self) {
        for server in self.servers {
            let gone = server.disconnected();
            server.join();
            assert!(*gone.borrow());
        }
        assert!(self.vsock.connect_blocking(1).is_err());
        assert!(!self.directory.path().join("vsock").exists());
    }
}

#[test]
fn a_front_end_that_never_comes() {
    let served = serve();
    let waiting = served.vsock.clone();
    let waiting = std::thread::spawn(move || waiting.connect_blocking(1).is_err());
    let mut client = UnixStream::connect(served.directory.path().join("vsock")).unwrap();
    client.write_all(b"CONNECT 1\n").unwrap();
    served.servers.iter().for_each(ServerHandle::stop);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("ERR "), "{answer:?}");
    assert!(waiting.join().unwrap());
    served.end();
}

#[test]
fn a_front_end_that_leaves_at_once() {
    let served = serve();
    for path in served.sockets() {
        drop(UnixStream::connect(path).unwrap());
    }
    served.end();
}

#[test]
fn a_front_end_that_talks_nonsense() {
    for bytes in [vec![0xff; 300], vec![0; 300], b"GET / HTTP/1.0\r\n\r\n".to_vec(), vec![1]] {
        let served = serve();
        for path in served.sockets() {
            let mut front_end = UnixStream::connect(path).unwrap();
            let _ = front_end.write_all(&bytes);
        }
        served.end();
    }
}

#[test]
fn only_one_front_end_is_served() {
    let served = serve();
    let [path, other] = served.sockets();
    let first = UnixStream::connect(&path).unwrap();
    // The listener closes once the first is in: from then on nobody gets in.
    while UnixStream::connect(&path).is_ok() {
        std::thread::yield_now();
    }
    drop(first);
    drop(UnixStream::connect(other).unwrap());
    served.end();
}
