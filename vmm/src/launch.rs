//! The daemon's orders: one JSON message with descriptors on standard input (`bulkhead_proto::launch`).

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use bulkhead_proto::launch::{Launch, MAX_LAUNCH, PROTOCOL_VERSION};

use crate::{passing, sys};

/// Why the orders cannot be followed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum LaunchError {
    #[error("standard input is no socket with orders; bulkhead-vmm is started by the daemon")]
    Receive { source: io::Error },
    #[error("the orders are not valid: {0}")]
    Parse(#[from] serde_json::Error),
    #[error(
        "the orders have version {found}, this program follows {PROTOCOL_VERSION}: install daemon and bulkhead-vmm of one release"
    )]
    Version { found: u32 },
    #[error("the orders name descriptor {index}, but {count} came")]
    Descriptor { index: usize, count: usize },
}

/// Orders and what came with them.
#[derive(Debug)]
pub struct Orders {
    /// As sent.
    pub launch: Launch,
    descriptors: Vec<Option<OwnedFd>>,
    socket: UnixStream,
}

impl Orders {
    /// Reads the orders from standard input.
    pub fn receive() -> Result<Self, LaunchError> {
        let socket = sys::standard_input().try_clone_to_owned().map_err(|source| LaunchError::Receive { source })?;
        Self::receive_from(UnixStream::from(socket))
    }

    fn receive_from(socket: UnixStream) -> Result<Self, LaunchError> {
        let mut buffer = vec![0; MAX_LAUNCH];
        let (bytes, descriptors) =
            passing::receive(&socket, &mut buffer).map_err(|source| LaunchError::Receive { source })?;
        let launch: Launch = serde_json::from_slice(&buffer[..bytes])?;
        if launch.protocol_version != PROTOCOL_VERSION {
            return Err(LaunchError::Version { found: launch.protocol_version });
        }
        Ok(Self { launch, descriptors: descriptors.into_iter().map(Some).collect(), socket })
    }

    /// Takes the descriptor with this number, once.
    pub fn take(&mut self, index: usize) -> Result<OwnedFd, LaunchError> {
        let count = self.descriptors.len();
        self.descriptors.get_mut(index).and_then(Option::take).ok_or(LaunchError::Descriptor { index, count })
    }

    /// Tells the daemon that the machine runs, or why not; the last word on this socket.
    pub fn answer(mut self, result: Result<(), String>) {
        let line = match result {
            Ok(()) => "ok\n".to_owned(),
            Err(text) => format!("error: {}\n", text.replace('\n', "; ")),
        };
        // A daemon that went away learns from the control socket.
        let _ = self.socket.write_all(line.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_proto::launch::Monitor;
    use std::os::fd::AsFd;

    fn launch() -> Launch {
        Launch {
            protocol_version: PROTOCOL_VERSION,
            sandbox_id: "s".into(),
            control_socket: "/c".into(),
            descriptor_socket: "/d".into(),
            vsock_socket: "/v".into(),
            exit_file: "/e".into(),
            console_file: "/o".into(),
            monitor: Monitor::Qemu { binary: "/q".into(), accelerator: "tcg".into() },
            kernel: "/k".into(),
            initramfs: "/i".into(),
            kernel_arguments: String::new(),
            vcpus: 1,
            memory_mib: 128,
            taps: vec![],
            scratch_drive: Some(0),
            file_server: None,
        }
    }

    fn given(bytes: &[u8], descriptors: usize) -> Result<Orders, LaunchError> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let fds = vec![ours.as_fd(); descriptors];
        passing::send(&ours, bytes, &fds).unwrap();
        Orders::receive_from(theirs)
    }

    #[test]
    fn descriptors_are_taken_once() {
        let mut orders = given(&serde_json::to_vec(&launch()).unwrap(), 1).unwrap();
        orders.take(0).unwrap();
        let text = orders.take(0).unwrap_err().to_string();
        assert!(text.contains("descriptor 0"), "{text}");
        assert!(orders.take(7).is_err());
    }

    #[test]
    fn bad_orders_are_refused() {
        assert!(matches!(given(b"{}", 0), Err(LaunchError::Parse(_))));
        let other = Launch { protocol_version: 99, ..launch() };
        let text = given(&serde_json::to_vec(&other).unwrap(), 0).unwrap_err().to_string();
        assert!(text.contains("version 99"), "{text}");
    }
}
