//! How many descriptors the daemon may have.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// No node needs more; "unlimited" makes programs that close all possible descriptors take minutes.
const MOST: u64 = 1 << 20;

/// Raises the soft limit to the hard one, at most [`MOST`]; gives what it was and what it is. Processes that are started
/// from here on inherit it.
///
/// # Errors
/// The kernel's.
pub fn raise() -> io::Result<(u64, u64)> {
    let limit = getrlimit(Resource::Nofile);
    let before = limit.current.unwrap_or(u64::MAX);
    let wanted = limit.maximum.unwrap_or(MOST).min(MOST);
    if before >= wanted {
        return Ok((before, before));
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum })?;
    Ok((before, wanted))
}
