//! What a container may do: its capabilities, and what of the CRI's security context no kernel of a pod can give.

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

/// Refuses what is not applied: mandatory access control, and values that mean nothing.
#[allow(deprecated)]
pub(super) fn check(context: &cri::LinuxContainerSecurityContext) -> Result<(), ContainerError> {
    let refuse = |text: String| Err(ContainerError::Invalid(text));
    if cri::SupplementalGroupsPolicy::try_from(context.supplemental_groups_policy).is_err() {
        let policy = context.supplemental_groups_policy;
        return refuse(format!("supplemental_groups_policy has the unknown value {policy}; it is Merge or Strict"));
    }
    if let Some(asked) = apparmor(context) {
        return refuse(format!(
            "{asked}, and AppArmor profiles are not applied by this runtime; ask for none, or for Unconfined"
        ));
    }
    let label = context.selinux_options.clone().unwrap_or_default();
    for (field, value) in [("user", label.user), ("role", label.role), ("type", label.r#type), ("level", label.level)] {
        if !value.is_empty() {
            return refuse(format!("selinux_options.{field} is {value:?}: the pod's kernel has no SELinux"));
        }
    }
    Ok(())
}

/// The AppArmor profile that a container shall be confined by, as field and value; the newer field wins.
#[allow(deprecated)]
fn apparmor(context: &cri::LinuxContainerSecurityContext) -> Option<String> {
    use cri::security_profile::ProfileType;
    if let Some(profile) = &context.apparmor {
        let of_type = |name: &str| format!("apparmor.profile_type is {name} ({:?})", profile.localhost_ref);
        return match ProfileType::try_from(profile.profile_type) {
            Ok(ProfileType::Unconfined) => None,
            Ok(kind) => Some(of_type(kind.as_str_name())),
            Err(_) => Some(of_type(&profile.profile_type.to_string())),
        };
    }
    let name = context.apparmor_profile.as_str();
    (!name.is_empty() && name != "unconfined").then(|| format!("apparmor_profile is {name:?}"))
}

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
        ((base || has(&add, name)) && !has(&drop, name)) || ambient.contains(&None) || has(&ambient, name)
    };
    let set: Vec<String> = ALL_CAPABILITIES.iter().copied().filter(granted).map(str::to_owned).collect();
    let ambient: Vec<String> = match ambient.contains(&None) {
        true => set.clone(),
        false => ambient.into_iter().flatten().map(str::to_owned).collect(),
    };
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
    fn ambient_capabilities_are_in_every_set() {
        let of = |names: &[&str]| {
            let mut context = context(&[], &["ALL"]);
            let capabilities = context.capabilities.get_or_insert_default();
            capabilities.add_ambient_capabilities = names.iter().map(|name| (*name).to_owned()).collect();
            super::capabilities(&context).unwrap()
        };
        let one = of(&["net_raw"]);
        for set in [&one.bounding, &one.effective, &one.permitted, &one.inheritable, &one.ambient] {
            assert_eq!(set, &["CAP_NET_RAW"]);
        }
        assert_eq!(of(&["ALL"]).ambient.len(), ALL_CAPABILITIES.len());
    }

    #[test]
    #[allow(deprecated)]
    fn what_no_kernel_gives_is_refused() {
        let refused = |context: cri::LinuxContainerSecurityContext| check(&context).unwrap_err().to_string();
        let of_type = |profile_type| cri::LinuxContainerSecurityContext {
            apparmor: Some(cri::SecurityProfile { profile_type, localhost_ref: "p".into() }),
            // A privileged container is not confined by default, but by what it asks for.
            privileged: true,
            ..Default::default()
        };
        let named =
            |name: &str| cri::LinuxContainerSecurityContext { apparmor_profile: name.into(), ..Default::default() };
        for (context, words) in [
            (of_type(0), "apparmor.profile_type is RuntimeDefault"),
            (of_type(2), "apparmor.profile_type is Localhost (\"p\")"),
            (of_type(7), "apparmor.profile_type is 7"),
            (named("localhost/p"), "apparmor_profile is \"localhost/p\""),
            (named("runtime/default"), "apparmor_profile is \"runtime/default\""),
        ] {
            let text = refused(context);
            assert!(text.contains(words) && text.contains("Unconfined"), "{text}");
        }
        check(&of_type(1)).unwrap();
        check(&named("unconfined")).unwrap();
        let older = cri::LinuxContainerSecurityContext { apparmor_profile: "localhost/p".into(), ..of_type(1) };
        check(&older).unwrap();
        let label = cri::SeLinuxOption { user: "u".into(), ..Default::default() };
        let text = refused(cri::LinuxContainerSecurityContext { selinux_options: Some(label), ..Default::default() });
        assert!(text.contains("selinux_options.user"), "{text}");
        let text = refused(cri::LinuxContainerSecurityContext { supplemental_groups_policy: 7, ..Default::default() });
        assert!(text.contains("Merge or Strict"), "{text}");
        check(&cri::LinuxContainerSecurityContext::default()).unwrap();
    }

    #[test]
    fn unknown_capabilities_are_named() {
        let text = capabilities(&context(&["FLY"], &[])).unwrap_err().to_string();
        assert!(text.contains("\"FLY\""), "{text}");
    }
}
