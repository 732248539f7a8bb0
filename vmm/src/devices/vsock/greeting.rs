//! The first line of a client of the listening socket.

use std::io::Write as _;
use std::os::unix::net::UnixStream;

use rustix::net::RecvFlags;

/// Longest first line of a client: `CONNECT 4294967295\n`, with room.
const MAX_LINE: usize = 32;

/// A first line that leads nowhere.
#[derive(Debug, PartialEq, Eq)]
pub enum Greeting {
    Malformed,
    Closed,
}

/// The port a client asks for, once its line is complete; what follows the line stays in the socket.
pub fn read_line(stream: &UnixStream) -> Result<Option<u32>, Greeting> {
    let mut bytes = [0_u8; MAX_LINE];
    let seen = match rustix::net::recv(stream, &mut bytes, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((0, _)) => return Err(Greeting::Closed),
        Ok((count, _)) => count,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
        Err(_) => return Err(Greeting::Closed),
    };
    let Some(end) = bytes[..seen].iter().position(|byte| *byte == b'\n') else {
        return if seen == MAX_LINE { Err(Greeting::Malformed) } else { Ok(None) };
    };
    let port = parse_line(&bytes[..end]).ok_or(Greeting::Malformed)?;
    match rustix::net::recv(stream, &mut bytes[..=end], RecvFlags::DONTWAIT) {
        Ok((count, _)) if count == end + 1 => Ok(Some(port)),
        _ => Err(Greeting::Closed),
    }
}

fn parse_line(line: &[u8]) -> Option<u32> {
    let digits = line.strip_prefix(b"CONNECT ")?;
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// A last line to a client; it may be gone already.
pub fn say(stream: &mut UnixStream, why: &str) {
    let _ = stream.write_all(format!("ERR {why}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_lines() {
        assert_eq!(parse_line(b"CONNECT 1024"), Some(1024));
        assert_eq!(parse_line(b"CONNECT 4294967295"), Some(u32::MAX));
        for bad in ["CONNECT", "CONNECT ", "CONNECT 4294967296", "CONNECT -1", "CONNECT +1", "connect 1", "CONNECT 1 "]
        {
            assert_eq!(parse_line(bad.as_bytes()), None, "{bad}");
        }
    }
}
