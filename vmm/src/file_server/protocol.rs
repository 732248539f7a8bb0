//! What `bulkhead-vmm` and the mounter say to each other: one message asks, one answers.
//!
//! `add dir NAME` or `add file NAME` with a detached mount, or `remove NAME`; the answer is `ok` or `error: TEXT`. The
//! socket keeps message boundaries.

use std::fmt;

/// Longest request in bytes.
pub const MAX_REQUEST: usize = 512;
/// Longest answer in bytes.
pub const MAX_ANSWER: usize = 4096;
/// NAME_MAX of Linux.
const MAX_NAME: usize = 255;

/// A volume's name: one component of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(String);

/// Not a volume's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("volume name {0:?} is not one path component of 1 to {MAX_NAME} bytes")]
pub struct NameError(String);

impl Name {
    /// Checks it.
    ///
    /// # Errors
    /// When it is empty, `.`, `..`, too long, or has a slash or a NUL.
    pub fn new(name: &str) -> Result<Self, NameError> {
        let bad = name.is_empty() || name.len() > MAX_NAME || name == "." || name == ".." || name.contains(['/', '\0']);
        if bad { Err(NameError(name.chars().take(MAX_NAME).collect())) } else { Ok(Self(name.to_owned())) }
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What the mounter is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Show the mount that comes with this message.
    Add {
        /// Under this name.
        name: Name,
        /// The mount's root is a directory, else a file.
        directory: bool,
    },
    /// Show it no longer.
    Remove(Name),
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add { name, directory: true } => write!(f, "add dir {}", name.0),
            Self::Add { name, directory: false } => write!(f, "add file {}", name.0),
            Self::Remove(name) => write!(f, "remove {}", name.0),
        }
    }
}

impl Request {
    /// Understands a message.
    #[must_use]
    pub fn parse(message: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(message).ok()?;
        let named = |prefix: &str| text.strip_prefix(prefix).and_then(|name| Name::new(name).ok());
        if let Some(name) = named("add dir ") {
            return Some(Self::Add { name, directory: true });
        }
        if let Some(name) = named("add file ") {
            return Some(Self::Add { name, directory: false });
        }
        named("remove ").map(Self::Remove)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_a_round_trip() {
        for text in ["add dir a b", "add file x", "remove é"] {
            assert_eq!(Request::parse(text.as_bytes()).unwrap().to_string(), text);
        }
        let long = format!("remove {}", "x".repeat(256));
        for bad in
            ["", "add", "add dir ", "add dir a/b", "remove ..", "remove .", "add dir a\0", "umount x", long.as_str()]
        {
            assert_eq!(Request::parse(bad.as_bytes()), None, "{bad:?}");
        }
    }
}
