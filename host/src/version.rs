//! Which releases of the processes in a pod this daemon drives: those of its own protocols and of older ones.
//!
//! A pod outlives the daemon that made it, so after an upgrade the daemon meets processes of the release before.

use bulkhead_proto::{AGENT_PROTOCOL_VERSION, launch};

/// The oldest versions that this daemon drives; both protocols began with it.
const OLDEST: u32 = 1;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaker {
    /// `bulkhead-vmm`, by vmm.proto.
    Vmm,
    /// `bulkhead-agent`, by agent.proto.
    Agent,
}

impl Speaker {
    fn name(self) -> &'static str {
        match self {
            Self::Vmm => "bulkhead-vmm",
            Self::Agent => "bulkhead-agent",
        }
    }

    fn newest(self) -> u32 {
        match self {
            Self::Vmm => launch::PROTOCOL_VERSION,
            Self::Agent => AGENT_PROTOCOL_VERSION,
        }
    }
}

/// A process of a release that this daemon cannot drive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the pod's {} speaks version {theirs} of its protocol, this daemon versions {OLDEST} to {newest}: the pod runs on, and a daemon of the release that made it (or a newer one) can drive it; StopPodSandbox ends it",
    speaker.name()
)]
pub struct VersionError {
    /// Who.
    pub speaker: Speaker,
    /// As it says.
    pub theirs: u32,
    /// The newest that is known here.
    pub newest: u32,
}

/// Whether this daemon drives a process that says it speaks version `theirs`. Processes from before versions were told say 0.
///
/// # Errors
/// When it is newer, or older than anything that is still driven.
pub fn check(speaker: Speaker, theirs: u32) -> Result<(), VersionError> {
    let newest = speaker.newest();
    if (OLDEST..=newest).contains(&theirs.max(1)) { Ok(()) } else { Err(VersionError { speaker, theirs, newest }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_releases_are_driven_and_newer_ones_refused() {
        for (speaker, newest) in [(Speaker::Vmm, launch::PROTOCOL_VERSION), (Speaker::Agent, AGENT_PROTOCOL_VERSION)] {
            for driven in 0..=newest {
                assert_eq!(check(speaker, driven), Ok(()));
            }
            let text = check(speaker, newest + 1).unwrap_err().to_string();
            assert!(text.contains(speaker.name()) && text.contains(&format!("version {}", newest + 1)), "{text}");
        }
    }
}
