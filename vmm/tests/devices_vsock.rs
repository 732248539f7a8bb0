//! virtio-vsock against a driver of ours: connections both ways, flow control, and guests that cheat.
#![allow(clippy::unwrap_used, reason = "tests")]

mod driver;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use bulkhead_vmm::devices::vsock::BUF_ALLOC;
use driver::vsock::{
    CREDIT_REQUEST, CREDIT_UPDATE, GUEST_CID, Packet, REQUEST, RESPONSE, RST, RW, Rig, SHUTDOWN, ops, payload,
    read_available, read_line,
};
use driver::{BUFFERS, Buffer, HOLE, NEXT, Ring, readable, writable};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

const RECEIVE: u32 = 1;
const SEND: u32 = 2;

fn shutdown(guest_port: u32, host_port: u32, flags: u32) -> Packet {
    Packet { flags, ..Packet::new(SHUTDOWN, guest_port, host_port) }
}

#[test]
fn the_guest_reaches_an_in_process_listener() {
    let mut rig = Rig::new();
    let mut stream = rig.guest_connects(1000, 7);
    assert_eq!(rig.send(&Packet::data(1000, 7, b"from the guest")), []);
    assert_eq!(read_available(&mut stream), b"from the guest");
    stream.write_all(b"from the host").unwrap();
    let packets = rig.run();
    assert_eq!((ops(&packets), payload(&packets)), (vec![RW], b"from the host".to_vec()));
    assert_eq!((packets[0].src_cid, packets[0].dst_cid, packets[0].kind), (2, GUEST_CID, 1));
    assert_eq!((packets[0].fwd_cnt, packets[0].buf_alloc), (14, BUF_ALLOC));
    assert_eq!((rig.handle.counters().from_guest_bytes(), rig.handle.counters().to_guest_bytes()), (14, 13));
}

#[test]
fn the_guest_reaches_a_unix_socket_by_its_port() {
    let mut rig = Rig::new();
    let listener = UnixListener::bind(rig.directory.path().join("vsock_7")).unwrap();
    assert_eq!(ops(&rig.send(&Packet::new(REQUEST, 1000, 7))), [RESPONSE]);
    let (mut stream, _) = listener.accept().unwrap();
    rig.send(&Packet::data(1000, 7, b"hi"));
    let mut bytes = [0; 2];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hi");
}

#[test]
fn nobody_listens() {
    let mut rig = Rig::new();
    let answer = rig.send(&Packet::new(REQUEST, 1000, 7));
    assert_eq!(ops(&answer), [RST]);
    assert_eq!((answer[0].src_cid, answer[0].dst_cid, answer[0].src_port, answer[0].dst_port), (2, GUEST_CID, 7, 1000));
    drop(rig.handle.listen(8).unwrap());
    assert_eq!(ops(&rig.send(&Packet::new(REQUEST, 1000, 8))), [RST]);
    assert_eq!(rig.device.connections(), 0);
}

#[test]
fn a_port_has_one_listener_at_a_time() {
    let rig = Rig::new();
    let listener = rig.handle.listen(7).unwrap();
    assert_eq!(rig.handle.listen(7).unwrap_err().kind(), ErrorKind::AddrInUse);
    drop(listener);
    rig.handle.listen(7).unwrap();
}

#[test]
fn a_listener_that_does_not_accept_refuses_in_the_end() {
    let mut rig = Rig::new();
    let listener = rig.handle.listen(7).unwrap();
    let answers: Vec<u16> = (0..200).flat_map(|port| ops(&rig.send(&Packet::new(REQUEST, port, 7)))).collect();
    assert_eq!(answers.iter().filter(|op| **op == RESPONSE).count(), 128);
    assert_eq!(answers.iter().filter(|op| **op == RST).count(), 72);
    drop(listener);
}

#[test]
fn a_client_connects_and_its_first_bytes_are_not_lost() {
    let mut rig = Rig::new();
    let mut client = rig.client("CONNECT 52\nearly bytes");
    let request = rig.wait(|packets| packets.into_iter().next());
    assert_eq!((request.op, request.dst_port), (REQUEST, 52));
    let packets = rig.send(&Packet::new(RESPONSE, 52, request.src_port));
    assert_eq!(payload(&packets), b"early bytes");
    assert_eq!(read_line(&mut client), format!("OK {}\n", request.src_port));
    rig.send(&Packet::data(52, request.src_port, b"answer"));
    let mut bytes = [0; 6];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"answer");
}

