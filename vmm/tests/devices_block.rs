//! virtio-blk against a driver of ours. Every case of `block/cases.rs` runs with requests done by io_uring and by the queue's own
//! thread; here is what io_uring adds: requests that end in another order, and such that are under way when something happens.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::duplicate_mod, reason = "the module asks for its name")]

#[path = "block/cases.rs"]
mod by_ring;
#[path = "block/cases.rs"]
mod by_thread;
mod driver;

use std::fs::File;
use std::io::{Seek, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bulkhead_vmm::devices::block::{BlockBackend, BlockConfig, BlockDevice, BlockIo, ImageDrive, Place, VirtioBlock};
use bulkhead_vmm::devices::virtio::VirtioDevice;
use bulkhead_vmm::state::Snapshot;
use driver::transport::Machine;
use driver::{BUFFERS, readable, writable};
use vm_memory::{Bytes, GuestAddress};

const READ: u32 = 0;
const WRITE_OUT: u32 = 1;
const FLUSH: u32 = 4;
const OK: u8 = 0;
const IOERR: u8 = 1;
const F_FLUSH: u64 = 1 << 9;
const F_MQ: u64 = 1 << 12;

/// Tells why when this kernel, or what this process is in, has no io_uring.
fn has_io_uring() -> bool {
    let has = BlockIo::new().event().is_some();
    if !has {
        eprintln!("skipped: devices_block: the kernel refuses io_uring to this process");
    }
    has
}

fn config(queues: u16) -> BlockConfig {
    BlockConfig { serial: "test".into(), queues }
}

/// A drive whose first image is read from a pipe, and its second from a file of twos; the pipe's other end, and the sectors at
/// which they begin. What is read from the pipe takes as long as the test wants.
fn slow_and_fast() -> (Arc<ImageDrive>, File, [u64; 2]) {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let drive = Arc::new(ImageDrive::new());
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[2; 4096]).unwrap();
    file.rewind().unwrap();
    let slow = drive.map("slow", vec![(File::from(reader), 4096)]).unwrap();
    let fast = drive.map("fast", vec![(file, 4096)]).unwrap();
    (drive, File::from(writer), [slow.start_sector, fast.start_sector])
}

fn machine(backend: Arc<dyn BlockBackend>, queues: u16) -> Machine<VirtioBlock> {
    let device = Arc::new(BlockDevice::new(backend, config(queues)));
    let mut machine = Machine::new(VirtioBlock::new("drive", device), driver::ram(), usize::from(queues), 64);
    let features = machine.device.features();
    machine.activate(features).unwrap();
    machine
}

/// Where request `slot` has its header, status and 4096 bytes of data.
fn place(slot: u64) -> [u64; 3] {
    let at = BUFFERS + slot * 0x4000;
    [at, at + 0x100, at + 0x1000]
}

/// Offers a request without a kick; its head.
fn offer(machine: &mut Machine<VirtioBlock>, queue: usize, slot: u64, kind: u32, sector: u64) -> u32 {
    let [header, status, data] = place(slot);
    let mut bytes = [0_u8; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    machine.ram.write_slice(&bytes, GuestAddress(header)).unwrap();
    machine.ram.write_slice(&[0xee], GuestAddress(status)).unwrap();
    let mut chain = vec![readable(header, 16)];
    chain.extend(match kind {
        READ => Some(writable(data, 4096)),
        WRITE_OUT => Some(readable(data, 4096)),
        _ => None,
    });
    chain.push(writable(status, 1));
    u32::from(machine.rings[queue].submit(&machine.ram, &chain))
}

fn status(machine: &Machine<VirtioBlock>, slot: u64) -> u8 {
    machine.ram.read_obj(GuestAddress(place(slot)[1])).unwrap()
}

fn data(machine: &Machine<VirtioBlock>, slot: u64) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    machine.ram.read_slice(&mut bytes, GuestAddress(place(slot)[2])).unwrap();
    bytes
}

