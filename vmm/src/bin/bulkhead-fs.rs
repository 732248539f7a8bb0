//! A pod's file server. Started by `bulkhead-vmm`: requests on standard input, and the number of the listening vhost-user
//! socket's descriptor as the only argument.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::ExitCode;

use bulkhead_vmm::file_server::{Sockets, run};
use bulkhead_vmm::sys::take_descriptor;

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let result = sockets()
        .map_err(|error| error.to_string())
        .and_then(|sockets| run(sockets).map_err(|error| error.to_string()));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bulkhead-fs: {error}");
            ExitCode::FAILURE
        }
    }
}

fn sockets() -> std::io::Result<Sockets> {
    let usage = || std::io::Error::other("usage: bulkhead-fs DESCRIPTOR; it is started by bulkhead-vmm, not by hand");
    let number = std::env::args().nth(1).and_then(|text| text.parse().ok()).ok_or_else(usage)?;
    let vhost_user: OwnedFd = take_descriptor(number)?;
    let requests = std::io::stdin().as_fd().try_clone_to_owned()?;
    let null = std::fs::File::open("/dev/null")?;
    nix::unistd::dup2_stdin(null)?;
    Ok(Sockets { requests, vhost_user: UnixListener::from(vhost_user) })
}