#[test]
fn a_first_line_may_come_in_pieces() {
    let mut rig = Rig::new();
    let mut client = rig.client("CONN");
    assert_eq!(rig.run(), []);
    client.write_all(b"ECT 5").unwrap();
    assert_eq!(rig.run(), []);
    client.write_all(b"2\n").unwrap();
    assert_eq!(rig.wait(|packets| packets.into_iter().next()).dst_port, 52);
}

#[test]
fn bad_first_lines_are_told_so() {
    let mut rig = Rig::new();
    for line in ["HELLO\n", "CONNECT x\n", "CONNECT 4294967296\n", "CONNECT 000000000000000000000000000000001", "\n"] {
        let mut client = rig.client(line);
        assert_eq!(rig.run(), []);
        assert_eq!(read_line(&mut client), "ERR expected CONNECT <port>\n", "{line}");
        assert_eq!(client.read(&mut [0]).unwrap_or(0), 0);
    }
    drop(rig.client("CONN"));
    assert_eq!(rig.run(), []);
    assert!(!rig.poll(Duration::ZERO));
}

#[test]
fn a_guest_that_refuses_or_does_not_answer() {
    let mut rig = Rig::new();
    let mut client = rig.client("CONNECT 52\n");
    let request = rig.wait(|packets| packets.into_iter().next());
    assert_eq!(rig.send(&Packet::new(RST, 52, request.src_port)), []);
    assert_eq!(read_line(&mut client), "ERR the guest refused the connection\n");
    let mut client = rig.client("CONNECT 52\n");
    let request = rig.wait(|packets| packets.into_iter().next());
    // The answer that comes too late is refused in turn.
    let reset = rig.wait(|packets| packets.into_iter().next());
    assert_eq!((reset.op, reset.src_port), (RST, request.src_port));
    assert_eq!(read_line(&mut client), "ERR the guest did not answer in time\n");
    assert_eq!(ops(&rig.send(&Packet::new(RESPONSE, 52, request.src_port))), [RST]);
    assert_eq!(rig.device.connections(), 0);
}

