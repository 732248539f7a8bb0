//! What the guest's console and the monitor print: kept on disk within bounds, the last lines in memory for messages.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Once the file is longer it starts anew; what matters at the end is near the end.
const MAX_FILE: u64 = 512 * 1024;
/// A guest that prints no newline must not fill our memory.
const MAX_LINE: u64 = 4096;
const KEPT_LINES: usize = 40;

/// The console's last lines.
#[derive(Debug, Clone, Default)]
pub struct Console {
    lines: Arc<Mutex<VecDeque<String>>>,
}

impl Console {
    /// Reads `source` to its end on a thread of its own.
    pub fn follow(&self, source: impl Read + Send + 'static, path: &Path) -> io::Result<std::thread::JoinHandle<()>> {
        let file = File::options().create(true).write(true).truncate(true).open(path)?;
        let console = self.clone();
        std::thread::Builder::new()
            .name("console".into())
            .stack_size(128 * 1024)
            .spawn(move || console.copy(source, file))
    }

    fn copy(&self, source: impl Read, mut file: File) {
        let mut reader = BufReader::with_capacity(4096, source);
        let mut line = Vec::new();
        let mut written = 0;
        while let Ok(1..) = reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
            if written > MAX_FILE && file.set_len(0).is_ok() && file.rewind().is_ok() {
                written = 0;
            }
            // A full disk costs the console's file, nothing else.
            let _ = file.write_all(&line);
            written += line.len() as u64;
            self.keep(String::from_utf8_lossy(&line).trim_end().to_owned());
            line.clear();
        }
    }

    fn keep(&self, line: String) {
        if line.contains("Kernel panic") {
            tracing::error!("guest: {line}");
        }
        let mut lines = self.lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if lines.len() == KEPT_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    /// The lines kept, oldest first.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner).iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_stays_small_and_the_end_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let text: String = (0..200_000).map(|n| format!("line {n}\n")).collect();
        let console = Console::default();
        console.follow(io::Cursor::new(text), &path).unwrap().join().unwrap();
        assert!(path.metadata().unwrap().len() < 1 << 20);
        assert_eq!(console.lines().last().unwrap(), "line 199999");
        assert_eq!(console.lines().len(), KEPT_LINES);
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let console = Console::default();
        let endless = io::repeat(b'x').take(100_000);
        console.follow(endless, &dir.path().join("c")).unwrap().join().unwrap();
        assert!(console.lines().iter().all(|line| line.len() <= 4096));
    }
}
