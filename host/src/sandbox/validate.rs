//! What a pod sandbox may ask of its runtime handler. What the handler's sandboxer cannot honestly give is refused by the
//! field's name.

use bulkhead_proto::cri;

use super::{SandboxError, user_namespace};
use crate::config::{CgroupDriver, Config, RuntimeHandlerConfig};
use crate::sandboxer::monitor::HostAbilities;
use crate::systemd::Slice;

/// The kernel's limit (`__NEW_UTS_LEN`).
const MAX_HOSTNAME: usize = 64;

/// Checks the request of a pod for handler `name`.
pub(super) fn check(
    pod: &cri::PodSandboxConfig,
    name: &str,
    handler: &RuntimeHandlerConfig,
    config: &Config,
    host: &HostAbilities,
) -> Result<(), SandboxError> {
    let invalid = |text: String| Err(SandboxError::Invalid(text));
    if pod.metadata.as_ref().is_none_or(|metadata| metadata.name.is_empty()) {
        return invalid("metadata.name is empty; every pod needs a name".into());
    }
    if pod.hostname.len() > MAX_HOSTNAME {
        return invalid(format!("hostname has {} bytes; the kernel takes {MAX_HOSTNAME}", pod.hostname.len()));
    }
    let linux = pod.linux.clone().unwrap_or_default();
    check_cgroup_parent(&linux.cgroup_parent, config.daemon.cgroup_driver).map_err(SandboxError::Invalid)?;
    let namespaces = linux.security_context.unwrap_or_default().namespace_options.unwrap_or_default();
    if user_namespace::mapping(pod).map_err(SandboxError::Invalid)?.is_some() {
        const FIELD: &str = "namespace_options.userns_options";
        if !handler.sandboxer.shares_host() {
            return invalid(format!(
                "{FIELD} asks for a user namespace, which a VM (runtime handler {name:?}) cannot give; {}",
                config.native_handlers()
            ));
        }
        if let Some(why) = &host.no_user_namespaces {
            return invalid(format!("{FIELD} asks for a user namespace, which this host's kernel cannot give: {why}"));
        }
    }
    let of_node = |mode: i32| mode == cri::NamespaceMode::Node as i32;
    if handler.sandboxer.shares_host() {
        for name in linux.sysctls.keys() {
            check_sysctl(name, of_node(namespaces.network), of_node(namespaces.ipc)).map_err(SandboxError::Invalid)?;
        }
        return Ok(());
    }
    for (field, mode) in [("network", namespaces.network), ("pid", namespaces.pid), ("ipc", namespaces.ipc)] {
        if of_node(mode) {
            return invalid(format!(
                "namespace_options.{field} is NODE, which a VM (runtime handler {name:?}) cannot give; {}",
                config.native_handlers()
            ));
        }
    }
    Ok(())
}

/// A kubelet that uses the other driver would account and limit a cgroup in which no pod is.
fn check_cgroup_parent(parent: &str, driver: CgroupDriver) -> Result<(), String> {
    let is_slice = parent.ends_with(".slice");
    match driver {
        _ if parent.trim_matches('/').is_empty() => Ok(()),
        CgroupDriver::Systemd => Slice::of_parent(parent).map(drop).map_err(|why| {
            format!(
                "linux.cgroup_parent is {parent:?}, and {why}; daemon.cgroup_driver is \"systemd\", which takes slices: \
                 set cgroupDriver: systemd in the kubelet's configuration"
            )
        }),
        CgroupDriver::Cgroupfs if is_slice => Err(format!(
            "linux.cgroup_parent is {parent:?}, a slice of systemd's, but daemon.cgroup_driver is \"cgroupfs\": set it to \
             \"systemd\", or cgroupDriver: cgroupfs in the kubelet's configuration"
        )),
        CgroupDriver::Cgroupfs => Ok(()),
    }
}

/// On the host's kernel a pod may only set what its own namespaces have a copy of.
fn check_sysctl(name: &str, host_network: bool, host_ipc: bool) -> Result<(), String> {
    let path = name.replace('.', "/");
    let plain = path.split('/').all(|part| !part.is_empty());
    let of_ipc = ["kernel/shm", "kernel/msg", "fs/mqueue/"].iter().any(|prefix| path.starts_with(prefix))
        || path == "kernel/sem";
    if plain && path.starts_with("net/") {
        return if host_network { Err(of_host(name, "network")) } else { Ok(()) };
    }
    if plain && of_ipc {
        return if host_ipc { Err(of_host(name, "ipc")) } else { Ok(()) };
    }
    Err(format!("sysctl {name} is not of a pod's namespaces but of the whole host's kernel, which this handler shares"))
}

