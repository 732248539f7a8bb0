//! The least that can be called a guest: answers ARP, ICMP echo and TCP connections (by refusing them) on a tap.

use std::fs::File;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};

/// `virtio_net_hdr` as a tap has it by default.
const HEADER: usize = 10;
const NEEDS_CHECKSUM: u8 = 1;
const TCP_SYN: u8 = 0x02;
const TCP_RST_ACK: u8 = 0x14;

#[derive(Debug, Default, Clone, Copy)]
pub struct Seen {
    pub arp: usize,
    pub echo: usize,
    pub tcp: usize,
    /// Frames whose checksum was left to the guest, or is wrong.
    pub unfinished: usize,
}

pub struct Guest {
    stop: UnixStream,
    thread: JoinHandle<Seen>,
}

impl Guest {
    pub fn start(tap: OwnedFd, mac: &str, address: &str) -> Self {
        let mac: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        let address: Ipv4Addr = address.parse().unwrap();
        let (stop, stopped) = UnixStream::pair().unwrap();
        let mac: [u8; 6] = mac.try_into().unwrap();
        let thread = std::thread::spawn(move || serve(File::from(tap), &stopped, mac, address.octets()));
        Self { stop, thread }
    }

    pub fn stop(self) -> Seen {
        drop(self.stop);
        self.thread.join().unwrap()
    }
}

fn serve(mut tap: File, stopped: &UnixStream, mac: [u8; 6], address: [u8; 4]) -> Seen {
    let mut seen = Seen::default();
    let mut buffer = [0; 65_600];
    loop {
        let mut polled = [PollFd::from_borrowed_fd(tap.as_fd(), PollFlags::IN), PollFd::new(stopped, PollFlags::IN)];
        rustix::io::retry_on_intr(|| poll(&mut polled, None)).unwrap();
        if !polled[1].revents().is_empty() {
            return seen;
        }
        let Ok(length) = tap.read(&mut buffer) else { continue };
        let (header, frame) = buffer[..length].split_at_mut(HEADER);
        seen.unfinished += usize::from(header[0] & NEEDS_CHECKSUM != 0);
        if let Some(answer) = answer(frame, mac, address, &mut seen) {
            let mut message = vec![0; HEADER];
            message.extend(answer);
            tap.write_all(&message).unwrap();
        }
    }
}

fn answer(frame: &[u8], mac: [u8; 6], address: [u8; 4], seen: &mut Seen) -> Option<Vec<u8>> {
    let payload = frame.get(14..)?;
    let reply = match u16::from_be_bytes([frame[12], frame[13]]) {
        0x0806 if payload.get(6..8)? == [0, 1] && payload.get(24..28)? == address => {
            seen.arp += 1;
            let mut reply = payload[..28].to_vec();
            reply[7] = 2;
            reply.copy_within(8..18, 18);
            reply[8..14].copy_from_slice(&mac);
            reply[14..18].copy_from_slice(&address);
            reply
        }
        0x0800 if payload.get(16..20)? == address => ip(payload, seen)?,
        _ => return None,
    };
    let mut whole = frame[6..12].to_vec();
    whole.extend(mac);
    whole.extend(&frame[12..14]);
    whole.extend(reply);
    Some(whole)
}

fn ip(packet: &[u8], seen: &mut Seen) -> Option<Vec<u8>> {
    let length = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    let (header, body) = packet.get(..length)?.split_at(20);
    let reply = match header[9] {
        1 if body[0] == 8 => {
            seen.echo += 1;
            let mut reply = body.to_vec();
            reply[0] = 0;
            reply[2..4].fill(0);
            let sum = checksum(&[&reply]);
            reply[2..4].copy_from_slice(&sum);
            reply
        }
        6 if body[13] & TCP_SYN != 0 => {
            seen.tcp += 1;
            seen.unfinished += usize::from(checksum(&[&pseudo(header, body.len()), body]) != [0, 0]);
            reset(header, body)
        }
        _ => return None,
    };
    let mut whole = header.to_vec();
    whole[2..4].copy_from_slice(&u16::try_from(20 + reply.len()).unwrap().to_be_bytes());
    whole[10..12].fill(0);
    whole.copy_within(12..16, 16);
    whole[12..16].copy_from_slice(&header[16..20]);
    let sum = checksum(&[&whole]);
    whole[10..12].copy_from_slice(&sum);
    whole.extend(reply);
    Some(whole)
}

fn reset(header: &[u8], syn: &[u8]) -> Vec<u8> {
    let mut reply = vec![0; 20];
    reply[..2].copy_from_slice(&syn[2..4]);
    reply[2..4].copy_from_slice(&syn[..2]);
    let next = u32::from_be_bytes(syn[4..8].try_into().unwrap()).wrapping_add(1);
    reply[8..12].copy_from_slice(&next.to_be_bytes());
    reply[12] = 5 << 4;
    reply[13] = TCP_RST_ACK;
    let sum = checksum(&[&pseudo(header, 20), &reply]);
    reply[16..18].copy_from_slice(&sum);
    reply
}

// The sum does not care which address is the source.
fn pseudo(header: &[u8], length: usize) -> Vec<u8> {
    let mut pseudo = header[12..20].to_vec();
    pseudo.extend([0, header[9]]);
    pseudo.extend(u16::try_from(length).unwrap().to_be_bytes());
    pseudo
}

fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = words.map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    #[allow(clippy::cast_possible_truncation)] // folded above
    (!(sum as u16)).to_be_bytes()
}
