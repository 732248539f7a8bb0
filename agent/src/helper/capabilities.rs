//! Applying capability sets.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities,
};

use super::spec::CapabilitySpec;
use super::{HelperError, at};

/// Every bit that may be a capability.
const BITS: u32 = 63;

/// The demanded sets, less what this process lacks itself; a warning names the rest.
pub(super) fn within_reach(wanted: &CapabilitySpec, warnings: &mut Vec<String>) -> Result<CapabilitySpec, HelperError> {
    let own = capabilities(None).map_err(at("read the agent's capabilities"))?.permitted.bits();
    let missing = (wanted.permitted | wanted.effective) & !own;
    if missing != 0 {
        warnings.push(format!("the agent itself lacks capabilities {missing:#x}; the container runs without them"));
    }
    Ok(CapabilitySpec {
        bounding: wanted.bounding & own,
        effective: wanted.effective & own,
        permitted: wanted.permitted & own,
        inheritable: wanted.inheritable & own,
        ambient: wanted.ambient & own,
    })
}

/// Drops from the bounding set all but `keep`.
pub(super) fn limit_bounding(keep: u64) -> Result<(), HelperError> {
    for bit in 0..BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if keep & (1 << bit) == 0 {
            match remove_capability_from_bounding_set(capability) {
                // The kernel's last capability lies below this bit.
                Err(Errno::INVAL) => break,
                other => other.map_err(at(format!("drop capability {bit} from the bounding set")))?,
            }
        }
    }
    Ok(())
}

/// Sets the process's sets and its ambient set.
pub(super) fn apply(spec: &CapabilitySpec) -> Result<(), HelperError> {
    let sets = CapabilitySets {
        effective: CapabilitySet::from_bits_retain(spec.effective & spec.permitted),
        permitted: CapabilitySet::from_bits_retain(spec.permitted),
        inheritable: CapabilitySet::from_bits_retain(spec.inheritable),
    };
    set_capabilities(None, sets).map_err(at("set capabilities"))?;
    clear_ambient_capability_set().map_err(at("clear ambient capabilities"))?;
    let ambient = spec.ambient & spec.permitted & spec.inheritable;
    for bit in (0..BITS).filter(|bit| ambient & (1 << bit) != 0) {
        configure_capability_in_ambient_set(CapabilitySet::from_bits_retain(1 << bit), true)
            .map_err(at(format!("raise ambient capability {bit}")))?;
    }
    Ok(())
}
