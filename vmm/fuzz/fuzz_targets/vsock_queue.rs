//! A socket device whose guest sends whatever the input says, while the host's ends read, write and close.
#![no_main]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use bulkhead_vmm_fuzz::Input;
use bulkhead_vmm_fuzz::driver::vsock::{Packet, Rig};
use bulkhead_vmm_fuzz::driver::{BUFFERS, Buffer};
use libfuzzer_sys::fuzz_target;

fn packet(input: &mut Input<'_>) -> Option<Packet> {
    let [op, ports, flags, odd, len] = input.take()?;
    let mut packet =
        Packet::data(u32::from(ports & 3), 7 + u32::from(ports >> 2 & 3), &vec![op; usize::from(len) * 64]);
    packet.op = u16::from(op % 10);
    packet.flags = u32::from(flags);
    if packet.op != 5 {
        packet.payload.clear();
        packet.len = 0;
    }
    if ports & 0x80 != 0 {
        // The first port that the host hands out, for answers to its own requests.
        packet.dst_port = (1 << 30) + u32::from(ports >> 4 & 7);
    }
    if odd & 1 != 0 {
        packet.fwd_cnt = u32::from_le_bytes(input.take()?);
    }
    if odd & 2 != 0 {
        packet.buf_alloc = u32::from_le_bytes(input.take()?);
    }
    if odd & 12 == 12 {
        packet.len = u32::from_le_bytes(input.take()?);
    }
    if odd & 48 == 48 {
        [packet.src_cid, packet.dst_cid] = [u64::from(flags), u64::from(len)];
    }
    if odd & 192 == 192 {
        packet.kind = u16::from(len);
    }
    Some(packet)
}

/// A chain that no driver would build, in one of the queues.
fn chain(rig: &mut Rig, input: &mut Input<'_>) -> Option<()> {
    let [index, flags, next, near] = input.take()?;
    let (address, len) = (u64::from_le_bytes(input.take()?), u32::from_le_bytes(input.take()?));
    let address = if near & 1 == 0 { BUFFERS + (address & 0xf_ffff) } else { address };
    let len = if near & 2 == 0 { len & 0x1ff } else { len };
    let buffer = Buffer { address, len, flags: u16::from(flags & 7) };
    let ring = if near & 4 == 0 { &mut rig.tx } else { &mut rig.rx };
    ring.describe(&rig.ram, u16::from(index & 127), buffer, u16::from(next));
    if near & 8 == 0 {
        ring.offer(&rig.ram, u16::from(index & 127));
    }
    Some(())
}

fn step(rig: &mut Rig, streams: &mut Vec<UnixStream>, input: &mut Input<'_>) -> Option<()> {
    let [what] = input.take()?;
    match what % 16 {
        0 => rig.device.reset(),
        1 => drop(streams.pop()),
        2 => drop(rig.handle.connect(u32::from(what >> 6))),
        3 => drop(rig.client("CONNECT 1\n")),
        4 => streams.iter_mut().for_each(|stream| drop(stream.write(&vec![1; usize::from(what) * 64]))),
        5 => streams.iter_mut().for_each(|stream| drop(stream.read(&mut [0; 4096]))),
        6 => streams.iter().for_each(|stream| drop(stream.shutdown(std::net::Shutdown::Write))),
        7 | 8 => chain(rig, input)?,
        _ => rig.queue_packet(&packet(input)?),
    }
    Some(())
}

/// False when a queue broke.
fn process(rig: &mut Rig) -> bool {
    for _ in 0..64 {
        rig.device.process_host();
        if rig.device.process_tx(&rig.ram, &mut rig.tx_queue).is_err()
            || rig.device.process_rx(&rig.ram, &mut rig.rx_queue).is_err()
        {
            return false;
        }
        if !rig.device.has_more_work() {
            break;
        }
    }
    true
}

fuzz_target!(|bytes: &[u8]| {
    let mut rig = Rig::new();
    let mut listener = rig.handle.listen(7).unwrap();
    let mut streams = Vec::new();
    let mut input = Input(bytes);
    for _ in 0..100 {
        if step(&mut rig, &mut streams, &mut input).is_none() || !process(&mut rig) {
            break;
        }
        while let Ok(stream) = listener.try_recv() {
            streams.push(stream);
        }
    }
    rig.device.disconnect();
});
