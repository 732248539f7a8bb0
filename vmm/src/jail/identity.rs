//! A user of the pod's own, without any capability, for good.

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Gid, Uid, set_dumpable_behavior};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_capabilities_secure_bits, set_no_new_privs,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::plan::{JailError, Plan, step};

/// (uid_t) -1 means "leave it as it is" to the kernel.
const NOBODY: u32 = u32::MAX;
const NONE: CapabilitySets = CapabilitySets {
    effective: CapabilitySet::empty(),
    permitted: CapabilitySet::empty(),
    inheritable: CapabilitySet::empty(),
};

/// Gives up root and every way back to it.
pub(super) fn take(plan: &Plan) -> Result<(), JailError> {
    let Plan { uid, gid } = *plan;
    if [uid, gid].iter().any(|id| matches!(*id, 0 | NOBODY)) {
        return Err(JailError::Privileged { uid, gid });
    }
    step("empty the bounding set", empty_bounding_set())?;
    let locked = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    step("lock the secure bits", set_capabilities_secure_bits(locked))?;
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    step("leave all groups", set_thread_groups(&[]))?;
    step("change the group", set_thread_res_gid(group, group, group))?;
    step("change the user", set_thread_res_uid(user, user, user))?;
    step("clear the ambient capabilities", clear_ambient_capability_set())?;
    step("drop capabilities", set_capabilities(None, NONE))?;
    step("forbid new privileges", set_no_new_privs(true))?;
    // Another process of the same user, if there ever is one, can neither trace this one nor read its memory.
    step("become undumpable", set_dumpable_behavior(DumpableBehavior::NotDumpable))?;
    let left = step("read the capabilities", capabilities(None))?;
    if !(left.effective | left.permitted | left.inheritable).is_empty() {
        return Err(JailError::Kept("capabilities"));
    }
    // With no capability this must fail; that it does not would undo everything above.
    match set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT) {
        Err(Errno::PERM) => Ok(()),
        _ => Err(JailError::Kept("the right to become root")),
    }
}

fn empty_bounding_set() -> rustix::io::Result<()> {
    for capability in (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
        match remove_capability_from_bounding_set(capability) {
            // Behind the kernel's last capability.
            Err(Errno::INVAL) => break,
            other => other?,
        }
    }
    Ok(())
}