#[test]
fn requests_end_in_the_order_in_which_they_are_done() {
    if !has_io_uring() {
        return;
    }
    let (drive, mut pipe, [slow, fast]) = slow_and_fast();
    let mut machine = machine(drive.clone(), 1);
    let first = offer(&mut machine, 0, 0, READ, slow);
    let second = offer(&mut machine, 0, 1, READ, fast);
    machine.kick(0);
    assert_eq!(machine.wait_used(0), (second, 4097));
    assert_eq!((data(&machine, 1), status(&machine, 1)), (vec![2; 4096], OK));
    assert_eq!(status(&machine, 0), 0xee);
    // An image that goes while it is read stays readable for this reader.
    assert!(drive.unmap("slow"));
    // In pieces: a request is done when all of it is.
    pipe.write_all(&[7; 1000]).unwrap();
    let third = offer(&mut machine, 0, 2, READ, fast);
    machine.kick(0);
    assert_eq!(machine.wait_used(0).0, third);
    pipe.write_all(&[7; 3096]).unwrap();
    assert_eq!(machine.wait_used(0), (first, 4097));
    assert_eq!((data(&machine, 0), status(&machine, 0)), (vec![7; 4096], OK));
}

#[test]
fn what_lies_behind_a_files_end_is_zeros() {
    if !has_io_uring() {
        return;
    }
    let (drive, mut pipe, [slow, _]) = slow_and_fast();
    let mut machine = machine(drive, 1);
    machine.ram.write_slice(&[0xaa; 4096], GuestAddress(place(0)[2])).unwrap();
    let head = offer(&mut machine, 0, 0, READ, slow);
    machine.kick(0);
    pipe.write_all(&[7; 100]).unwrap();
    drop(pipe);
    assert_eq!(machine.wait_used(0), (head, 4097));
    assert_eq!(data(&machine, 0), [vec![7; 100], vec![0; 3996]].concat());
}

#[test]
fn a_reset_waits_for_requests_under_way() {
    if !has_io_uring() {
        return;
    }
    for suspends in [false, true] {
        let (drive, mut pipe, [slow, fast]) = slow_and_fast();
        let mut machine = machine(drive, 1);
        offer(&mut machine, 0, 0, READ, slow);
        offer(&mut machine, 0, 1, READ, fast);
        machine.kick(0);
        machine.wait_used(0);
        let (begun, given) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let resetting = scope.spawn(|| {
                begun.store(true, Ordering::SeqCst);
                let state = suspends.then(|| machine.device.suspend().unwrap());
                machine.device.reset();
                assert!(given.load(Ordering::SeqCst), "a request was under way");
                state
            });
            while !begun.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            // One that does not wait is done by then.
            (0..1000).for_each(|_| std::thread::yield_now());
            given.store(true, Ordering::SeqCst);
            pipe.write_all(&[7; 4096]).unwrap();
            let state = resetting.join().unwrap();
            assert!(state.is_none_or(|state| state.queues[0].next_used == 2));
        });
        // Answered, and nobody reads any more.
        assert_eq!((data(&machine, 0), status(&machine, 0)), (vec![7; 4096], OK));
        // The device works again, with the same io_uring.
        machine.ram = driver::ram();
        machine.rings = vec![driver::Ring::new(0x1_0000, 64)];
        let features = machine.device.features();
        machine.activate(features).unwrap();
        let again = offer(&mut machine, 0, 0, READ, slow);
        let fast = offer(&mut machine, 0, 1, READ, fast);
        machine.kick(0);
        assert_eq!(machine.wait_used(0), (fast, 4097));
        pipe.write_all(&[8; 4096]).unwrap();
        assert_eq!(machine.wait_used(0), (again, 4097));
    }
}

#[test]
fn a_queue_does_not_wait_for_another() {
    let (drive, mut pipe, [slow, fast]) = slow_and_fast();
    let mut machine = machine(drive, 2);
    assert_ne!(machine.device.features() & F_MQ, 0);
    assert_eq!(machine.device.read_config(34, 2), 2_u16.to_le_bytes());
    let head = offer(&mut machine, 0, 0, READ, slow);
    machine.kick(0);
    for slot in 1..4 {
        offer(&mut machine, 1, slot, READ, fast);
        machine.kick(1);
        assert_eq!(machine.wait_used(1).1, 4097);
    }
    pipe.write_all(&[7; 4096]).unwrap();
    assert_eq!(machine.wait_used(0), (head, 4097));
}