#[test]
fn a_handle_connects() {
    let mut rig = Rig::new();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let connecting = rig.handle.connect(9);
    let request = rig.wait(|packets| packets.into_iter().next());
    rig.send(&Packet::new(RESPONSE, 9, request.src_port));
    let mut stream = runtime.block_on(connecting).unwrap();
    rig.send(&Packet::data(9, request.src_port, b"hello"));
    assert_eq!(read_available(&mut stream), b"hello");
    let connecting = rig.handle.connect(9);
    let request = rig.wait(|packets| packets.into_iter().next());
    rig.send(&Packet::new(RST, 9, request.src_port));
    assert_eq!(runtime.block_on(connecting).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let connecting = rig.handle.connect(9);
    rig.wait(|packets| packets.iter().any(|packet| packet.op == RST).then_some(()));
    assert_eq!(runtime.block_on(connecting).unwrap_err().kind(), ErrorKind::TimedOut);
    // Nobody waits any more: what the guest accepts is reset.
    let connecting = rig.handle.connect(9);
    let request = rig.wait(|packets| packets.into_iter().next());
    drop(connecting);
    assert_eq!(ops(&rig.send(&Packet::new(RESPONSE, 9, request.src_port))), [RST]);
}

#[test]
fn requests_wait_for_the_driver() {
    let mut rig = Rig::without_buffers(Duration::from_secs(5));
    let connecting = rig.handle.connect(9);
    assert_eq!(rig.run(), []);
    // The driver starts: what was asked for before is asked now.
    rig.device.reset();
    assert!(!rig.poll(Duration::ZERO));
    rig.give_buffer(0);
    assert_eq!(ops(&rig.run()), [REQUEST]);
    drop(connecting);
}

/// Sends for as long as the guest has credit, asking for more until none comes; the bytes sent.
fn send_all_credit(rig: &mut Rig, guest_port: u32, host_port: u32, sent: &mut Vec<u8>) -> u32 {
    let (mut allowed, mut fwd_cnt) = (0_u32, 0);
    loop {
        let answer = rig.send(&Packet::new(CREDIT_REQUEST, guest_port, host_port));
        let update = answer.iter().rfind(|packet| packet.op == CREDIT_UPDATE).unwrap();
        if update.fwd_cnt == fwd_cnt && allowed != 0 {
            return fwd_cnt;
        }
        fwd_cnt = update.fwd_cnt;
        allowed = update.buf_alloc - (sent.len() as u32 - fwd_cnt);
        let mut left = allowed as usize;
        while left > 0 {
            let take = left.min(60_000);
            let bytes: Vec<u8> = (sent.len()..sent.len() + take).map(|at| (at % 251) as u8).collect();
            let answer = rig.send(&Packet::data(guest_port, host_port, &bytes));
            assert!(!ops(&answer).contains(&RST));
            sent.extend(bytes);
            left -= take;
        }
    }
}

#[test]
fn a_stalled_reader_stops_the_guest_at_its_credit_and_loses_nothing() {
    let mut rig = Rig::new();
    let mut stream = rig.guest_connects(1000, 7);
    let mut sent = Vec::new();
    let fwd_cnt = send_all_credit(&mut rig, 1000, 7, &mut sent);
    assert_eq!(sent.len() as u32 - fwd_cnt, BUF_ALLOC);
    // Nothing spins while everybody waits.
    assert!(!rig.poll(Duration::ZERO));
    let mut received = Vec::new();
    let mut updates = 0;
    while received.len() < sent.len() {
        received.extend(read_available(&mut stream));
        updates += rig.run().iter().filter(|packet| packet.op == CREDIT_UPDATE).count();
    }
    assert!(received == sent);
    assert!(updates > 0, "the guest was not told that there is room again");
    rig.send(&Packet::data(1000, 7, b"more"));
    assert_eq!(read_available(&mut stream), b"more");
}

/// As Linux does (`virtio_transport_tx_buf_size`): the guest has no more in flight than its own receive buffer is long,
/// however much room the host has. A host that tells of its progress by its own room alone stops such a guest for good.
#[test]
fn a_guest_that_stops_at_its_own_buffer_hears_of_progress_in_time() {
    const OWN: u32 = BUF_ALLOC / 4;
    let mut rig = Rig::new();
    let mut listener = rig.handle.listen(7).unwrap();
    let from_guest = |op| Packet { buf_alloc: OWN, ..Packet::new(op, 1000, 7) };
    assert_eq!(ops(&rig.send(&from_guest(REQUEST))), [RESPONSE]);
    let mut stream = listener.try_recv().unwrap();
    let (mut sent, mut acknowledged, mut received) = (0_u32, 0, 0);
    while sent < 16 * OWN {
        let len = 4096.min(OWN - (sent - acknowledged));
        assert!(len > 0, "the guest waits for ever after {sent} bytes, of which {received} were read");
        let data = Packet { len, payload: vec![7; len as usize], ..from_guest(RW) };
        let answer = rig.send(&data);
        sent += len;
        received += read_available(&mut stream).len();
        acknowledged = answer.last().map_or(acknowledged, |packet| packet.fwd_cnt);
    }
    assert_eq!(received, sent as usize);
}

#[test]
fn a_byte_beyond_the_credit_is_a_reset() {
    let mut rig = Rig::new();
    let mut stream = rig.guest_connects(1000, 7);
    let mut sent = Vec::new();
    send_all_credit(&mut rig, 1000, 7, &mut sent);
    assert_eq!(ops(&rig.send(&Packet::data(1000, 7, b"x"))), [RST]);
    assert_eq!(rig.device.connections(), 0);
    assert!(sent.starts_with(&read_available(&mut stream)));
}

#[test]
fn the_guests_credit_stops_the_host() {
    let mut rig = Rig::new();
    let mut listener = rig.handle.listen(7).unwrap();
    rig.send(&Packet { buf_alloc: 5000, ..Packet::new(REQUEST, 1000, 7) });
    let mut stream = listener.try_recv().unwrap();
    let data: Vec<u8> = (0..20_000_u32).map(|at| at as u8).collect();
    stream.write_all(&data).unwrap();
    let packets = rig.run();
    assert_eq!(payload(&packets), data[..5000]);
    assert_eq!(packets.last().unwrap().op, CREDIT_REQUEST);
    assert!(!rig.poll(Duration::ZERO));
    let packets = rig.send(&Packet { buf_alloc: 5000, fwd_cnt: 1, ..Packet::new(CREDIT_UPDATE, 1000, 7) });
    assert_eq!(payload(&packets), data[5000..5001]);
    // A smaller buffer than what is in flight means no credit, not a negative one.
    assert_eq!(rig.send(&Packet { buf_alloc: 10, fwd_cnt: 2, ..Packet::new(CREDIT_UPDATE, 1000, 7) }), []);
    let packets = rig.send(&Packet { buf_alloc: u32::MAX, fwd_cnt: 5001, ..Packet::new(CREDIT_UPDATE, 1000, 7) });
    assert_eq!(payload(&packets), data[5001..]);
}

#[test]
fn credit_that_goes_back_or_ahead_is_a_reset() {
    for (first, second) in [(600, 599), (0, 1001), (600, 1001), (0, u32::MAX)] {
        let mut rig = Rig::new();
        let mut stream = rig.guest_connects(1000, 7);
        stream.write_all(&[1; 1000]).unwrap();
        assert_eq!(payload(&rig.run()).len(), 1000);
        assert_eq!(rig.send(&Packet { fwd_cnt: first, ..Packet::new(CREDIT_UPDATE, 1000, 7) }), []);
        assert_eq!(ops(&rig.send(&Packet { fwd_cnt: second, ..Packet::new(CREDIT_UPDATE, 1000, 7) })), [RST]);
        assert_eq!(rig.device.connections(), 0);
    }
}

#[test]
fn the_guest_closes_one_direction_then_the_other() {
    let mut rig = Rig::new();
    let mut stream = rig.guest_connects(1000, 7);
    rig.send(&Packet::data(1000, 7, b"last words"));
    assert_eq!(rig.send(&shutdown(1000, 7, SEND)), []);
    stream.set_nonblocking(false).unwrap();
    let mut words = String::new();
    stream.read_to_string(&mut words).unwrap();
    assert_eq!(words, "last words");
    stream.write_all(b"still here").unwrap();
    assert_eq!(payload(&rig.run()), b"still here");
    assert_eq!(ops(&rig.send(&shutdown(1000, 7, RECEIVE))), [RST]);
    assert_eq!(rig.device.connections(), 0);
    assert!(stream.write_all(b"too late").is_err());
}

#[test]
fn a_guest_that_receives_no_more_can_still_send() {
    let mut rig = Rig::new();
    let mut stream = rig.guest_connects(1000, 7);
    assert_eq!(rig.send(&shutdown(1000, 7, RECEIVE)), []);
    assert_eq!(stream.write_all(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    assert_eq!(rig.send(&Packet::data(1000, 7, b"news")), []);
    assert_eq!(read_available(&mut stream), b"news");
    // The host leaves: so the guest has nobody left to send to.
    drop(stream);
    let packet = rig.wait(|packets| packets.into_iter().next());
    assert_eq!((packet.op, packet.flags), (SHUTDOWN, SEND | RECEIVE));
}

#[test]
fn data_after_the_end_of_data_is_a_reset() {
    let mut rig = Rig::new();
    let _stream = rig.guest_connects(1000, 7);
    rig.send(&shutdown(1000, 7, SEND));
    assert_eq!(ops(&rig.send(&Packet::data(1000, 7, b"x"))), [RST]);
}

#[test]
fn the_host_closes_one_direction_then_the_other() {
    let mut rig = Rig::new();
    let mut stream = rig.guest_connects(1000, 7);
    stream.write_all(b"request").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let packets = rig.run();
    assert_eq!((ops(&packets), payload(&packets)), (vec![RW, SHUTDOWN], b"request".to_vec()));
    assert_eq!(packets[1].flags, SEND);
    assert_eq!(rig.send(&Packet::data(1000, 7, b"answer")), []);
    assert_eq!(read_available_stream(&mut stream), b"answer");
    drop(stream);
    let packet = rig.wait(|packets| packets.into_iter().next());
    assert_eq!((packet.op, packet.flags), (SHUTDOWN, SEND | RECEIVE));
    assert_eq!(rig.send(&Packet::new(RST, 1000, 7)), []);
    assert_eq!(rig.device.connections(), 0);
}

fn read_available_stream(stream: &mut UnixStream) -> Vec<u8> {
    stream.set_nonblocking(true).unwrap();
    read_available(stream)
}

#[test]
fn a_guest_that_never_confirms_a_close_is_reset() {
    let mut rig = Rig::new();
    drop(rig.guest_connects(1000, 7));
    let packet = rig.wait(|packets| packets.into_iter().next());
    assert_eq!((packet.op, packet.flags), (SHUTDOWN, SEND | RECEIVE));
    let started = Instant::now();
    assert_eq!(rig.wait(|packets| packets.into_iter().next()).op, RST);
    assert!(started.elapsed() > Duration::from_secs(1));
    assert_eq!(rig.device.connections(), 0);
}

#[test]
fn a_guest_that_takes_nothing_of_a_host_that_left_is_reset() {
    let mut rig = Rig::new();
    let mut listener = rig.handle.listen(7).unwrap();
    rig.send(&Packet { buf_alloc: 5000, ..Packet::new(REQUEST, 1000, 7) });
    let mut stream = listener.try_recv().unwrap();
    stream.write_all(&[1; 20_000]).unwrap();
    assert_eq!(payload(&rig.run()).len(), 5000);
    drop(stream);
    assert_eq!(rig.wait(|packets| packets.into_iter().next()).op, RST);
    assert_eq!(rig.device.connections(), 0);
}

#[test]
fn bytes_for_a_host_that_left_are_dropped() {
    let mut rig = Rig::new();
    drop(rig.guest_connects(1000, 7));
    let packets = rig.send(&Packet::data(1000, 7, &[0; 1000]));
    assert!(!ops(&packets).contains(&RST));
    assert!(packets.iter().any(|packet| packet.op == SHUTDOWN && packet.flags == SEND | RECEIVE));
}

#[test]
fn held_bytes_outlive_the_guests_close_and_the_guest() {
    for guest_dies in [false, true] {
        let mut rig = Rig::new();
        let mut stream = rig.guest_connects(1000, 7);
        let mut sent = Vec::new();
        send_all_credit(&mut rig, 1000, 7, &mut sent);
        if guest_dies {
            rig.device.disconnect();
        } else {
            assert_eq!(ops(&rig.send(&shutdown(1000, 7, SEND | RECEIVE))), [RST]);
            // The guest may use the port again at once.
            assert_eq!(ops(&rig.send(&Packet::new(REQUEST, 1000, 8))), [RST]);
        }
        let mut received = Vec::new();
        while !rig.device.is_drained() {
            received.extend(read_available(&mut stream));
            rig.device.process_host();
        }
        stream.set_nonblocking(false).unwrap();
        stream.read_to_end(&mut received).unwrap();
        assert!(received == sent);
    }
}

#[test]
fn a_guest_that_is_gone_ends_everything() {
    let mut rig = Rig::new();
    let mut stream = rig.guest_connects(1000, 7);
    let mut listener = rig.handle.listen(8).unwrap();
    let mut waiting = rig.client("CONNECT 5\n");
    let mut greeting = rig.client("CONN");
    let handle = rig.handle.clone();
    let connecting = handle.connect(6);
    rig.wait(|packets| packets.iter().any(|packet| packet.op == REQUEST).then_some(()));
    rig.run();
    rig.device.disconnect();
    stream.set_nonblocking(false).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert_eq!(read_line(&mut waiting), "ERR the guest is gone\n");
    assert_eq!(read_line(&mut greeting), "ERR the guest is gone\n");
    assert!(listener.blocking_recv().is_none());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert_eq!(runtime.block_on(connecting).unwrap_err().kind(), ErrorKind::NotConnected);
    assert_eq!(handle.connect_blocking(6).unwrap_err().kind(), ErrorKind::NotConnected);
    assert_eq!(handle.listen(9).unwrap_err().kind(), ErrorKind::NotConnected);
    assert!(!rig.directory.path().join("vsock").exists());
    assert!(rig.device.is_drained());
}

#[test]
fn a_driver_that_starts_again_finds_no_connections() {
    let mut rig = Rig::new();
    let mut stream = rig.guest_connects(1000, 7);
    rig.device.reset();
    stream.set_nonblocking(false).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert_eq!(ops(&rig.send(&Packet::data(1000, 7, b"x"))), [RST]);
    rig.guest_connects(1000, 9);
}

#[test]
fn a_restored_guest_is_told_that_its_connections_are_gone() {
    let mut rig = Rig::new();
    let _stream = rig.guest_connects(1000, 7);
    let mut events = Ring::new(0x3_0000, 8);
    let mut queue = events.queue();
    assert!(!rig.device.process_event(&rig.ram, &mut queue).unwrap());
    rig.device.transport_reset();
    assert_eq!(rig.device.connections(), 0);
    // Buffers that the event does not fit in are passed over.
    let at = 7 << 20;
    rig.ram.write_slice(&[0xff; 4], GuestAddress(at)).unwrap();
    for len in [3, 4, 4] {
        events.submit(&rig.ram, &[writable(at, len)]);
    }
    assert!(rig.device.process_event(&rig.ram, &mut queue).unwrap());
    assert!(!rig.device.process_event(&rig.ram, &mut queue).unwrap());
    assert_eq!(
        [events.used(&rig.ram), events.used(&rig.ram), events.used(&rig.ram)],
        [Some((0, 0)), Some((1, 4)), None]
    );
    assert_eq!(rig.ram.read_obj::<u32>(GuestAddress(at)).unwrap(), 0);
}

#[test]
fn packets_that_make_no_sense() {
    let mut rig = Rig::new();
    // Nobody is told about packets from somebody else, nor about resets.
    assert_eq!(rig.send(&Packet { src_cid: 4, ..Packet::new(REQUEST, 1, 7) }), []);
    assert_eq!(rig.send(&Packet::new(RST, 1, 7)), []);
    assert_eq!(ops(&rig.send(&Packet { dst_cid: 9, ..Packet::new(REQUEST, 1, 7) })), [RST]);
    for kind in [0, 2, 3, u16::MAX] {
        let answer = rig.send(&Packet { kind, ..Packet::new(REQUEST, 1, 7) });
        assert_eq!((answer[0].op, answer[0].kind), (RST, kind));
    }
    for op in [0, RESPONSE, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST, 8, u16::MAX] {
        assert_eq!(ops(&rig.send(&Packet::new(op, 1, 7))), [RST], "operation {op}");
    }
}

#[test]
fn packets_that_break_a_connection() {
    for op in [0, REQUEST, RESPONSE, 8, u16::MAX] {
        let mut rig = Rig::new();
        let mut stream = rig.guest_connects(1000, 7);
        assert_eq!(ops(&rig.send(&Packet::new(op, 1000, 7))), [RST], "operation {op}");
        stream.set_nonblocking(false).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
    for len in [6, u32::MAX, 1 << 31] {
        let mut rig = Rig::new();
        let _stream = rig.guest_connects(1000, 7);
        assert_eq!(ops(&rig.send(&Packet { len, ..Packet::data(1000, 7, b"short") })), [RST], "{len} bytes");
    }
    let mut rig = Rig::new();
    let mut client = rig.client("CONNECT 52\n");
    let request = rig.wait(|packets| packets.into_iter().next());
    assert_eq!(ops(&rig.send(&Packet::data(52, request.src_port, b"x"))), [RST]);
    assert_eq!(read_line(&mut client), "ERR the guest broke the protocol\n");
}

#[test]
fn a_packet_may_be_shorter_than_its_buffers_and_in_many_pieces() {
    let mut rig = Rig::new();
    let mut stream = rig.guest_connects(1000, 7);
    let packet = Packet { len: 3, ..Packet::data(1000, 7, b"abcdef") };
    let at = 7 << 20;
    rig.ram.write_slice(&[&packet.header()[..], &packet.payload].concat(), GuestAddress(at)).unwrap();
    rig.tx.submit(&rig.ram, &[readable(at, 10), readable(at + 10, 35), readable(at + 45, 5)]);
    assert_eq!(rig.run(), []);
    assert_eq!(read_available(&mut stream), b"abc");
}

#[test]
fn malformed_chains_are_given_back() {
    let mut rig = Rig::new();
    let _stream = rig.guest_connects(1000, 7);
    let at = 7 << 20;
    rig.ram.write_slice(&Packet::new(CREDIT_REQUEST, 1000, 7).header(), GuestAddress(at)).unwrap();
    for chain in [
        vec![readable(at, 43)],
        vec![writable(at, 44)],
        vec![readable(1 << 40, 44)],
        vec![readable(HOLE - 4, 44)],
        vec![readable(at, u32::MAX)],
        vec![writable(at, 44), readable(at, 44)],
    ] {
        rig.tx.submit(&rig.ram, &chain);
        rig.device.process_tx(&rig.ram, &mut rig.tx_queue).unwrap();
        assert!(rig.tx.used(&rig.ram).is_some(), "{chain:?}");
        assert_eq!(rig.run(), []);
    }
    rig.tx.describe(&rig.ram, 99, Buffer { flags: NEXT, ..readable(at, 44) }, 99);
    rig.tx.offer(&rig.ram, 99);
    assert_eq!(rig.run(), []);
    rig.tx.set_available(&rig.ram, 30_000);
    assert!(rig.device.process_tx(&rig.ram, &mut rig.tx_queue).is_err());
}

#[test]
fn useless_receive_buffers_are_given_back() {
    let mut rig = Rig::without_buffers(Duration::from_secs(5));
    let mut listener = rig.handle.listen(7).unwrap();
    assert_eq!(rig.send(&Packet::new(REQUEST, 1000, 7)), []);
    let mut stream = listener.try_recv().unwrap();
    stream.write_all(b"data").unwrap();
    // Too short, outside memory, for reading only; then one that has room for a header and no more, twice.
    for (slot, buffer) in [
        writable(BUFFERS, 43),
        writable(HOLE, 4096),
        readable(BUFFERS, 4096),
        writable(BUFFERS, 44),
        writable(BUFFERS, 44),
    ]
    .into_iter()
    .enumerate()
    {
        rig.rx.describe(&rig.ram, slot as u16, buffer, 0);
        rig.rx.offer(&rig.ram, slot as u16);
    }
    rig.device.process_host();
    rig.device.process_rx(&rig.ram, &mut rig.rx_queue).unwrap();
    let lens: Vec<u32> = std::iter::from_fn(|| rig.rx.used(&rig.ram)).map(|(_, len)| len).collect();
    assert_eq!(lens, [0, 0, 0, 44, 0]);
    rig.give_buffer(10);
    assert_eq!(payload(&rig.run()), b"data");
}

#[test]
fn a_flood_waits_until_the_guest_takes_the_answers() {
    let mut rig = Rig::without_buffers(Duration::from_secs(5));
    let mut taken = 0;
    for _ in 0..3 {
        for port in 0..100 {
            rig.queue_packet(&Packet::new(RW, port, 7));
        }
        rig.device.process_tx(&rig.ram, &mut rig.tx_queue).unwrap();
        taken += std::iter::from_fn(|| rig.tx.used(&rig.ram)).count();
    }
    assert_eq!(taken, 256);
    // The rest of the guest's packets waits with the resets.
    assert!(!rig.device.has_more_work());
    for slot in 0..100 {
        rig.give_buffer(slot);
    }
    let answers = rig.run();
    assert_eq!(answers.iter().filter(|packet| packet.op == RST).count(), 300);
    assert!(!rig.device.has_more_work());
}

#[test]
fn connections_beyond_the_limit_are_refused() {
    let mut rig = Rig::new();
    let listener = UnixListener::bind(rig.directory.path().join("vsock_7")).unwrap();
    let mut accepted = Vec::new();
    for port in 0..4096 {
        assert_eq!(ops(&rig.send(&Packet::new(REQUEST, port, 7))), [RESPONSE], "connection {port}");
        accepted.push(listener.accept().unwrap().0);
    }
    assert_eq!(ops(&rig.send(&Packet::new(REQUEST, 4096, 7))), [RST]);
    let mut client = rig.client("CONNECT 5\n");
    rig.run();
    assert_eq!(read_line(&mut client), "ERR too many connections\n");
    assert_eq!(rig.handle.connect(5).into_blocking(&mut rig).unwrap_err().kind(), ErrorKind::QuotaExceeded);
    assert_eq!(rig.send(&Packet::new(RST, 0, 7)), []);
    assert_eq!(ops(&rig.send(&Packet::new(REQUEST, 4096, 7))), [RESPONSE]);
}

/// Runs the device until a future that it resolves is done.
trait IntoBlocking<T> {
    fn into_blocking(self, rig: &mut Rig) -> T;
}

impl<T, F: Future<Output = T>> IntoBlocking<T> for F {
    fn into_blocking(self, rig: &mut Rig) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        rig.run();
        runtime.block_on(self)
    }
}

#[test]
fn a_thousand_connections_carry_their_own_bytes() {
    let mut rig = Rig::new();
    let mut streams: Vec<UnixStream> = (0..1000).map(|port| rig.guest_connects(port, 10_000 + port)).collect();
    for (port, stream) in (0_u32..).zip(&mut streams) {
        rig.queue_packet(&Packet::data(port, 10_000 + port, format!("to the host {port}").as_bytes()));
        stream.write_all(format!("to the guest {port}").as_bytes()).unwrap();
        if port % 16 == 0 {
            check_echo(&rig.run());
        }
    }
    check_echo(&rig.run());
    for (port, stream) in streams.iter_mut().enumerate() {
        assert_eq!(read_available(stream), format!("to the host {port}").as_bytes());
    }
    assert_eq!(
        rig.handle.counters().to_guest_bytes(),
        (0..1000).map(|port| format!("to the guest {port}").len() as u64).sum::<u64>()
    );
    drop(streams);
    let closed = rig.run();
    assert_eq!(closed.iter().filter(|packet| packet.op == SHUTDOWN).count(), 1000);
    for packet in closed {
        assert_eq!(rig.send(&Packet::new(RST, packet.dst_port, packet.src_port)), []);
    }
    assert_eq!(rig.device.connections(), 0);
}

fn check_echo(packets: &[Packet]) {
    for packet in packets {
        assert_eq!(packet.payload, format!("to the guest {}", packet.dst_port).as_bytes());
    }
}

#[derive(Debug, Clone)]
enum Step {
    Packet(Packet),
    HostWrites(usize),
    HostReads,
    HostCloses,
}

fn any_step() -> impl Strategy<Value = Step> {
    let packet = (
        0..9_u16,
        0..3_u32,
        7..9_u32,
        0..4_u32,
        prop_oneof![Just(1_u16), 0..3_u16],
        0..200_usize,
        prop_oneof![Just(0_u32), 0..500_u32],
    )
        .prop_map(|(op, guest_port, host_port, flags, kind, len, fwd_cnt)| {
            Step::Packet(Packet { op, flags, kind, fwd_cnt, ..Packet::data(guest_port, host_port, &vec![1; len]) })
        });
    prop_oneof![8 => packet, 2 => (1..3000_usize).prop_map(Step::HostWrites), 1 => Just(Step::HostReads), 1 => Just(Step::HostCloses)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a guest sends, in whatever order, the device comes to rest and never gives a guest more than its room.
    #[test]
    fn random_packets_are_survived(steps in proptest::collection::vec(any_step(), 1..80)) {
        let mut rig = Rig::new();
        let mut listener = rig.handle.listen(7).unwrap();
        let mut streams: Vec<UnixStream> = Vec::new();
        for step in steps {
            match step {
                Step::Packet(packet) => { rig.send(&packet); }
                Step::HostWrites(len) => for stream in &mut streams { let _ = stream.write(&vec![2; len]); },
                Step::HostReads => for stream in &mut streams { let _ = stream.read(&mut [0; 100]); },
                Step::HostCloses => { streams.pop(); }
            }
            rig.run();
            while let Ok(stream) = listener.try_recv() {
                streams.push(stream);
            }
        }
        rig.device.disconnect();
    }

    /// Random descriptors in both queues: chains come back, or the queue breaks; nothing panics or hangs.
    #[test]
    fn random_chains_are_survived(
        table in proptest::collection::vec((any::<u64>(), any::<u32>(), 0..8_u16, 0..130_u16, any::<bool>()), 128),
        heads in proptest::collection::vec(0..128_u16, 1..64),
    ) {
        let mut rig = Rig::without_buffers(Duration::from_secs(5));
        let at = 7 << 20;
        rig.ram.write_slice(&Packet::new(REQUEST, 1, 7).header(), GuestAddress(at)).unwrap();
        for (index, (address, len, flags, next, near)) in table.into_iter().enumerate() {
            let (address, len) = if near { (at + address % 2, 40 + len % 5000) } else { (address, len) };
            let buffer = Buffer { address, len, flags };
            rig.tx.describe(&rig.ram, index as u16, buffer, next);
            rig.rx.describe(&rig.ram, index as u16, buffer, next);
        }
        for head in heads {
            rig.tx.offer(&rig.ram, head);
            rig.rx.offer(&rig.ram, head);
        }
        for _ in 0..10 {
            if rig.device.process_tx(&rig.ram, &mut rig.tx_queue).is_err() || rig.device.process_rx(&rig.ram, &mut rig.rx_queue).is_err() {
                break;
            }
        }
    }
}
