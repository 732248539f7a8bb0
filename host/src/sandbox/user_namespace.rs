//! The user namespace that a pod asks for: which mapping, and what a pod or container with one cannot have.

use bulkhead_proto::{agent, cri};

use crate::sys::userns::{IdRange, Mapping};

const FIELD: &str = "namespace_options.userns_options";

/// The mapping of the pod's user namespace; `None` for the host's.
///
/// # Errors
/// Why it is none that the kernel or this runtime can give, for people.
pub fn mapping(config: &cri::PodSandboxConfig) -> Result<Option<Mapping>, String> {
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let Some(options) = context.and_then(|context| context.namespace_options.as_ref()) else { return Ok(None) };
    let Some(asked) = of_options(options.userns_options.as_ref())? else { return Ok(None) };
    let of_node = |mode: i32| mode == cri::NamespaceMode::Node as i32;
    for (field, mode) in [("network", options.network), ("pid", options.pid), ("ipc", options.ipc)] {
        if of_node(mode) {
            return Err(format!(
                "namespace_options.{field} is NODE in a pod with a user namespace ({FIELD}): its users have no right to \
                 what is the host's"
            ));
        }
    }
    Ok(Some(asked))
}

fn of_options(options: Option<&cri::UserNamespace>) -> Result<Option<Mapping>, String> {
    let Some(options) = options else { return Ok(None) };
    match cri::NamespaceMode::try_from(options.mode) {
        Ok(cri::NamespaceMode::Pod) => {
            let (uids, gids) = (range("uids", &options.uids)?, range("gids", &options.gids)?);
            Ok(Some(Mapping { uids, gids }))
        }
        Ok(cri::NamespaceMode::Node) if options.uids.is_empty() && options.gids.is_empty() => Ok(None),
        Ok(cri::NamespaceMode::Node) => Err(format!("{FIELD}.mode is NODE, which has no mappings; send none")),
        Ok(mode) => Err(format!("{FIELD}.mode is {}; it is POD or NODE", mode.as_str_name())),
        Err(_) => Err(format!("{FIELD}.mode has the unknown value {}; it is POD or NODE", options.mode)),
    }
}

fn range(field: &str, mappings: &[cri::IdMapping]) -> Result<IdRange, String> {
    let [one] = mappings else {
        let count = mappings.len();
        return Err(format!("{FIELD}.{field} has {count} mappings; a user namespace takes exactly one"));
    };
    let shown = format!("{FIELD}.{field} maps {} ids from {} to {}", one.length, one.container_id, one.host_id);
    if one.container_id != 0 {
        return Err(format!("{shown}; the container's ids must begin with 0, its root"));
    }
    if one.host_id == 0 {
        return Err(format!("{shown}, the host's root, which it would be no protection from"));
    }
    // The last number of all is none: to the kernel it means "leave it as it is".
    if one.length == 0 || one.host_id.checked_add(one.length).is_none() {
        return Err(format!("{shown}; that many ids do not exist"));
    }
    Ok(IdRange { host_id: one.host_id, length: one.length })
}

/// Checks that a container asks for no other user namespace than its pod has.
///
/// # Errors
/// What differs, for people.
pub fn check_container(pod: Option<Mapping>, options: &cri::NamespaceOption) -> Result<(), String> {
    if pod.is_some() && options.pid == cri::NamespaceMode::Node as i32 {
        return Err("namespace_options.pid is NODE in a pod with a user namespace".to_owned());
    }
    if options.userns_options.is_none() || of_options(options.userns_options.as_ref())? == pod {
        return Ok(());
    }
    Err(format!("{FIELD} of the container differs from its pod's: all containers of a pod share one user namespace"))
}

/// Whether a mount's files have owners of the pod's user namespace.
///
/// # Errors
/// When it is another mapping than the pod's.
pub fn maps_ids(pod: Option<Mapping>, mount: &cri::Mount) -> Result<bool, String> {
    if mount.uid_mappings.is_empty() && mount.gid_mappings.is_empty() {
        return Ok(false);
    }
    let Some(pod) = pod else {
        return Err(format!("uidMappings and gidMappings need a pod with a user namespace ({FIELD})"));
    };
    let same = |mappings: &[cri::IdMapping], range: IdRange| {
        mappings == [cri::IdMapping { container_id: 0, host_id: range.host_id, length: range.length }]
    };
    if same(&mount.uid_mappings, pod.uids) && same(&mount.gid_mappings, pod.gids) {
        return Ok(true);
    }
    Err("uidMappings and gidMappings must both be those of the pod's user namespace".to_owned())
}

