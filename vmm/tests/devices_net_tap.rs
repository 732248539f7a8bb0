//! virtio-net on a tap device of the kernel, in a network namespace of its own.
#![allow(clippy::unwrap_used, unsafe_code, reason = "tests, and the ioctl that makes a tap")]

mod driver;

use std::fs::OpenOptions;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use bulkhead_vmm::devices::net::{MAX_FRAME, NetBackend, Tap, TapError, Wait};
use driver::net::{HEADER, Rig, config};
use rustix::event::{PollFd, PollFlags, Timespec};

const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const CSUM: u64 = 1 << 0 | 1 << 1;
const MERGED: u64 = 1 << 15;
const USO: u64 = 1 << 54 | 1 << 55 | 1 << 56;
const NEEDS_CSUM: u8 = 1;
const GSO_UDP_L4: u8 = 5;
/// Ethernet, IPv4 and UDP headers.
const HEADERS: usize = 14 + 20 + 8;

/// False, and why, when the machine allows no tap. The calling thread is in a namespace of its own afterwards.
fn enter_namespace(name: &str) -> bool {
    let why = if !rustix::process::geteuid().is_root() {
        "needs root".to_owned()
    } else if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        format!("/dev/net/tun: {error}")
    } else if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
        format!("no network namespace: {error}")
    } else {
        return true;
    };
    println!("skipped: {name}: {why}");
    false
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

fn open_tap(flags: libc::c_int) -> OwnedFd {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun").unwrap();
    // SAFETY: `ifreq` is plain old data for which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"tap0") {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`.
    assert_eq!(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) }, 0);
    file.into()
}

fn tap_flags() -> libc::c_int {
    libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR
}

/// A device on a tap whose host side has the address 10.0.0.1 and knows the guest as 10.0.0.2.
fn rig(features: u64) -> Rig {
    let tap = Tap::new(open_tap(tap_flags())).unwrap();
    ip("address add 10.0.0.1/24 dev tap0");
    ip("link set tap0 up mtu 1500");
    ip("neighbour add 10.0.0.2 lladdr 52:54:00:01:02:03 dev tap0");
    let mut rig = Rig::new(tap, config(), features);
    rig.give(0..64, 2048);
    rig
}

/// The next UDP frame for the guest; others (router solicitations) are passed over.
fn next_udp(rig: &mut Rig, tap: i32) -> Vec<u8> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let turn = rig.pair.process_rx(&rig.ram, &mut rig.rx_queue).unwrap();
        while let Some((frame, slots)) = rig.received(2048) {
            for slot in slots {
                rig.give(slot as u16..slot as u16 + 1, 2048);
            }
            if frame[HEADER + 12..HEADER + 14] == [8, 0] && frame[HEADER + 23] == 17 {
                return frame;
            }
        }
        assert!(Instant::now() < end, "no frame: {turn:?}");
        // SAFETY: the device keeps the tap open.
        let tap = unsafe { std::os::fd::BorrowedFd::borrow_raw(tap) };
        let timeout = Timespec { tv_sec: 1, tv_nsec: 0 };
        rustix::event::poll(&mut [PollFd::new(&tap, PollFlags::IN)], Some(&timeout)).unwrap();
    }
}

/// Ones' complement sum of 16-bit words.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut total: u32 = words.sum();
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// A frame from the guest to the host's UDP port. The checksum is left to the device.
fn udp_frame(host_mac: [u8; 6], port: u16, payload: &[u8], gso_size: u16) -> Vec<u8> {
    let udp_len = (8 + payload.len()) as u16;
    let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1];
    ip[2..4].copy_from_slice(&(20 + udp_len).to_be_bytes());
    let check = !sum(&ip);
    ip[10..12].copy_from_slice(&check.to_be_bytes());
    let pseudo = [&ip[12..20], &[0, 17], &udp_len.to_be_bytes()].concat();
    let mut udp = [&[0x10, 0][..], &port.to_be_bytes(), &udp_len.to_be_bytes(), &sum(&pseudo).to_be_bytes()].concat();
    udp.extend(payload);
    let mut header = vec![NEEDS_CSUM, if gso_size > 0 { GSO_UDP_L4 } else { 0 }];
    for field in [HEADERS as u16, gso_size, 34, 6, 0] {
        header.extend(field.to_le_bytes());
    }
    [header, host_mac.to_vec(), GUEST_MAC.to_vec(), vec![8, 0], ip, udp].concat()
}

