//! Capability names, as CRI and the kernel's documentation write them.

use bulkhead_proto::agent::Capabilities;

use crate::helper::spec::CapabilitySpec;

/// In the kernel's order: the position is the bit.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Sets as bit masks.
///
/// # Errors
/// The first name that is no capability.
pub fn sets(capabilities: &Capabilities) -> Result<CapabilitySpec, String> {
    Ok(CapabilitySpec {
        bounding: mask(&capabilities.bounding)?,
        effective: mask(&capabilities.effective)?,
        permitted: mask(&capabilities.permitted)?,
        inheritable: mask(&capabilities.inheritable)?,
        ambient: mask(&capabilities.ambient)?,
    })
}

fn mask(names: &[String]) -> Result<u64, String> {
    names.iter().try_fold(0, |mask, name| {
        let short = name.strip_prefix("CAP_").unwrap_or(name);
        let bit = NAMES.iter().position(|known| *known == short);
        bit.map(|bit| mask | 1 << bit).ok_or_else(|| format!("unknown capability {name:?}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_bits() {
        let names = ["CAP_CHOWN", "NET_RAW", "CAP_CHECKPOINT_RESTORE"].map(String::from);
        assert_eq!(mask(&names).unwrap(), 1 | 1 << 13 | 1 << 40);
        assert_eq!(mask(&["CAP_FLY".into()]).unwrap_err(), "unknown capability \"CAP_FLY\"");
    }
}
