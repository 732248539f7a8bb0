//! The guest's console and the monitor's own words: kept in a bounded file, and their last lines for messages.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{Notify, broadcast};

use crate::devices::console::Keyboard;

/// The file is cut before it gets this long.
const MAX_FILE: u64 = 1 << 20;
/// What is kept of it then: the newest lines.
const KEPT: usize = 256 << 10;
/// Lines kept in memory of each source.
const TAIL_LINES: usize = 12;
/// Longest of them, in bytes.
const MAX_LINE: usize = 512;
/// Pieces that a reader may be behind; then it misses some.
const FEED: usize = 64;
/// How a kernel's last words begin.
const PANIC: &str = "Kernel panic - not syncing: ";

/// What is written from now on, in pieces.
pub type Feed = broadcast::Receiver<Arc<[u8]>>;

/// The file that both sources are written to.
#[derive(Debug)]
pub struct ConsoleFile {
    file: File,
    path: PathBuf,
    len: u64,
    failed: bool,
    feed: broadcast::Sender<Arc<[u8]>>,
}

impl ConsoleFile {
    /// Opens or makes it; what is there already stays.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().create(true).read(true).append(true).mode(0o600).open(path)?;
        let len = file.metadata()?.len();
        Ok(Self { file, path: path.to_owned(), len, failed: false, feed: broadcast::Sender::new(FEED) })
    }

    /// What is kept, its newest part if that is much, and everything from now on.
    ///
    /// # Errors
    /// The file system's.
    pub fn subscribe(&self) -> io::Result<(Vec<u8>, Feed)> {
        let len = self.file.metadata()?.len();
        let from = len.saturating_sub(KEPT as u64);
        let mut kept = vec![0; usize::try_from(len - from).unwrap_or(0)];
        self.file.read_exact_at(&mut kept, from)?;
        Ok((kept, self.feed.subscribe()))
    }

    fn append(&mut self, bytes: &[u8]) {
        let result = self.make_room(bytes.len() as u64).and_then(|()| self.file.write_all(bytes));
        self.len += bytes.len() as u64;
        if let (Err(error), false) = (&result, self.failed) {
            tracing::warn!("cannot write the console to {}: {error}", self.path.display());
        }
        self.failed = result.is_err();
        if self.feed.receiver_count() > 0 {
            // Readers that went meanwhile do not matter.
            let _ = self.feed.send(bytes.into());
        }
    }

    fn make_room(&mut self, bytes: u64) -> io::Result<()> {
        if self.len + bytes < MAX_FILE {
            return Ok(());
        }
        let len = self.file.metadata()?.len();
        let from = len.saturating_sub(KEPT as u64);
        let mut kept = vec![0; usize::try_from(len - from).unwrap_or(0)];
        self.file.read_exact_at(&mut kept, from)?;
        let start = kept.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.file.set_len(0)?;
        self.file.write_all(b"[older lines were dropped]\n")?;
        self.file.write_all(&kept[start..])?;
        self.len = self.file.metadata()?.len();
        Ok(())
    }
}

/// Splits bytes into lines and remembers the last ones, fit for messages: no control characters, bounded.
#[derive(Debug, Default)]
struct Tail {
    lines: VecDeque<String>,
    current: Vec<u8>,
    panic: Option<String>,
}

impl Tail {
    /// True when a kernel's panic is among the new lines.
    fn push(&mut self, bytes: &[u8]) -> bool {
        let before = self.panic.is_some();
        for byte in bytes {
            match byte {
                b'\n' => self.end_line(),
                b'\r' => {}
                _ if self.current.len() < MAX_LINE => self.current.push(*byte),
                _ => {}
            }
        }
        self.panic.is_some() && !before
    }

    fn end_line(&mut self) {
        let text = clean(&self.current);
        self.current.clear();
        if let (None, Some(at)) = (&self.panic, text.find(PANIC)) {
            self.panic = Some(text[at..].to_owned());
        }
        if !text.is_empty() {
            if self.lines.len() == TAIL_LINES {
                self.lines.pop_front();
            }
            self.lines.push_back(text);
        }
    }
}

/// The line without what a terminal would act on.
fn clean(line: &[u8]) -> String {
    String::from_utf8_lossy(line)
        .chars()
        .map(|c| if c == '\t' { ' ' } else { c })
        .filter(|c| !c.is_control())
        .collect::<String>()
        .trim()
        .to_owned()
}