/// As the agent is told.
pub(super) fn to_agent(mapping: Mapping) -> agent::UserNamespace {
    let range = |range: IdRange| {
        Some(agent::IdRange { host_id: range.host_id, length: range.length, ..Default::default() }).into()
    };
    agent::UserNamespace { uids: range(mapping.uids), gids: range(mapping.gids), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(container_id: u32, host_id: u32, length: u32) -> Vec<cri::IdMapping> {
        vec![cri::IdMapping { container_id, host_id, length }]
    }

    fn options(mode: cri::NamespaceMode, uids: Vec<cri::IdMapping>) -> cri::NamespaceOption {
        let users = cri::UserNamespace { mode: mode as i32, gids: uids.clone(), uids };
        cri::NamespaceOption { userns_options: Some(users), ..Default::default() }
    }

    fn of(options: cri::NamespaceOption) -> Result<Option<Mapping>, String> {
        let context = cri::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
        let linux = cri::LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() };
        mapping(&cri::PodSandboxConfig { linux: Some(linux), ..Default::default() })
    }

    const POD: cri::NamespaceMode = cri::NamespaceMode::Pod;

    #[test]
    fn a_mapping_is_one_range_from_the_containers_root() {
        let range = IdRange { host_id: 65_536, length: 65_536 };
        let pod = of(options(POD, ids(0, 65_536, 65_536))).unwrap();
        assert_eq!(pod, Some(Mapping { uids: range, gids: range }));
        assert_eq!(of(options(cri::NamespaceMode::Node, vec![])), Ok(None));
        assert_eq!(of(cri::NamespaceOption::default()), Ok(None));
        let two = [ids(0, 1000, 10), ids(0, 2000, 10)].concat();
        for (mappings, why) in [
            (vec![], "exactly one"),
            (two, "exactly one"),
            (ids(1, 1000, 10), "begin with 0"),
            (ids(0, 0, 10), "host's root"),
            (ids(0, 1000, 0), "do not exist"),
            (ids(0, u32::MAX, 1), "do not exist"),
        ] {
            let text = of(options(POD, mappings)).unwrap_err();
            assert!(text.contains(why) && text.contains("userns_options.uids"), "{text}");
        }
        for mode in [cri::NamespaceMode::Container, cri::NamespaceMode::Target] {
            assert!(of(options(mode, vec![])).unwrap_err().contains("POD or NODE"));
        }
        assert!(of(options(cri::NamespaceMode::Node, ids(0, 1, 1))).unwrap_err().contains("no mappings"));
    }

    #[test]
    fn what_is_the_hosts_is_not_for_its_users() {
        let node = cri::NamespaceMode::Node as i32;
        let users = || options(POD, ids(0, 1000, 10));
        for (field, asked) in [
            ("network", cri::NamespaceOption { network: node, ..users() }),
            ("pid", cri::NamespaceOption { pid: node, ..users() }),
            ("ipc", cri::NamespaceOption { ipc: node, ..users() }),
        ] {
            let text = of(asked).unwrap_err();
            assert!(text.starts_with(&format!("namespace_options.{field} is NODE")), "{text}");
        }
    }

    #[test]
    fn containers_and_mounts_have_the_pods_mapping_or_none() {
        let pod = of(options(POD, ids(0, 1000, 10))).unwrap();
        check_container(pod, &options(POD, ids(0, 1000, 10))).unwrap();
        check_container(pod, &cri::NamespaceOption::default()).unwrap();
        assert!(check_container(pod, &options(POD, ids(0, 1000, 11))).is_err());
        assert!(check_container(pod, &options(cri::NamespaceMode::Node, vec![])).is_err());
        assert!(check_container(None, &options(POD, ids(0, 1000, 10))).is_err());
        let mount = |uids: Vec<_>, gids| cri::Mount { uid_mappings: uids, gid_mappings: gids, ..Default::default() };
        assert_eq!(maps_ids(pod, &mount(vec![], vec![])), Ok(false));
        assert_eq!(maps_ids(pod, &mount(ids(0, 1000, 10), ids(0, 1000, 10))), Ok(true));
        for (pod, mount) in [
            (None, mount(ids(0, 1000, 10), ids(0, 1000, 10))),
            (pod, mount(ids(0, 1000, 10), vec![])),
            (pod, mount(ids(0, 1000, 10), ids(0, 1, 10))),
        ] {
            assert!(maps_ids(pod, &mount).unwrap_err().contains("uidMappings"));
        }
    }
}
