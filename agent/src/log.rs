//! The agent's own words: single lines to the kernel log (guest) or standard error (host process).

use std::fmt::Arguments;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::OnceLock;

/// Longest line; the kernel log cuts records at about this length.
const MAX_LINE: usize = 900;

static KERNEL_LOG: OnceLock<File> = OnceLock::new();

/// From now on lines go to the kernel log, which reaches the console.
pub fn to_kernel_log() {
    if let Ok(file) = OpenOptions::new().write(true).open("/dev/kmsg") {
        // A second call changes nothing.
        let _ = KERNEL_LOG.set(file);
    }
}

/// Writes one line; `level` is a syslog priority.
pub fn line(level: u8, text: Arguments<'_>) {
    let text: String = text.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut end = text.len().min(MAX_LINE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let text = &text[..end];
    // Losing a log line must not fail what it is about.
    let _ = match KERNEL_LOG.get() {
        Some(mut file) => file.write_all(format!("<{level}>bulkhead-agent: {text}\n").as_bytes()),
        None => std::io::stderr().write_all(format!("bulkhead-agent: {text}\n").as_bytes()),
    };
}

macro_rules! info {
    ($($arg:tt)*) => { $crate::log::line(6, format_args!($($arg)*)) };
}
/// As an error: a guest's console is told to show nothing less.
macro_rules! warning {
    ($($arg:tt)*) => { $crate::log::line(3, format_args!($($arg)*)) };
}
pub(crate) use {info, warning};