/// Where a device of this process prints: words and file. Clones share both.
#[derive(Debug, Clone)]
pub struct Console {
    words: Words,
    file: Arc<Mutex<ConsoleFile>>,
}

impl Console {
    /// Prints to both.
    #[must_use]
    pub fn new(words: Words, file: Arc<Mutex<ConsoleFile>>) -> Self {
        Self { words, file }
    }
}

impl Write for Console {
    /// Never fails: errors of the file have been logged.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner).append(bytes);
        self.words.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where is typed.
#[derive(Debug)]
pub enum Input {
    /// On the console of our own machine.
    Device(Keyboard),
    /// On QEMU's standard input.
    Pipe(tokio::sync::Mutex<pipe::Sender>),
}

impl Input {
    /// A pipe that the runtime waits for.
    ///
    /// # Errors
    /// When it cannot.
    pub fn pipe(end: std::os::fd::OwnedFd) -> io::Result<Self> {
        Ok(Self::Pipe(tokio::sync::Mutex::new(pipe::Sender::from_owned_fd(end)?)))
    }

    /// Types `bytes`; what the guest has no room for is lost, as with any terminal.
    pub async fn press(&self, bytes: &[u8]) {
        match self {
            Self::Device(keyboard) => drop(keyboard.press(bytes)),
            // A guest that has ended reads nothing.
            Self::Pipe(pipe) => drop(pipe.lock().await.write_all(bytes).await),
        }
    }
}

/// One source of words. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Words {
    tail: Arc<Mutex<Tail>>,
    panicked: Arc<Notify>,
}

impl Words {
    /// Reads to the end of `pipe`, into the file too.
    pub async fn follow(self, mut pipe: pipe::Receiver, file: Arc<Mutex<ConsoleFile>>) {
        let mut buffer = vec![0; 4096];
        loop {
            match pipe.read(&mut buffer).await {
                Ok(0) => break,
                Ok(count) => {
                    file.lock().unwrap_or_else(PoisonError::into_inner).append(&buffer[..count]);
                    self.push(&buffer[..count]);
                }
                Err(error) => {
                    tracing::warn!("cannot read the console: {error}");
                    break;
                }
            }
        }
        self.tail().end_line();
    }

    fn push(&self, bytes: &[u8]) {
        if self.tail().push(bytes) {
            tracing::error!("the guest kernel panicked: {}", self.panic().unwrap_or_default());
            self.panicked.notify_one();
        }
    }

    /// Returns when a panic was read.
    pub async fn panicked(&self) {
        self.panicked.notified().await;
    }

    /// The kernel's panic line, from `Kernel panic` on.
    #[must_use]
    pub fn panic(&self) -> Option<String> {
        self.tail().panic.clone()
    }

    /// The last `count` lines, oldest first.
    #[must_use]
    pub fn last_lines(&self, count: usize) -> Vec<String> {
        let tail = self.tail();
        tail.lines.iter().skip(tail.lines.len().saturating_sub(count)).cloned().collect()
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_stays_short_and_keeps_the_newest() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console");
        let mut file = ConsoleFile::open(&path).unwrap();
        for line in 0..100_000 {
            file.append(format!("line {line} of many that a guest may print\n").as_bytes());
            assert!(file.len < MAX_FILE);
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert!((text.len() as u64) < MAX_FILE && text.len() > KEPT);
        assert!(
            text.starts_with("[older lines were dropped]\nline ")
                && text.ends_with("line 99999 of many that a guest may print\n")
        );
    }

    #[test]
    fn last_lines_are_clean_and_bounded() {
        let words = Words::default();
        for line in 0..100 {
            words.push(format!("\x1b[31mline\t{line}\r\n").as_bytes());
        }
        words.push(&[b'x'; 10_000]);
        words.push(b"\n");
        assert_eq!(words.last_lines(2), ["[31mline 99".to_owned(), "x".repeat(MAX_LINE)]);
        assert_eq!(words.last_lines(1000).len(), TAIL_LINES);
    }

    #[test]
    fn panics_are_found_across_pieces() {
        let words = Words::default();
        words.push(b"[    0.5] Kernel panic - not sync");
        assert_eq!(words.panic(), None);
        words.push(b"ing: Attempted to kill init! exitcode=0x00000100\n[    0.5] CPU: 0\n");
        assert_eq!(
            words.panic().as_deref(),
            Some("Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100")
        );
    }
}
