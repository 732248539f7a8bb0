//! A terminal of the container's own devpts.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::{HelperError, at};

const DEVPTS_MAGIC: u64 = 0x1cd1;

/// Both sides of a terminal.
#[derive(Debug)]
pub(super) struct Terminal {
    /// For the agent.
    pub(super) controller: OwnedFd,
    /// For the process.
    pub(super) terminal: OwnedFd,
}

/// Makes a terminal through /dev/pts/ptmx of the current root.
pub(super) fn open(rows: u16, columns: u16) -> Result<Terminal, HelperError> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let controller = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty()).map_err(at("open /dev/pts/ptmx"))?;
    let kind = rustix::fs::fstatfs(&controller).map_err(at("look at /dev/pts/ptmx"))?.f_type;
    if u64::try_from(kind).ok() != Some(DEVPTS_MAGIC) {
        return Err(HelperError::Refused("/dev/pts/ptmx of the container is no terminal multiplexer".into()));
    }
    rustix::pty::unlockpt(&controller).map_err(at("unlock the terminal"))?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let terminal = rustix::pty::ioctl_tiocgptpeer(&controller, flags).map_err(at("open the terminal"))?;
    if rows != 0 || columns != 0 {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&controller, size).map_err(at("set the terminal's size"))?;
    }
    Ok(Terminal { controller, terminal })
}
