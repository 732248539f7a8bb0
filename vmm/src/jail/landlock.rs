//! Landlock: no file may be opened, no TCP port used, no abstract socket or process reached, wherever the root leads.

use ::landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetError, RulesetStatus, Scope,
};

/// The newest rules known here; a kernel that knows fewer applies those it knows.
const NEWEST: ABI = ABI::V6;

/// What the kernel enforces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LandlockState {
    /// All that is known here.
    Full,
    /// What an older kernel knows.
    Partial,
    /// The kernel has no Landlock, or it is switched off.
    Absent,
}

impl std::fmt::Display for LandlockState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Full => "full",
            Self::Partial => "as far as this kernel knows it",
            Self::Absent => "absent (not in this kernel, or not in its lsm= list)",
        })
    }
}

/// Everything is handled and nothing allowed. Descriptors that are open keep what they could.
pub(super) fn restrict() -> Result<LandlockState, RulesetError> {
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?;
    let status = ruleset.create()?.restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => LandlockState::Full,
        RulesetStatus::PartiallyEnforced => LandlockState::Partial,
        RulesetStatus::NotEnforced => LandlockState::Absent,
    })
}
