//! Where a log's records go, and what happens when they do not fit.

use std::fs::File;
use std::io::{self, Write};

/// A log file that may be missing (output is thrown away), full, or replaced. Only whole records end up in it: one that a
/// full disk cut is completed before anything else is written.
#[derive(Debug)]
pub struct Sink<W = File> {
    target: Option<W>,
    /// The rest of a record whose first bytes are written.
    torn: Vec<u8>,
    lost: u64,
    failing: bool,
    /// For messages.
    container: String,
}

impl<W: Write> Sink<W> {
    /// Without a target all records are thrown away, which loses nothing that anybody wanted.
    pub fn new(container: &str, target: Option<W>) -> Self {
        Self { target, torn: Vec::new(), lost: 0, failing: false, container: container.to_owned() }
    }

    /// Bytes of records that could not be written.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Later records go to `target`.
    pub fn replace(&mut self, target: W) {
        self.complete_torn();
        self.lost += self.torn.len() as u64;
        self.torn.clear();
        self.target = Some(target);
    }

    /// Writes whole records with one `write` where the file takes them. What does not fit is lost.
    pub fn write(&mut self, records: &[u8]) {
        if records.is_empty() || self.target.is_none() {
            return;
        }
        if !self.complete_torn() {
            self.lost += records.len() as u64;
            return;
        }
        let written = self.write_bytes(records);
        if written == records.len() {
            return;
        }
        let cut = if written == 0 || records[written - 1] == b'\n' {
            written
        } else {
            let end =
                records[written..].iter().position(|byte| *byte == b'\n').map_or(records.len(), |at| written + at + 1);
            self.torn.extend_from_slice(&records[written..end]);
            end
        };
        self.lost += (records.len() - cut) as u64;
    }

    /// Nothing follows: what is still torn is lost.
    pub fn finish(&mut self) {
        self.complete_torn();
        self.lost += self.torn.len() as u64;
        self.torn.clear();
    }

    fn complete_torn(&mut self) -> bool {
        if !self.torn.is_empty() {
            let torn = std::mem::take(&mut self.torn);
            let written = self.write_bytes(&torn);
            self.torn.extend_from_slice(&torn[written..]);
        }
        self.torn.is_empty()
    }

    /// As many bytes as the target takes.
    fn write_bytes(&mut self, bytes: &[u8]) -> usize {
        let Some(target) = &mut self.target else { return bytes.len() };
        let mut done = 0;
        while done < bytes.len() {
            match target.write(&bytes[done..]) {
                Ok(0) => return self.failed(done, &io::ErrorKind::WriteZero.into()),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.failed(done, &error),
            }
        }
        if self.failing && done > 0 {
            self.failing = false;
            tracing::info!(container = self.container, lost_bytes = self.lost, "the log can be written again");
        }
        done
    }

    fn failed(&mut self, done: usize, error: &io::Error) -> usize {
        if !self.failing {
            self.failing = true;
            tracing::error!(
                container = self.container,
                "cannot write the log: {error}; output is lost until it can be"
            );
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many bytes, then says that the disk is full.
    #[derive(Default)]
    struct Disk(std::cell::RefCell<(Vec<u8>, usize)>);

    impl Disk {
        fn with_space(space: usize) -> Self {
            Self((Vec::new(), space).into())
        }

        fn content(&self) -> String {
            String::from_utf8(self.0.borrow().0.clone()).unwrap()
        }
    }

    impl Write for &Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let (content, space) = &mut *self.0.borrow_mut();
            let count = bytes.len().min(*space);
            if count == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            *space -= count;
            content.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_loses_whole_records_only() {
        let disk = Disk::with_space(6);
        let mut sink = Sink::new("c", Some(&disk));
        sink.write(b"one\ntwo\nthree\n");
        assert_eq!((disk.content().as_str(), sink.lost()), ("one\ntw", 6));
        sink.write(b"four\n");
        assert_eq!(sink.lost(), 11);
        disk.0.borrow_mut().1 = 100;
        sink.write(b"five\n");
        sink.finish();
        assert_eq!((disk.content().as_str(), sink.lost()), ("one\ntwo\nfive\n", 11));
    }

    #[test]
    fn a_new_file_begins_with_a_whole_record() {
        let (old, new) = (Disk::with_space(2), Disk::with_space(100));
        let mut sink = Sink::new("c", Some(&old));
        sink.write(b"one\n");
        sink.replace(&new);
        sink.write(b"two\n");
        assert_eq!((new.content().as_str(), sink.lost()), ("two\n", 2));
    }

    #[test]
    fn without_a_target_nothing_is_lost() {
        let mut sink: Sink = Sink::new("c", None);
        sink.write(b"one\n");
        assert_eq!(sink.lost(), 0);
    }
}
