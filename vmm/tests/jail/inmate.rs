//! The process in the jail.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use bulkhead_vmm::jail::{self, Plan, Role};
use bulkhead_vmm::sys::Fork;

use crate::probes::{self, Surroundings};

/// `UID ROLE PROBE NEIGHBOUR SOCKET PORT`
pub fn run(arguments: &[String]) -> ExitCode {
    let [uid, role, probe, neighbour, socket, port] = arguments else { panic!("not an inmate's arguments") };
    let surroundings =
        Surroundings { neighbour: neighbour.parse().unwrap(), socket: socket.clone(), port: port.parse().unwrap() };
    if let Fork::Parent(child) = jail::go_on_in_child(true, None).unwrap() {
        println!("pid {}", child.as_raw_nonzero());
        return ExitCode::SUCCESS;
    }
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"before").unwrap();
    let uid = uid.parse().unwrap();
    if let Err(error) = jail::enter(&Plan { uid, gid: uid }) {
        println!("{error}");
        return ExitCode::from(3);
    }
    match role.as_str() {
        "none" => {}
        "control" => jail::enter_thread(Role::Control),
        other => {
            // As in the product: the thread is there before the one that started it is restricted.
            let role = if other == "vcpu" { Role::Vcpu } else { Role::Device };
            let probe = probe.clone();
            let thread = std::thread::spawn(move || {
                jail::enter_thread(role);
                act(&probe, role, &surroundings, file);
            });
            return if thread.join().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
    }
    act(probe, Role::Control, &surroundings, file);
    ExitCode::SUCCESS
}

fn act(probe: &str, role: Role, surroundings: &Surroundings, file: File) {
    match (probe, role) {
        ("state", _) => state(),
        ("work", Role::Vcpu) => compute(),
        ("work", Role::Device) => serve(file),
        ("work", Role::Control) => control(file),
        (name, _) => probes::run(name, surroundings),
    }
}

/// Every set, id and limit, as the kernel has it.
fn state() {
    use rustix::process::{Resource, getegid, geteuid, getgid, getgroups, getppid, getrlimit, getuid};
    use rustix::thread::{CapabilitySet, capabilities, capability_is_in_ambient_set, capability_is_in_bounding_set};
    assert_eq!(rustix::process::getpid().as_raw_nonzero().get(), 1);
    assert!(getppid().is_none());
    for id in [getuid().as_raw(), geteuid().as_raw(), getgid().as_raw(), getegid().as_raw()] {
        assert_eq!(id, crate::UID);
    }
    assert!(getgroups().unwrap().is_empty());
    let sets = capabilities(None).unwrap();
    assert!((sets.effective | sets.permitted | sets.inheritable).is_empty());
    for bit in 0..40 {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        assert!(!capability_is_in_bounding_set(capability).unwrap(), "bounding set has {bit}");
        assert!(!capability_is_in_ambient_set(capability).unwrap(), "ambient set has {bit}");
    }
    assert!(rustix::thread::no_new_privs().unwrap());
    assert_eq!(getrlimit(Resource::Core).maximum, Some(0));
    assert!(getrlimit(Resource::Nproc).maximum.is_some());
    assert!(std::fs::read_dir("/").map(Iterator::count).unwrap_or(0) == 0);
}

/// Memory, locks, a panic that is caught.
fn compute() {
    let mut map: HashMap<u64, Vec<u8>> = HashMap::new();
    for n in 0..64 {
        map.insert(n, vec![1; 100_000]);
    }
    let (sender, receiver) = mpsc::channel();
    sender.send(map.len()).unwrap();
    assert_eq!(receiver.recv_timeout(Duration::from_secs(1)), Ok(64));
    assert!(std::panic::catch_unwind(|| panic!("caught")).is_err());
    println!("computed");
}

fn serve(mut file: File) {
    compute();
    file.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "before");
    file.sync_data().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    (&ours).write_all(b"x").unwrap();
    (&theirs).read_exact(&mut [0]).unwrap();
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    rustix::io::write(&event, &1_u64.to_ne_bytes()).unwrap();
    let mut polled = [rustix::event::PollFd::new(&event, rustix::event::PollFlags::IN)];
    assert_eq!(rustix::event::poll(&mut polled, None).unwrap(), 1);
}

/// A runtime with threads, timers, sockets and files of descriptors, as the product's main thread has it.
fn control(mut file: File) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let (mut ours, mut theirs) = tokio::net::UnixStream::pair().unwrap();
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        ours.write_all(b"hello").await.unwrap();
        let mut bytes = [0; 5];
        theirs.read_exact(&mut bytes).await.unwrap();
        assert_eq!(ours.peer_cred().unwrap().uid(), crate::UID);
    });
    file.set_len(0).unwrap();
    file.rewind().unwrap();
    file.write_all(b"{}").unwrap();
    assert_eq!(file.metadata().unwrap().len(), 2);
    let log = file.try_clone().unwrap();
    let thread = std::thread::Builder::new().name("log".into()).stack_size(256 * 1024).spawn(move || {
        jail::enter_thread(Role::Device);
        compute();
        log.sync_data().unwrap();
    });
    thread.unwrap().join().unwrap();
    compute();
}
