//! `bulkhead-fs`: the pod's volumes over virtio-fs.
//!
//! Two processes share one private mount namespace, whose root is a small tmpfs, the *volume tree*:
//!
//! * the [`mounter`], single-threaded, moves detached mounts into the tree when `bulkhead-vmm` says so, and needs the
//!   privilege to mount for it;
//! * the [`server`] answers the guest's FUSE requests, in a user namespace of its own that maps every id, with the
//!   capabilities that a file server needs, no_new_privs and a seccomp filter.

mod mounter;
mod server;

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags, open};

use crate::{passing, sys};

/// Longest request.
const MAX_REQUEST: usize = 512;

/// Why the file server does not serve.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum FileServerError {
    #[error("standard input is no socket with orders; bulkhead-fs is started by bulkhead-vmm")]
    Orders { source: io::Error },
    #[error("the first order was {0:?} instead of \"serve\" with a listening socket")]
    NotServe(String),
    #[error("cannot {step}")]
    Setup { step: &'static str, source: io::Error },
    #[error("cannot {step} {}", path.display())]
    Mount { step: &'static str, path: PathBuf, source: io::Error },
    #[error("no such request: {0:?}")]
    Request(String),
    #[error(transparent)]
    Name(#[from] crate::volumes::VolumeError),
    #[error("virtio-fs: {0}")]
    Serve(String),
}

impl FileServerError {
    fn setup<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Setup { step, source: source.into() }
    }
}

/// Serves until `bulkhead-vmm` is gone.
pub fn run() -> Result<(), FileServerError> {
    let socket = sys::standard_input()
        .try_clone_to_owned()
        .map(UnixStream::from)
        .map_err(|source| FileServerError::Orders { source })?;
    let (order, descriptor) = receive(&socket)?.ok_or_else(|| FileServerError::NotServe(String::new()))?;
    let listener = match descriptor {
        Some(listener) if order == "serve" => UnixListener::from(listener),
        _ => return Err(FileServerError::NotServe(order)),
    };
    let proc = open("/proc", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(FileServerError::setup("open /proc"))?;
    mounter::enter_tree()?;
    let (ours, theirs) = UnixStream::pair().map_err(FileServerError::setup("make a socket pair"))?;
    match sys::fork_single_threaded(&proc).map_err(FileServerError::setup("fork"))? {
        None => {
            drop((ours, socket));
            server::serve(listener, &proc, theirs)
        }
        Some(child) => {
            drop((listener, theirs));
            mounter::map_ids(&proc, child, ours)?;
            answer(&socket, Ok(()))?;
            mounter::serve(&socket)
        }
    }
}

/// One request with at most one descriptor; `None` when the other side is gone.
fn receive(socket: &UnixStream) -> Result<Option<(String, Option<OwnedFd>)>, FileServerError> {
    let mut buffer = [0; MAX_REQUEST];
    let (bytes, mut descriptors) =
        passing::receive(socket, &mut buffer).map_err(|source| FileServerError::Orders { source })?;
    if bytes == 0 {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&buffer[..bytes]);
    Ok(Some((text.trim_end().to_owned(), descriptors.pop())))
}

fn answer(mut socket: &UnixStream, result: Result<(), FileServerError>) -> Result<(), FileServerError> {
    let line = match result {
        Ok(()) => "ok\n".to_owned(),
        Err(error) => format!("error: {}\n", crate::error_text(&error)),
    };
    socket.write_all(line.as_bytes()).map_err(|source| FileServerError::Orders { source })
}