fn host_mac() -> [u8; 6] {
    let text = Command::new("ip").args(["-br", "link", "show", "tap0"]).output().unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    let mac = text.split_whitespace().find(|word| word.len() == 17).unwrap();
    let bytes: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

#[test]
fn udp_passes_both_ways_with_and_without_offloads() {
    if !enter_namespace("udp_passes_both_ways_with_and_without_offloads") {
        return;
    }
    for features in [0, MERGED, CSUM | MERGED] {
        let mut rig = rig(features);
        let tap = rig.device.backends()[0].as_fd().as_raw_fd();
        let socket = UdpSocket::bind("10.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket.send_to(&[0x5a; 1000], "10.0.0.2:7").unwrap();
        let frame = next_udp(&mut rig, tap);
        assert_eq!(frame.len(), HEADER + HEADERS + 1000);
        assert_eq!((&frame[HEADER..HEADER + 6], &frame[10..12]), (&GUEST_MAC[..], &[1, 0][..]));
        assert_eq!(frame[HEADER + HEADERS..], [0x5a; 1000]);
        let offloaded = frame[0] & NEEDS_CSUM != 0;
        assert_eq!(offloaded, features & CSUM != 0, "features {features:#x}");
        let port = socket.local_addr().unwrap().port();
        let mut payload = [0; 2000];
        rig.queue_frame(&udp_frame(host_mac(), port, b"from the guest", 0));
        rig.pair.process_tx(&rig.ram, &mut rig.tx_queue).unwrap();
        let (count, _) = socket.recv_from(&mut payload).unwrap();
        assert_eq!(&payload[..count], b"from the guest");
    }
}

#[test]
fn segments_are_left_to_the_other_side() {
    if !enter_namespace("segments_are_left_to_the_other_side") {
        return;
    }
    let mut rig = rig(CSUM | MERGED | USO);
    if !rig.device.backends()[0].segments_udp() {
        println!("skipped: segments_are_left_to_the_other_side: a tap of this kernel takes no UDP segments");
        return;
    }
    let tap = rig.device.backends()[0].as_fd().as_raw_fd();
    let socket = UdpSocket::bind("10.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let size: libc::c_int = 1000;
    // SAFETY: the option reads one `int`.
    let set =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, (&raw const size).cast(), 4) };
    assert_eq!(set, 0);
    socket.send_to(&[1; 30_000], "10.0.0.2:7").unwrap();
    let frame = next_udp(&mut rig, tap);
    assert_eq!((frame.len(), frame[1]), (HEADER + HEADERS + 30_000, GSO_UDP_L4));
    assert_eq!(frame[10..12], ((frame.len().div_ceil(2048)) as u16).to_le_bytes());
    let port = socket.local_addr().unwrap().port();
    rig.queue_frame(&udp_frame(host_mac(), port, &[2; 20_000], 1000));
    rig.pair.process_tx(&rig.ram, &mut rig.tx_queue).unwrap();
    let mut payload = [0; 2000];
    for _ in 0..20 {
        assert_eq!(socket.recv_from(&mut payload).unwrap().0, 1000);
    }
}

#[test]
fn headers_without_sense_are_refused_by_the_kernel() {
    if !enter_namespace("headers_without_sense_are_refused_by_the_kernel") {
        return;
    }
    let mut rig = rig(CSUM | MERGED);
    let counters = rig.device.counters();
    let good = udp_frame(host_mac(), 9, b"x", 0);
    let mut bad = [good.clone(), good.clone(), good];
    // The checksum starts behind the frame; segments of an unknown kind; a length of headers behind the frame.
    bad[0][6..8].copy_from_slice(&60_000_u16.to_le_bytes());
    bad[1][1] = 0x33;
    bad[2][2..4].copy_from_slice(&0xffff_u16.to_le_bytes());
    for frame in &bad {
        rig.queue_frame(frame);
    }
    let largest = vec![0; HEADER + MAX_FRAME];
    rig.queue_frame(&largest);
    assert_eq!(rig.pair.process_tx(&rig.ram, &mut rig.tx_queue).unwrap().wait, Wait::Driver);
    let dropped = counters.tx_dropped.load(std::sync::atomic::Ordering::Relaxed);
    assert!((2..=4).contains(&dropped), "{dropped}");
}

#[test]
fn other_descriptors_are_refused() {
    let file: OwnedFd = tempfile::tempfile().unwrap().into();
    assert!(matches!(Tap::new(file), Err(TapError::Io { .. })));
    if !enter_namespace("other_descriptors_are_refused") {
        return;
    }
    for flags in [libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR, libc::IFF_TAP | libc::IFF_NO_PI, libc::IFF_TAP]
    {
        let error = Tap::new(open_tap(flags)).unwrap_err();
        assert!(matches!(error, TapError::Kind { .. }), "{error}");
    }
}

#[test]
fn queues_of_a_tap_are_attached_and_detached() {
    if !enter_namespace("queues_of_a_tap_are_attached_and_detached") {
        return;
    }
    let flags = tap_flags() | libc::IFF_MULTI_QUEUE;
    let taps: Vec<Box<dyn NetBackend>> = (0..2).map(|_| Box::new(Tap::new(open_tap(flags)).unwrap()) as _).collect();
    let device = bulkhead_vmm::devices::net::NetDevice::new(taps, config());
    for _ in 0..3 {
        device.set_acked_features(device.features()).unwrap();
        device.set_active_pairs(2).unwrap();
        device.reset();
    }
}
