//! What a jail is made of, and why it cannot be.

use std::io;

use super::landlock::LandlockState;

/// What differs from pod to pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// The process's only user id; no other process of the host has it.
    pub uid: u32,
    /// The process's only group id.
    pub gid: u32,
}

/// What stands around the process now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// The one wall that a kernel may lack.
    pub landlock: LandlockState,
}

/// Why a process cannot be jailed.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// Something of the kernel's.
    #[error("cannot {step}: {source}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Root is no user to be jailed as.
    #[error("uid {uid} and gid {gid} are no unprivileged user of a pod's own")]
    Privileged {
        /// As ordered.
        uid: u32,
        /// As ordered.
        gid: u32,
    },
    /// The kernel agreed, and did not do it.
    #[error("the process still has {0}")]
    Kept(&'static str),
    /// A filter cannot be made or installed.
    #[error("cannot restrict system calls: {0}")]
    Seccomp(#[from] seccompiler::Error),
    /// The kernel refused a ruleset of its own version.
    #[error("cannot restrict access by Landlock: {0}")]
    Landlock(#[from] ::landlock::RulesetError),
    /// There is one jail for each process.
    #[error("the process is in a jail already")]
    Twice,
}

/// Gives an error the words of what was tried.
pub(super) fn step<T, E: Into<io::Error>>(step: &'static str, result: Result<T, E>) -> Result<T, JailError> {
    result.map_err(|error| JailError::Step { step, source: error.into() })
}
