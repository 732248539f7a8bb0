//! Honest requests, and every way to be dishonest. Part of the tests twice: see there.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::time::Duration;

use bulkhead_vmm::devices::block::{
    BlockConfig, BlockDevice, BlockIo, FlushPolicy, ImageDrive, ImageDriveError, RawFile, Turn,
};
use bulkhead_vmm::devices::rate_limiter::{Limit, Limits};
use bulkhead_vmm::devices::{BrokenQueue, GuestRam};
use proptest::prelude::*;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::driver::{self, BUFFERS, Buffer, HOLE, INDIRECT, NEXT, REGIONS, Ring, SEAM, readable, writable};

const READ: u32 = 0;
const WRITE_OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
/// What the status byte holds until the device writes it.
const UNTOUCHED: u8 = 0xee;

const HEADER: u64 = BUFFERS;
const STATUS: u64 = BUFFERS + 0x100;
const DATA: u64 = BUFFERS + 0x1000;

struct Rig {
    ram: GuestRam,
    device: BlockDevice,
    ring: Ring,
    queue: Queue,
    io: BlockIo,
}

impl Rig {
    fn new(device: BlockDevice) -> Self {
        let ring = Ring::new(0x1_0000, 64);
        let queue = ring.queue();
        device.set_acked_features(device.features());
        Self { ram: driver::ram(), device, ring, queue, io: io() }
    }

    /// A scratch drive of 1 MiB in which each byte is its sector's number.
    fn scratch() -> (Self, File) {
        let sectors: Vec<u8> = (0..1 << 20).map(|at: u32| (at / 512) as u8).collect();
        let file = file_of(&sectors);
        let shared = file.try_clone().unwrap();
        let backend = RawFile::new(file, FlushPolicy::Sync).unwrap();
        (Self::new(BlockDevice::new(Arc::new(backend), config())), shared)
    }

    fn images(drive: Arc<ImageDrive>) -> Self {
        Self::new(BlockDevice::new(drive, config()))
    }

    fn turn(&mut self) -> Result<Turn, BrokenQueue> {
        self.device.process(&self.ram, &mut self.queue, 0, &mut self.io)
    }

    /// Answers everything that is offered; the chains given back.
    fn process(&mut self) -> Vec<(u32, u32)> {
        for _ in 0..1000 {
            let turn = self.turn().unwrap();
            assert_eq!(turn.wait, None, "no limit was set");
            if !turn.more && self.io.in_flight() == 0 {
                return std::iter::from_fn(|| self.ring.used(&self.ram)).collect();
            }
            if !turn.more {
                self.io.wait().unwrap();
            }
        }
        panic!("the device never comes to rest");
    }

