//! The CRI's log format: `TIME STREAM TAG TEXT`, a line each.

use anyhow::{Context, Result, bail, ensure};

/// One line of a log file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// RFC 3339 with nanoseconds.
    pub time: String,
    /// "stdout" or "stderr"
    pub stream: String,
    /// Whether it ends with a line's end (tag F), or goes on in the next one (P).
    pub full: bool,
    /// Without line's end.
    pub text: String,
}

/// Reads a whole log.
///
/// # Errors
/// For a line that is not in the format, which no reader of logs must ever see.
pub fn parse(log: &str) -> Result<Vec<Line>> {
    ensure!(log.is_empty() || log.ends_with('\n'), "the log's last line is cut off: {:?}", log.lines().last());
    log.lines().map(|line| parse_line(line).with_context(|| format!("not in CRI format: {line:?}"))).collect()
}

fn parse_line(line: &str) -> Result<Line> {
    let mut parts = line.splitn(4, ' ');
    let mut next = |what| parts.next().with_context(|| format!("{what} is missing"));
    let (time, stream, tag, text) = (next("the time")?, next("the stream")?, next("the tag")?, next("the text")?);
    ensure!(time.len() >= 20 && time.as_bytes()[10] == b'T', "{time:?} is no time");
    ensure!(stream == "stdout" || stream == "stderr", "{stream:?} is no stream");
    let full = match tag {
        "F" => true,
        "P" => false,
        _ => bail!("{tag:?} is no tag"),
    };
    Ok(Line { time: time.into(), stream: stream.into(), full, text: text.into() })
}

/// What was written to `stream`, as it was written; a final line without end gets one.
#[must_use]
pub fn text_of(lines: &[Line], stream: &str) -> String {
    let mut text = String::new();
    for line in lines.iter().filter(|line| line.stream == stream) {
        text.push_str(&line.text);
        if line.full {
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_lines_are_joined() -> Result<()> {
        let log = "2026-01-01T00:00:00.000000001Z stdout P ab\n2026-01-01T00:00:00.000000002Z stdout F c d\n\
                   2026-01-01T00:00:00.000000003Z stderr F \n";
        let lines = parse(log)?;
        assert_eq!((text_of(&lines, "stdout"), text_of(&lines, "stderr")), ("abc d\n".into(), "\n".into()));
        Ok(())
    }

    #[test]
    fn a_cut_line_is_an_error() {
        assert!(parse("2026-01-01T00:00:00.000000001Z stdout F abc").is_err());
        assert!(parse("stdout F abc\n").is_err());
    }
}
