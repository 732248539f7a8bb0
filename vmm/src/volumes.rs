//! The pod's file server, seen from `bulkhead-vmm`: starting it and changing what it shows.

use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use crate::{passing, sys};

/// The file server answers from memory and a few system calls.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the file server did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum VolumeError {
    #[error("cannot start the file server {}", binary.display())]
    Spawn { binary: PathBuf, source: io::Error },
    #[error("the file server does not answer")]
    Broken { source: io::Error },
    #[error("the file server could not {request}: {answer}")]
    Refused { request: String, answer: String },
    #[error(
        "{name:?} is no name for a volume: one path component of 1 to 128 letters, digits, '-', '_' and '.' is needed"
    )]
    Name { name: String },
}

/// The pod's running file server.
#[derive(Debug)]
pub struct FileServer {
    socket: Mutex<BufReader<UnixStream>>,
    child: Child,
}

impl FileServer {
    /// Starts it with the socket that QEMU will connect to. Main thread only (see [`sys::inherit`]).
    pub fn start(binary: &Path, listener: UnixListener) -> Result<Self, VolumeError> {
        let failed = |source| VolumeError::Spawn { binary: binary.to_owned(), source };
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        ours.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(failed)?;
        let mut command = Command::new(binary);
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null());
        sys::inherit(&mut command, &[]).map_err(failed)?;
        let child = command.spawn().map_err(failed)?;
        // It holds the other end of the socket, whose closing must be noticed.
        drop(command);
        let server = Self { socket: Mutex::new(BufReader::new(ours)), child };
        server.ask("serve", Some(listener.as_fd()))?;
        Ok(server)
    }

    /// Shows a detached mount under `name`.
    pub fn add(&self, name: &str, mount: BorrowedFd<'_>, directory: bool) -> Result<(), VolumeError> {
        let kind = if directory { "dir" } else { "file" };
        self.ask(&format!("add {} {kind}", checked(name)?), Some(mount))
    }

    /// Takes `name` out again.
    pub fn remove(&self, name: &str) -> Result<(), VolumeError> {
        self.ask(&format!("remove {}", checked(name)?), None)
    }

    /// One request at a time; the lock is what makes them so.
    fn ask(&self, request: &str, descriptor: Option<BorrowedFd<'_>>) -> Result<(), VolumeError> {
        let broken = |source| VolumeError::Broken { source };
        let mut socket = self.socket.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let descriptors: Vec<_> = descriptor.into_iter().collect();
        passing::send(socket.get_ref(), format!("{request}\n").as_bytes(), &descriptors).map_err(broken)?;
        let mut answer = String::new();
        if socket.read_line(&mut answer).map_err(broken)? == 0 {
            return Err(broken(io::ErrorKind::UnexpectedEof.into()));
        }
        match answer.trim_end() {
            "ok" => Ok(()),
            other => Err(VolumeError::Refused {
                request: request.to_owned(),
                answer: other.trim_start_matches("error: ").to_owned(),
            }),
        }
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        // Its server half ends when the monitor disconnects, its mounter half with this signal.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Names are ours, but they become paths.
pub fn checked(name: &str) -> Result<&str, VolumeError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=128).contains(&name.len()) && name.chars().all(plain) && name.chars().any(|c| c != '.') {
        return Ok(name);
    }
    Err(VolumeError::Name { name: name.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_the_tree() {
        for good in ["c0ffee-0", "a.b", "..a"] {
            checked(good).unwrap();
        }
        for bad in ["", ".", "..", "a/b", "a b", "a\n"] {
            assert!(checked(bad).is_err(), "{bad:?}");
        }
    }
}
