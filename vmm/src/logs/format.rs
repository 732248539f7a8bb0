//! Output of a container to lines of a CRI log. Pure: no I/O, no clock.

use super::timestamp;

/// Longest text of one log record, in bytes; a longer line becomes several, all but its last tagged `P`.
pub const MAX_TEXT: usize = 16 * 1024;

/// A container's output stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// File descriptor 1, or the terminal.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

/// Turns bytes into records `TIME stdout|stderr F|P TEXT\n`. A record holds one line or a piece of one; concatenating the
/// texts, with a newline after each `F`, gives back the bytes exactly.
#[derive(Debug, Default)]
pub struct Formatter {
    /// The unfinished line of each stream, shorter than `MAX_TEXT` or exactly that.
    unfinished: [Vec<u8>; 2],
}

impl Formatter {
    /// Appends the records that `bytes` completes to `out`.
    pub fn push(&mut self, stream: Stream, mut bytes: &[u8], time: &[u8; timestamp::LEN], out: &mut Vec<u8>) {
        let unfinished = &mut self.unfinished[stream as usize];
        while !bytes.is_empty() {
            let room = MAX_TEXT - unfinished.len();
            let window = &bytes[..bytes.len().min(room + 1)];
            match window.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    record(out, time, stream, b'F', &[unfinished, &bytes[..end]]);
                    unfinished.clear();
                    bytes = &bytes[end + 1..];
                }
                None if window.len() > room => {
                    record(out, time, stream, b'P', &[unfinished, &bytes[..room]]);
                    unfinished.clear();
                    bytes = &bytes[room..];
                }
                None => {
                    unfinished.extend_from_slice(bytes);
                    return;
                }
            }
        }
    }

    /// The streams have ended: last lines without a newline are written as `P`, so that readers add none either.
    pub fn finish(&mut self, time: &[u8; timestamp::LEN], out: &mut Vec<u8>) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let rest = std::mem::take(&mut self.unfinished[stream as usize]);
            if !rest.is_empty() {
                record(out, time, stream, b'P', &[&rest]);
            }
        }
    }
}

fn record(out: &mut Vec<u8>, time: &[u8; timestamp::LEN], stream: Stream, tag: u8, text: &[&[u8]]) {
    out.extend_from_slice(time);
    out.extend_from_slice(match stream {
        Stream::Stdout => b" stdout ",
        Stream::Stderr => b" stderr ",
    });
    out.extend_from_slice(&[tag, b' ']);
    for piece in text {
        out.extend_from_slice(piece);
    }
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TIME: [u8; timestamp::LEN] = *b"2026-11-24T01:02:03.123456789Z";

    fn formatted(pieces: &[(Stream, &[u8])]) -> String {
        let (mut formatter, mut out) = (Formatter::default(), Vec::new());
        for (stream, bytes) in pieces {
            formatter.push(*stream, bytes, &TIME, &mut out);
        }
        formatter.finish(&TIME, &mut out);
        String::from_utf8(out).unwrap().replace("2026-11-24T01:02:03.123456789Z ", "")
    }

    #[test]
    fn lines_become_records() {
        let out =
            formatted(&[(Stream::Stdout, b"one\ntw"), (Stream::Stderr, b"oops\n\n"), (Stream::Stdout, b"o\nend")]);
        assert_eq!(out, "stdout F one\nstderr F oops\nstderr F \nstdout F two\nstdout P end\n");
    }

    #[test]
    fn a_line_of_the_longest_text_is_whole() {
        let mut line = vec![b'x'; MAX_TEXT];
        line.push(b'\n');
        let text = "x".repeat(MAX_TEXT);
        assert_eq!(formatted(&[(Stream::Stdout, &line)]), format!("stdout F {text}\n"));
        line.insert(0, b'y');
        assert_eq!(formatted(&[(Stream::Stdout, &line)]), format!("stdout P y{}\nstdout F x\n", &text[1..]));
    }

    /// What a reader of the log makes of it: each stream's bytes.
    fn read_back(log: &[u8]) -> [Vec<u8>; 2] {
        let mut streams = [Vec::new(), Vec::new()];
        let mut rest = log;
        while !rest.is_empty() {
            let end = rest.iter().position(|byte| *byte == b'\n').unwrap();
            let line = &rest[..end];
            assert_eq!(line[..timestamp::LEN], TIME);
            let which = usize::from(&line[timestamp::LEN..timestamp::LEN + 8] == b" stderr ");
            let text = &line[timestamp::LEN + 10..];
            assert!(text.len() <= MAX_TEXT);
            streams[which].extend_from_slice(text);
            if line[timestamp::LEN + 8] == b'F' {
                streams[which].push(b'\n');
            }
            rest = &rest[end + 1..];
        }
        streams
    }

    fn output() -> impl Strategy<Value = Vec<u8>> {
        let pieces = prop_oneof![
            Just(vec![b'\n']),
            proptest::collection::vec(any::<u8>(), 0..40),
            (MAX_TEXT - 2..MAX_TEXT + 3).prop_map(|len| vec![b'a'; len]),
        ];
        proptest::collection::vec(pieces, 0..6).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_byte_is_lost_and_none_is_added(frames in proptest::collection::vec((any::<bool>(), output()), 0..8)) {
            let (mut formatter, mut out) = (Formatter::default(), Vec::new());
            let mut expected = [Vec::new(), Vec::new()];
            for (is_stderr, bytes) in &frames {
                let stream = if *is_stderr { Stream::Stderr } else { Stream::Stdout };
                formatter.push(stream, bytes, &TIME, &mut out);
                prop_assert!(out.is_empty() || out.ends_with(b"\n"));
                expected[stream as usize].extend_from_slice(bytes);
            }
            formatter.finish(&TIME, &mut out);
            prop_assert_eq!(read_back(&out), expected);
        }
    }
}