    fn write_header(&self, kind: u32, sector: u64) {
        let mut header = [0_u8; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.put(HEADER, &header);
        self.put(STATUS, &[UNTOUCHED]);
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// A request with these data buffers; the status, and the bytes reported as written.
    fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        self.write_header(kind, sector);
        let mut chain = vec![readable(HEADER, 16)];
        chain.extend(data);
        chain.push(writable(STATUS, 1));
        let head = self.ring.submit(&self.ram, &chain);
        let used = self.process();
        assert_eq!(used.len(), 1);
        assert_eq!(used[0].0, u32::from(head));
        (self.get(STATUS, 1)[0], used[0].1)
    }

    /// Submits a chain as it is; what the device gave back, and the status byte.
    fn raw(&mut self, buffers: &[Buffer]) -> (Vec<(u32, u32)>, u8) {
        self.ring.submit(&self.ram, buffers);
        (self.process(), self.get(STATUS, 1)[0])
    }
}

fn io() -> BlockIo {
    match module_path!().rsplit("::").next() {
        Some("by_thread") => BlockIo::synchronous(),
        _ => BlockIo::new(),
    }
}

fn config() -> BlockConfig {
    BlockConfig { serial: "a-serial-that-is-longer-than-20".into(), queues: 1 }
}

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

#[test]
fn reads_are_scattered_over_buffers_and_regions() {
    let (mut rig, _) = Rig::scratch();
    let data = [writable(DATA, 100), writable(SEAM - 200, 412), writable(DATA + 0x1000, 512)];
    assert_eq!(rig.request(READ, 5, &data), (OK, 1025));
    assert_eq!(rig.get(DATA, 100), [5; 100]);
    assert_eq!(rig.get(SEAM - 200, 412), [5; 412]);
    assert_eq!(rig.get(DATA + 0x1000, 512), [6; 512]);
    assert_eq!(rig.device.counters().read_bytes(), 1024);
}

#[test]
fn writes_reach_the_file_and_its_neighbours_do_not_change() {
    let (mut rig, file) = Rig::scratch();
    rig.put(DATA, &[0xaa; 1024]);
    assert_eq!(rig.request(WRITE_OUT, 2046, &[readable(DATA, 512), readable(DATA + 512, 512)]), (OK, 1));
    let mut end = [0; 1536];
    file.read_exact_at(&mut end, 2045 * 512).unwrap();
    assert_eq!(end[..512], [0xfd; 512]);
    assert_eq!(end[512..], [0xaa; 1024]);
    assert_eq!(rig.device.counters().written_bytes(), 1024);
    assert_eq!(rig.request(FLUSH, 0, &[]), (OK, 1));
}

#[test]
fn requests_outside_the_drive_or_off_its_sectors_fail() {
    let (mut rig, file) = Rig::scratch();
    let before = file.metadata().unwrap().len();
    for (sector, len) in [
        (2047, 1024),
        (2048, 512),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (u64::MAX / 512 + 1, 512),
        (1 << 55, 512),
        (0, 511),
        (0, 513),
        (0, 0),
    ] {
        assert_eq!(rig.request(READ, sector, &[writable(DATA, len)]).0, IOERR, "read {len} at {sector}");
        assert_eq!(rig.request(WRITE_OUT, sector, &[readable(DATA, len)]).0, IOERR, "write {len} at {sector}");
    }
    assert_eq!(file.metadata().unwrap().len(), before);
    assert_eq!(rig.device.counters().read_bytes() + rig.device.counters().written_bytes(), 0);
}

#[test]
fn data_in_the_wrong_direction_does_nothing() {
    let (mut rig, file) = Rig::scratch();
    // A write whose data are for the device to fill, and a read whose data are for it to read.
    assert_eq!(rig.request(WRITE_OUT, 0, &[writable(DATA, 512)]).0, IOERR);
    rig.put(DATA, &[7; 512]);
    assert_eq!(rig.request(READ, 1, &[readable(DATA, 512)]).0, IOERR);
    assert_eq!(rig.get(DATA, 512), [7; 512]);
    let mut first = [1; 512];
    file.read_exact_at(&mut first, 0).unwrap();
    assert_eq!(first, [0; 512]);
}

#[test]
fn get_id_gives_twenty_bytes() {
    let (mut rig, _) = Rig::scratch();
    assert_eq!(rig.request(GET_ID, 0, &[writable(DATA, 20)]), (OK, 21));
    assert_eq!(rig.get(DATA, 20), b"a-serial-that-is-lon");
    assert_eq!(rig.request(GET_ID, 0, &[writable(DATA, 19)]).0, IOERR);
}

#[test]
fn unknown_requests_are_unsupported() {
    let (mut rig, _) = Rig::scratch();
    for kind in [2, 3, 5, 9, 10, 12, 14, 15, 26, u32::MAX] {
        assert_eq!(rig.request(kind, 0, &[writable(DATA, 512)]).0, UNSUPP);
    }
}

fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn discard_gives_space_back_and_zeroes() {
    let (mut rig, file) = Rig::scratch();
    let blocks = file.metadata().unwrap().blocks();
    let segments = [segment(8, 512, 0), segment(1024, 512, 0)].concat();
    rig.put(DATA, &segments);
    assert_eq!(rig.request(DISCARD, 0, &[readable(DATA, segments.len() as u32)]), (OK, 1));
    let mut bytes = [1; 512];
    file.read_exact_at(&mut bytes, 1024 * 512).unwrap();
    assert_eq!(bytes, [0; 512]);
    assert!(file.metadata().unwrap().blocks() < blocks);
    for flags in [0, 1] {
        rig.put(DATA, &segment(3, 2, flags));
        assert_eq!(rig.request(WRITE_ZEROES, 0, &[readable(DATA, 16)]).0, OK);
        file.read_exact_at(&mut bytes, 4 * 512).unwrap();
        assert_eq!(bytes, [0; 512]);
        file.read_exact_at(&mut bytes, 5 * 512).unwrap();
        assert_eq!(bytes, [5; 512]);
    }
    assert_eq!(file.metadata().unwrap().len(), 1 << 20);
}

#[test]
fn bad_segments_change_nothing() {
    let (mut rig, file) = Rig::scratch();
    for (kind, bytes, status) in [
        (DISCARD, segment(0, 8, 1), UNSUPP),
        (WRITE_ZEROES, segment(0, 8, 2), UNSUPP),
        (DISCARD, segment(2048, 1, 0), IOERR),
        (DISCARD, segment(u64::MAX, u32::MAX, 0), IOERR),
        (DISCARD, segment(0, 0, 0), IOERR),
        (DISCARD, segment(0, u32::MAX, 0), IOERR),
        (DISCARD, vec![0; 15], IOERR),
        (DISCARD, Vec::new(), IOERR),
        (WRITE_ZEROES, segment(0, 8, 0).repeat(33), IOERR),
    ] {
        rig.put(DATA, &bytes);
        assert_eq!(rig.request(kind, 0, &[readable(DATA, bytes.len() as u32)]).0, status, "{kind} {bytes:?}");
    }
    let mut bytes = [0; 512];
    file.read_exact_at(&mut bytes, 512).unwrap();
    assert_eq!(bytes, [1; 512]);
}

#[test]
fn a_read_only_file_makes_a_read_only_drive() {
    let path = tempfile::NamedTempFile::new().unwrap();
    path.as_file().set_len(4096).unwrap();
    let backend = RawFile::new(File::open(path.path()).unwrap(), FlushPolicy::Ephemeral).unwrap();
    let mut rig = Rig::new(BlockDevice::new(Arc::new(backend), config()));
    assert_eq!(rig.device.features() & (1 << 5 | 1 << 13 | 1 << 14), 1 << 5);
    assert_eq!(rig.request(WRITE_OUT, 0, &[readable(DATA, 512)]).0, IOERR);
    rig.put(DATA, &segment(0, 8, 0));
    assert_eq!(rig.request(DISCARD, 0, &[readable(DATA, 16)]).0, UNSUPP);
    assert_eq!(rig.request(READ, 0, &[writable(DATA, 4096)]).0, OK);
}

#[test]
fn chains_without_a_place_for_the_status_are_dropped() {
    let (mut rig, _) = Rig::scratch();
    rig.write_header(READ, 0);
    for chain in [vec![readable(HEADER, 16)], vec![readable(HEADER, 16), writable(STATUS, 0)]] {
        let (used, status) = rig.raw(&chain);
        assert_eq!((used.len(), used[0].1, status), (1, 0, UNTOUCHED));
    }
}

#[test]
fn a_short_header_is_an_io_error() {
    let (mut rig, _) = Rig::scratch();
    rig.write_header(READ, 0);
    assert_eq!(rig.raw(&[readable(HEADER, 15), writable(DATA, 512), writable(STATUS, 1)]).1, IOERR);
    rig.write_header(READ, 0);
    assert_eq!(rig.raw(&[writable(STATUS, 1)]).1, IOERR);
}

#[test]
fn a_header_in_pieces_and_empty_buffers_are_fine() {
    let (mut rig, _) = Rig::scratch();
    rig.write_header(READ, 9);
    let chain = [
        readable(HEADER, 3),
        readable(HEADER, 0),
        readable(HEADER + 3, 13),
        writable(DATA, 0),
        writable(DATA, 512),
        writable(STATUS, 1),
    ];
    assert_eq!(rig.raw(&chain).1, OK);
    assert_eq!(rig.get(DATA, 512), [9; 512]);
}

#[test]
fn malformed_chains_are_given_back_untouched() {
    let (mut rig, _) = Rig::scratch();
    for (what, middle) in [
        ("outside memory", writable(1 << 40, 512)),
        ("into the hole", writable(HOLE - 256, 512)),
        ("past the end of addresses", writable(u64::MAX - 100, 512)),
        ("four gigabytes", writable(DATA, u32::MAX)),
        ("readable behind writable", readable(DATA, 512)),
    ] {
        rig.write_header(READ, 0);
        let chain = [readable(HEADER, 16), writable(DATA, 512), middle, writable(STATUS, 1)];
        let (used, status) = rig.raw(&chain);
        assert_eq!((used.len(), used[0].1, status), (1, 0, UNTOUCHED), "{what}");
    }
}

#[test]
fn loops_and_wild_indices_end() {
    let (mut rig, _) = Rig::scratch();
    rig.write_header(READ, 0);
    let link = |buffer: Buffer| Buffer { flags: buffer.flags | NEXT, ..buffer };
    // A descriptor that follows itself, two that follow each other, and one that leads out of the table.
    rig.ring.describe(&rig.ram, 40, link(readable(HEADER, 16)), 40);
    rig.ring.describe(&rig.ram, 41, link(readable(HEADER, 16)), 42);
    rig.ring.describe(&rig.ram, 42, link(readable(HEADER, 16)), 41);
    rig.ring.describe(&rig.ram, 43, link(readable(HEADER, 16)), 64);
    for head in [40, 41, 43] {
        rig.ring.offer(&rig.ram, head);
        assert_eq!(rig.process(), [(u32::from(head), 0)]);
    }
    assert_eq!(rig.get(STATUS, 1), [UNTOUCHED]);
}

#[test]
fn indirect_tables() {
    let (mut rig, _) = Rig::scratch();
    let table = BUFFERS + 0x8000;
    let link = |buffer: Buffer| Buffer { flags: buffer.flags | NEXT, ..buffer };
    let indirect = |address, len| Buffer { address, len, flags: INDIRECT };
    Ring::descriptor(&rig.ram, table, 0, link(readable(HEADER, 16)), 1);
    Ring::descriptor(&rig.ram, table, 1, link(writable(DATA, 512)), 2);
    Ring::descriptor(&rig.ram, table, 2, writable(STATUS, 1), 0);
    rig.write_header(READ, 3);
    assert_eq!(rig.raw(&[indirect(table, 48)]).1, OK);
    assert_eq!(rig.get(DATA, 512), [3; 512]);
    // An odd length, an empty table, one too short for the chain, one outside memory, and one inside another.
    Ring::descriptor(&rig.ram, table + 0x100, 0, indirect(table, 48), 0);
    for bad in [
        indirect(table, 47),
        indirect(table, 0),
        indirect(table, 32),
        indirect(1 << 40, 48),
        indirect(table + 0x100, 16),
    ] {
        rig.write_header(READ, 0);
        let (used, status) = rig.raw(&[bad]);
        assert_eq!((used.len(), used[0].1, status), (1, 0, UNTOUCHED), "{bad:?}");
    }
}

#[test]
fn impossible_ring_indices_break_the_queue() {
    let (mut rig, _) = Rig::scratch();
    rig.ring.set_available(&rig.ram, 65);
    assert_eq!(rig.turn().unwrap_err().queue, 0);
    let (mut rig, _) = Rig::scratch();
    rig.ring.offer(&rig.ram, 64);
    assert!(rig.turn().is_err());
    let (mut rig, _) = Rig::scratch();
    rig.queue.try_set_avail_ring_address(GuestAddress(HOLE)).unwrap();
    assert!(rig.turn().is_err());
}

#[test]
fn a_limited_drive_takes_as_many_requests_as_it_has_tokens() {
    let (mut rig, _) = Rig::scratch();
    // A token for a byte comes each 42 seconds.
    let day = Duration::from_secs(24 * 3600);
    let bytes = Some(Limit { amount: 2048, period: day });
    rig.device.set_limits(Limits { bytes, operations: None });
    rig.write_header(READ, 5);
    for _ in 0..6 {
        rig.ring.submit(&rig.ram, &[readable(HEADER, 16), writable(DATA, 512), writable(STATUS, 1)]);
    }
    let wait = loop {
        let turn = rig.turn().unwrap();
        if turn.wait.is_some() && rig.io.in_flight() == 0 {
            break turn.wait;
        }
        rig.io.wait().unwrap();
    };
    assert!(wait > Some(Duration::from_secs(1)), "{wait:?}");
    let used = |rig: &mut Rig| std::iter::from_fn(|| rig.ring.used(&rig.ram)).count();
    assert_eq!(used(&mut rig), 4);
    assert_eq!(rig.device.counters().read_bytes(), 2048);
    // Operations count too, and new limits begin with a full bucket.
    rig.device.set_limits(Limits { bytes: None, operations: Some(Limit { amount: 1, period: day }) });
    while rig.turn().unwrap().wait.is_none() || rig.io.in_flight() > 0 {
        rig.io.wait().unwrap();
    }
    assert_eq!(used(&mut rig), 1);
    rig.device.set_limits(Limits::default());
    assert_eq!(rig.process().len(), 1);
}

#[test]
fn configuration_space() {
    let (rig, _) = Rig::scratch();
    let config = rig.device.read_config(0, 256);
    assert_eq!(config.len(), 256);
    assert_eq!(config[..8], 2048_u64.to_le_bytes());
    assert_eq!(config[12..16], 126_u32.to_le_bytes());
    assert_eq!(config[20..24], 512_u32.to_le_bytes());
    assert_eq!(config[34..36], 1_u16.to_le_bytes());
    assert_eq!(config[60..], [0; 196]);
    assert_eq!(rig.device.read_config(usize::MAX, 4), [0; 4]);
    let images = Rig::images(Arc::new(ImageDrive::new()));
    assert_eq!(images.device.read_config(0, 8), (64_u64 << 31).to_le_bytes());
    assert_eq!(images.device.read_config(36, 24), [0; 24]);
}

#[test]
fn an_image_is_its_parts_one_after_the_other() {
    let drive = Arc::new(ImageDrive::new());
    // The second file is shorter than its part: the rest reads as zeros.
    let parts = vec![(file_of(&[1; 4096]), 4096), (file_of(&[2; 5000]), 8192), (file_of(&[3; 4096]), 4096)];
    let extent = drive.map("a", parts).unwrap();
    assert_eq!((extent.start_sector, extent.sectors), (2048, 32));
    let mut rig = Rig::images(drive.clone());
    // From the sector before the image to the one behind it.
    assert_eq!(rig.request(READ, 2047, &[writable(DATA, 34 * 512)]).0, OK);
    let expected = [vec![0; 512], vec![1; 4096], vec![2; 5000], vec![0; 3192], vec![3; 4096], vec![0; 512]].concat();
    assert_eq!(rig.get(DATA, 34 * 512), expected);
    assert_eq!(rig.request(WRITE_OUT, 2048, &[readable(DATA, 512)]).0, IOERR);
    assert_eq!(rig.request(READ, (64 << 31) - 1, &[writable(DATA, 512)]).0, OK);
    assert_eq!(rig.request(READ, 64 << 31, &[writable(DATA, 512)]).0, IOERR);
    assert!(drive.unmap("a"));
    assert!(!drive.unmap("a"));
    assert_eq!(rig.request(READ, 2048, &[writable(DATA, 512)]).0, OK);
    assert_eq!(rig.get(DATA, 512), [0; 512]);
}

#[test]
fn images_keep_their_place_and_places_are_used_once() {
    let drive = ImageDrive::new();
    let part = || vec![(file_of(&[1; 4096]), 4096)];
    let first = drive.map("a", part()).unwrap();
    assert_eq!(drive.map("a", part()).unwrap(), first);
    let second = drive.map("b", part()).unwrap();
    assert_eq!(second.start_sector % 2048, 0);
    assert!(second.start_sector >= first.start_sector + first.sectors + 2048);
    drive.unmap("a");
    assert!(drive.map("a", part()).unwrap().start_sector > second.start_sector);
}

#[test]
fn impossible_images_are_refused() {
    let drive = ImageDrive::new();
    assert!(matches!(drive.map("a", Vec::new()), Err(ImageDriveError::NoParts { .. })));
    for len in [0, 1, 4095, 4097] {
        let error = drive.map("a", vec![(file_of(&[]), 4096), (file_of(&[]), len)]).unwrap_err();
        assert!(matches!(error, ImageDriveError::PartLength { part: 1, len: l, .. } if l == len));
    }
    for len in [64 << 40, u64::MAX - 4095] {
        let error = drive.map("a", vec![(file_of(&[]), len), (file_of(&[]), len)]).unwrap_err();
        assert!(error.to_string().contains("new pod"), "{error}");
    }
    assert_eq!(drive.map("a", vec![(file_of(&[]), 4096)]).unwrap().start_sector, 2048);
}

#[test]
fn a_shared_seek_position_is_not_used() {
    let (mut rig, mut file) = Rig::scratch();
    file.seek(SeekFrom::Start(12345)).unwrap();
    assert_eq!(rig.request(READ, 1, &[writable(DATA, 512)]).0, OK);
    assert_eq!(rig.get(DATA, 512), [1; 512]);
    assert_eq!(file.stream_position().unwrap(), 12345);
}

/// Addresses that are mostly, but not always, in memory.
fn any_address() -> impl Strategy<Value = u64> {
    prop_oneof![0..REGIONS[2].0 + (5 << 20), Just(HEADER), Just(DATA), Just(HOLE - 8), any::<u64>()]
}

fn any_descriptor() -> impl Strategy<Value = (Buffer, u16)> {
    let len = prop_oneof![Just(16_u32), Just(1), Just(512), 0..70_000_u32, any::<u32>()];
    (any_address(), len, 0..8_u16, 0..66_u16)
        .prop_map(|(address, len, flags, next)| (Buffer { address, len, flags }, next))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the tables say, each offered chain comes back, and nothing panics or hangs.
    #[test]
    fn random_tables_are_survived(
        table in proptest::collection::vec(any_descriptor(), 64),
        heads in proptest::collection::vec(0..64_u16, 1..16),
        kind in 0..16_u32,
        sector in prop_oneof![0..3000_u64, any::<u64>()],
    ) {
        let (mut rig, _) = Rig::scratch();
        rig.write_header(kind, sector);
        for (index, (buffer, next)) in table.iter().enumerate() {
            rig.ring.describe(&rig.ram, index as u16, *buffer, *next);
        }
        for head in &heads {
            rig.ring.offer(&rig.ram, *head);
        }
        // Random writes may fall on the rings themselves: then the queue may break, but nothing else.
        let mut turns = 0;
        while let Ok(turn) = rig.turn() {
            if !turn.more && rig.io.in_flight() == 0 {
                break;
            }
            rig.io.wait().unwrap();
            turns += 1;
            prop_assert!(turns <= 1 << 16);
        }
    }

    #[test]
    fn honest_reads_give_what_the_file_holds(sector in 0..2048_u64, lens in proptest::collection::vec(1..2000_u32, 1..20)) {
        let (mut rig, _) = Rig::scratch();
        let mut at = DATA;
        let mut buffers: Vec<Buffer> = lens.iter().map(|len| { let buffer = writable(at, *len); at += u64::from(*len); buffer }).collect();
        let total: u32 = lens.iter().sum();
        buffers.push(writable(at, total.next_multiple_of(512) - total));
        let sectors = u64::from(total.div_ceil(512));
        let (status, _) = rig.request(READ, sector, &buffers);
        prop_assert_eq!(status, if sector + sectors <= 2048 { OK } else { IOERR });
        if status == OK {
            let expected: Vec<u8> = (sector..sector + sectors).flat_map(|sector| [sector as u8; 512]).collect();
            prop_assert_eq!(rig.get(DATA, expected.len()), expected);
        }
    }
}

#[test]
fn queues_survive_saving_and_restoring() {
    let (mut rig, _) = Rig::scratch();
    assert_eq!(rig.request(READ, 1, &[writable(DATA, 512)]).0, OK);
    rig.queue = Queue::try_from(rig.queue.state()).unwrap();
    assert_eq!(rig.request(READ, 2, &[writable(DATA, 512)]).0, OK);
    assert!(rig.queue.ready());
}