/// A file that is written, and another one that is synced: a pipe, which cannot be.
#[derive(Debug)]
struct Unsyncable(Arc<File>, Arc<File>);

impl BlockBackend for Unsyncable {
    fn len(&self) -> u64 {
        1 << 20
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn locate(&self, offset: u64) -> Place {
        Place::File { file: self.0.clone(), at: offset, len: self.len() - offset }
    }
    fn to_sync(&self) -> Option<Arc<File>> {
        Some(self.1.clone())
    }
}

#[test]
fn writes_are_synced_when_the_driver_asks_or_cannot_ask() {
    for io in [BlockIo::new, BlockIo::synchronous] {
        let pipe = File::from(rustix::pipe::pipe().unwrap().1);
        let backend = Unsyncable(Arc::new(tempfile::tempfile().unwrap()), Arc::new(pipe));
        let device = Arc::new(BlockDevice::new(Arc::new(backend), config(1)));
        let block = VirtioBlock::with_io("drive", device, io);
        let mut machine = Machine::new(block, driver::ram(), 1, 64);
        let features = machine.device.features();
        for (accepted, written) in [(features, OK), (features & !F_FLUSH, IOERR)] {
            machine.rings = vec![driver::Ring::new(0x1_0000, 64)];
            machine.ram = driver::ram();
            machine.activate(accepted).unwrap();
            for (slot, kind, expected) in [(0, WRITE_OUT, written), (1, FLUSH, IOERR), (2, READ, OK)] {
                offer(&mut machine, 0, slot, kind, 0);
                machine.kick(0);
                machine.wait_used(0);
                assert_eq!(status(&machine, slot), expected, "request {kind}, features {accepted:#x}");
            }
            machine.device.reset();
        }
    }
}

/// A flush covers what was answered before: it waits for no request that is under way.
#[test]
fn a_flush_overtakes() {
    if !has_io_uring() {
        return;
    }
    #[derive(Debug)]
    struct SlowAndSynced(Arc<ImageDrive>, Arc<File>);
    impl BlockBackend for SlowAndSynced {
        fn len(&self) -> u64 {
            self.0.len()
        }
        fn is_read_only(&self) -> bool {
            false
        }
        fn locate(&self, offset: u64) -> Place {
            self.0.locate(offset)
        }
        fn to_sync(&self) -> Option<Arc<File>> {
            Some(self.1.clone())
        }
    }
    let (drive, mut pipe, [slow, fast]) = slow_and_fast();
    let mut machine = machine(Arc::new(SlowAndSynced(drive, Arc::new(tempfile::tempfile().unwrap()))), 1);
    let read = offer(&mut machine, 0, 0, READ, slow);
    machine.ram.write_slice(&[9; 4096], GuestAddress(place(1)[2])).unwrap();
    let write = offer(&mut machine, 0, 1, WRITE_OUT, fast);
    machine.kick(0);
    assert_eq!(machine.wait_used(0), (write, 1));
    let flush = offer(&mut machine, 0, 2, FLUSH, 0);
    machine.kick(0);
    assert_eq!(machine.wait_used(0), (flush, 1));
    assert_eq!((status(&machine, 1), status(&machine, 2), status(&machine, 0)), (OK, OK, 0xee));
    pipe.write_all(&[7; 4096]).unwrap();
    assert_eq!(machine.wait_used(0).0, read);
}

#[test]
fn a_broken_queue_answers_nothing_and_ends() {
    if !has_io_uring() {
        return;
    }
    let (drive, mut pipe, [slow, fast]) = slow_and_fast();
    let mut machine = machine(drive, 1);
    offer(&mut machine, 0, 0, READ, slow);
    offer(&mut machine, 0, 1, READ, fast);
    machine.kick(0);
    machine.wait_used(0);
    machine.rings[0].set_available(&machine.ram, 100);
    machine.kick(0);
    machine.raised.wait_needs_reset();
    pipe.write_all(&[7; 4096]).unwrap();
    machine.device.reset();
    // The data came, which the driver must expect until the reset; the answer did not.
    assert_eq!((data(&machine, 0), status(&machine, 0)), (vec![7; 4096], 0xee));
}