fn of_host(name: &str, field: &str) -> String {
    format!("sysctl {name} would change the host: namespace_options.{field} is NODE")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(change: impl FnOnce(&mut cri::NamespaceOption)) -> cri::PodSandboxConfig {
        let mut options = cri::NamespaceOption::default();
        change(&mut options);
        let context = cri::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata { name: "web".into(), ..Default::default() }),
            linux: Some(cri::LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() }),
            ..Default::default()
        }
    }

    fn config() -> Config {
        Config { runtimes: RuntimeHandlerConfig::defaults().into(), ..Config::default() }
    }

    #[test]
    fn a_vm_refuses_what_is_the_hosts_and_names_who_can() {
        let (config, vm) = (config(), RuntimeHandlerConfig::qemu());
        let node = cri::NamespaceMode::Node as i32;
        let host = HostAbilities::default();
        let check = |pod: &cri::PodSandboxConfig, name: &str, handler: &RuntimeHandlerConfig| {
            super::check(pod, name, handler, &config, &host)
        };
        let pods =
            [("network", pod(|o| o.network = node)), ("pid", pod(|o| o.pid = node)), ("ipc", pod(|o| o.ipc = node))];
        for (field, pod) in pods {
            let text = check(&pod, "qemu", &vm).unwrap_err().to_string();
            assert!(text.contains(field) && text.contains("runtime handler \"native\" can"), "{text}");
            check(&pod, "native", &config.runtimes["native"]).unwrap();
        }
        check(&pod(|_| {}), "qemu", &vm).unwrap();
    }

    #[test]
    fn users_of_its_own_are_for_pods_on_the_hosts_kernel_where_it_can() {
        let config = config();
        let range = vec![cri::IdMapping { container_id: 0, host_id: 65_536, length: 65_536 }];
        let users = cri::UserNamespace { uids: range.clone(), gids: range, ..Default::default() };
        let pod = pod(|options| options.userns_options = Some(users));
        let able = HostAbilities::default();
        let unable = HostAbilities { no_user_namespaces: Some("it is too old".into()), ..Default::default() };
        let check = |name: &str, host: &HostAbilities| check(&pod, name, &config.runtimes[name], &config, host);
        check("native", &able).unwrap();
        let text = check("native", &unable).unwrap_err().to_string();
        assert!(text.contains("userns_options") && text.ends_with("it is too old"), "{text}");
        let text = check("qemu", &able).unwrap_err().to_string();
        assert!(text.contains("userns_options") && text.ends_with("runtime handler \"native\" can"), "{text}");
    }

    #[test]
    fn each_cgroup_driver_takes_its_own_parents() {
        use CgroupDriver::{Cgroupfs, Systemd};
        for (parent, driver) in [
            ("", Cgroupfs),
            ("", Systemd),
            ("/kubepods/pod1", Cgroupfs),
            ("/kubepods.slice/kubepods-pod1.slice", Systemd),
            ("kubepods-besteffort-pod1.slice", Systemd),
        ] {
            check_cgroup_parent(parent, driver).unwrap();
        }
        for (parent, driver, words) in [
            ("/kubepods/pod1", Systemd, "set cgroupDriver: systemd"),
            ("kubepods-besteffort-pod1.slice", Cgroupfs, "cgroupDriver: cgroupfs"),
            ("/a.slice/b-c.slice", Systemd, "lies at"),
        ] {
            let told = check_cgroup_parent(parent, driver).unwrap_err();
            assert!(told.contains(parent) && told.contains(words), "{told}");
        }
    }

    #[test]
    fn only_namespaced_sysctls_reach_the_hosts_kernel() {
        for name in ["net.ipv4.ip_forward", "kernel.shmmax", "kernel.sem", "fs.mqueue.msg_max"] {
            check_sysctl(name, false, false).unwrap();
            assert!(check_sysctl(name, true, true).unwrap_err().contains("NODE"));
        }
        for name in ["kernel.panic", "vm.swappiness", "net.../kernel.panic", "fs.mqueue.../../x", "kernel.semantics"] {
            assert!(check_sysctl(name, false, false).unwrap_err().contains("whole host"), "{name}");
        }
    }
}
