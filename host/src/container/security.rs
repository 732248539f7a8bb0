//! Capabilities and paths of a container, from the CRI's security context.

use bulkhead_proto::{agent, cri};

use super::ContainerError;

/// What a container has when nobody asks for more or less (the set that container users have come to expect).
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Every capability of Linux 6.12 (capability.h), in its order.
const ALL_CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The container's capability sets. `ALL` adds or drops every one; drops win over the default set, adds over drops of ALL.
pub(super) fn capabilities(
    context: &cri::LinuxContainerSecurityContext,
) -> Result<agent::Capabilities, ContainerError> {
    let empty = cri::Capability::default();
    let asked = context.capabilities.as_ref().unwrap_or(&empty);
    let names = |list: &[String]| list.iter().map(|name| canonical(name)).collect::<Result<Vec<_>, _>>();
    let (add, drop) = (names(&asked.add_capabilities)?, names(&asked.drop_capabilities)?);
    let ambient = names(&asked.add_ambient_capabilities)?;
    let has = |list: &[Option<&'static str>], name: &'static str| list.contains(&Some(name));
    let (add_all, drop_all) = (add.contains(&None), drop.contains(&None));
    let granted = |name: &&'static str| {
        if context.privileged {
            return true;
        }
        let base = DEFAULT_CAPABILITIES.contains(name) && !drop_all || add_all;
        (base && !has(&drop, name)) || (has(&add, name) && !has(&drop, name)) || has(&ambient, name)
    };
    let set: Vec<String> = ALL_CAPABILITIES.iter().copied().filter(granted).map(str::to_owned).collect();
    let ambient: Vec<String> = ambient.into_iter().flatten().map(str::to_owned).collect();
    Ok(agent::Capabilities {
        bounding: set.clone(),
        effective: set.clone(),
        permitted: set,
        inheritable: ambient.clone(),
        ambient,
        ..Default::default()
    })
}

/// "net_raw", "NET_RAW" and "CAP_NET_RAW" are one; `None` is ALL.
fn canonical(name: &str) -> Result<Option<&'static str>, ContainerError> {
    let upper = name.to_uppercase();
    if upper == "ALL" || upper == "CAP_ALL" {
        return Ok(None);
    }
    let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
    match ALL_CAPABILITIES.iter().find(|known| **known == full) {
        Some(known) => Ok(Some(known)),
        None => Err(ContainerError::Invalid(format!("capability {name:?} is not known; capabilities(7) lists them"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(add: &[&str], drop: &[&str]) -> cri::LinuxContainerSecurityContext {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        cri::LinuxContainerSecurityContext {
            capabilities: Some(cri::Capability {
                add_capabilities: own(add),
                drop_capabilities: own(drop),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn sets_follow_add_and_drop() {
        let count = |add: &[&str], drop: &[&str]| capabilities(&context(add, drop)).unwrap().effective.len();
        assert_eq!(count(&[], &[]), DEFAULT_CAPABILITIES.len());
        assert_eq!(count(&["ALL"], &[]), ALL_CAPABILITIES.len());
        assert_eq!(count(&[], &["ALL"]), 0);
        assert_eq!(count(&["net_admin"], &["all"]), 1);
        assert_eq!(count(&["ALL"], &["SYS_ADMIN"]), ALL_CAPABILITIES.len() - 1);
        assert_eq!(count(&["SYS_ADMIN"], &["KILL"]), DEFAULT_CAPABILITIES.len());
    }

    #[test]
    fn unknown_capabilities_are_named() {
        let text = capabilities(&context(&["FLY"], &[])).unwrap_err().to_string();
        assert!(text.contains("\"FLY\""), "{text}");
    }
}
