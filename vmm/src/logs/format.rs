//! The CRI log format: `TIME stdout|stderr F|P TEXT`, one line each (kubelet's CRI logging design).

use std::io::Write;

use time::OffsetDateTime;

/// Longest text of one line; longer ones are split into parts tagged P, the last one F.
pub const MAX_TEXT: usize = 16 * 1024;

/// Which stream bytes came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, or a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Turns pieces of two byte streams into whole log lines.
#[derive(Debug, Default)]
pub struct Formatter {
    unfinished: [Vec<u8>; 2],
}

impl Formatter {
    /// Appends the lines that `bytes` completes to `out`; the rest waits for its newline.
    pub fn push(&mut self, stream: Stream, bytes: &[u8], now: OffsetDateTime, out: &mut Vec<u8>) {
        let unfinished = &mut self.unfinished[stream as usize];
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, complete) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            unfinished.extend_from_slice(text);
            while unfinished.len() > MAX_TEXT {
                write_line(out, now, stream, 'P', &unfinished[..MAX_TEXT]);
                unfinished.drain(..MAX_TEXT);
            }
            if complete {
                write_line(out, now, stream, 'F', unfinished);
                unfinished.clear();
            }
        }
    }

    /// Appends what still waits for a newline, tagged P: readers then print it without one.
    pub fn finish(&mut self, now: OffsetDateTime, out: &mut Vec<u8>) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let rest = std::mem::take(&mut self.unfinished[stream as usize]);
            if !rest.is_empty() {
                write_line(out, now, stream, 'P', &rest);
            }
        }
    }
}

fn write_line(out: &mut Vec<u8>, now: OffsetDateTime, stream: Stream, tag: char, text: &[u8]) {
    let name = match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    };
    let (year, month, day) = now.to_calendar_date();
    let (hour, minute, second, nanosecond) = now.to_hms_nano();
    // Writing into a Vec cannot fail.
    let _ = write!(
        out,
        "{year:04}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanosecond:09}Z {name} {tag} ",
        month as u8
    );
    out.extend_from_slice(text);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp_nanos(1_700_000_000_000_000_007).unwrap()
    }

    #[test]
    fn lines_look_as_the_kubelet_wants() {
        let (mut formatter, mut out) = (Formatter::default(), Vec::new());
        formatter.push(Stream::Stdout, b"one\ntw", now(), &mut out);
        formatter.push(Stream::Stderr, b"\n", now(), &mut out);
        formatter.push(Stream::Stdout, b"o", now(), &mut out);
        formatter.finish(now(), &mut out);
        let time = "2023-11-14T22:13:20.000000007Z";
        let expected = format!("{time} stdout F one\n{time} stderr F \n{time} stdout P two\n");
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    /// What a reader makes of the log again.
    fn restore(log: &[u8], stream: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        for line in log.split_inclusive(|byte| *byte == b'\n') {
            let parts: Vec<&[u8]> = line.splitn(4, |byte| *byte == b' ').collect();
            if parts[1] == stream.as_bytes() {
                let text = parts[3].strip_suffix(b"\n").unwrap();
                assert!(text.len() <= MAX_TEXT);
                bytes.extend_from_slice(text);
                if parts[2] == b"F" {
                    bytes.push(b'\n');
                }
            }
        }
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn no_byte_is_lost_or_doubled(pieces in proptest::collection::vec(
            (any::<bool>(), proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..40_000)), 0..6)) {
            let (mut formatter, mut out) = (Formatter::default(), Vec::new());
            let mut written = [Vec::new(), Vec::new()];
            for (to_stderr, bytes) in &pieces {
                let stream = if *to_stderr { Stream::Stderr } else { Stream::Stdout };
                written[stream as usize].extend_from_slice(bytes);
                formatter.push(stream, bytes, now(), &mut out);
            }
            formatter.finish(now(), &mut out);
            prop_assert_eq!(restore(&out, "stdout"), written[0].clone());
            prop_assert_eq!(restore(&out, "stderr"), written[1].clone());
        }
    }
}
