//! What of an adjustment can be applied at all. What cannot is refused by its name, never dropped.

use bulkhead_proto::nri;

use super::error::NriError;

/// Most entries of one list in an adjustment.
const MAX_ENTRIES: usize = 4096;

/// Looks at what one plugin asks for a container that is being made.
pub(super) fn adjustment(plugin: &str, asked: &nri::ContainerAdjustment) -> Result<(), NriError> {
    let linux = asked.linux.clone().unwrap_or_default();
    let hooks = asked.hooks.clone().unwrap_or_default();
    let lists = [
        ("mounts", asked.mounts.len()),
        ("env", asked.env.len()),
        ("args", asked.args.len()),
        ("rlimits", asked.rlimits.len()),
        ("CDI_devices", asked.CDI_devices.len()),
        ("annotations", asked.annotations.len()),
        ("linux.devices", linux.devices.len()),
    ];
    let too_long = lists.into_iter().find(|(_, length)| *length > MAX_ENTRIES);
    if let Some((field, length)) = too_long {
        return refuse(plugin, field, &format!("{length} entries; {MAX_ENTRIES} is the most"));
    }
    let no_hooks = "hooks run programs on the host around a container, and no sandboxer here runs any";
    let no_namespaces = "a container's namespaces are the pod's; the kubelet chooses them";
    let none = "this runtime has no such setting for a container";
    let reasons: [(&str, bool, &str); 14] = [
        ("hooks.prestart", !hooks.prestart.is_empty(), no_hooks),
        ("hooks.create_runtime", !hooks.create_runtime.is_empty(), no_hooks),
        ("hooks.create_container", !hooks.create_container.is_empty(), no_hooks),
        ("hooks.start_container", !hooks.start_container.is_empty(), no_hooks),
        ("hooks.poststart", !hooks.poststart.is_empty(), no_hooks),
        ("hooks.poststop", !hooks.poststop.is_empty(), no_hooks),
        ("linux.cgroups_path", !linux.cgroups_path.is_empty(), "cgroups of containers follow from their pod"),
        ("linux.namespaces", !linux.namespaces.is_empty(), no_namespaces),
        ("linux.io_priority", linux.io_priority.is_some(), none),
        ("linux.scheduler", linux.scheduler.is_some(), none),
        ("linux.rdt", linux.rdt.is_some(), none),
        ("linux.memory_policy", linux.memory_policy.is_some(), none),
        ("linux.net_devices", !linux.net_devices.is_empty(), "a pod's interfaces are made by CNI plugins"),
        ("linux.sysctl", !linux.sysctl.is_empty(), "sysctls are the pod's; set them in its security context"),
    ];
    if let Some((field, _, why)) = reasons.into_iter().find(|(_, is_asked, _)| *is_asked) {
        return refuse(plugin, field, why);
    }
    limits(plugin, &linux.resources.unwrap_or_default())
}

/// Looks at limits that one plugin asks for.
pub(crate) fn limits(plugin: &str, asked: &nri::LinuxResources) -> Result<(), NriError> {
    let memory = asked.memory.clone().unwrap_or_default();
    let cpu = asked.cpu.clone().unwrap_or_default();
    let v1 = "cgroup v2 has no such limit";
    let reasons: [(&str, bool, &str); 10] = [
        ("resources.memory.kernel", memory.kernel.is_some(), v1),
        ("resources.memory.kernel_tcp", memory.kernel_tcp.is_some(), v1),
        ("resources.memory.swappiness", memory.swappiness.is_some(), v1),
        ("resources.memory.disable_oom_killer", memory.disable_oom_killer.is_some(), v1),
        ("resources.memory.use_hierarchy", memory.use_hierarchy.is_some(), v1),
        ("resources.cpu.realtime_runtime", cpu.realtime_runtime.is_some(), v1),
        ("resources.cpu.realtime_period", cpu.realtime_period.is_some(), v1),
        ("resources.blockio_class", asked.blockio_class.is_some(), "there are no classes of block I/O"),
        ("resources.rdt_class", asked.rdt_class.is_some(), "there are no classes of RDT"),
        ("resources.devices", !asked.devices.is_empty(), "a device is allowed by asking for it in linux.devices"),
    ];
    match reasons.into_iter().find(|(_, is_asked, _)| *is_asked) {
        Some((field, _, why)) => refuse(plugin, field, why),
        None => Ok(()),
    }
}

fn refuse(plugin: &str, field: &str, why: &str) -> Result<(), NriError> {
    Err(NriError::Unsupported { plugin: plugin.into(), field: field.into(), why: why.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use protobuf::MessageField;

    #[test]
    fn what_cannot_be_applied_is_named() {
        let refused = |asked: nri::ContainerAdjustment| adjustment("10-x", &asked).unwrap_err().to_string();
        let mut asked = nri::ContainerAdjustment::default();
        asked.hooks.mut_or_insert_default().poststop.push(nri::Hook::default());
        let text = refused(asked);
        assert!(text.contains("plugin 10-x") && text.contains("hooks.poststop"), "{text}");
        let mut asked = nri::ContainerAdjustment::default();
        let linux = asked.linux.mut_or_insert_default();
        linux.io_priority = MessageField::some(nri::LinuxIOPriority::default());
        assert!(refused(asked).contains("linux.io_priority"));
        let mut asked = nri::ContainerAdjustment::default();
        asked.linux.mut_or_insert_default().resources.mut_or_insert_default().rdt_class =
            MessageField::some(nri::OptionalString::default());
        assert!(refused(asked).contains("resources.rdt_class"));
        let many = nri::ContainerAdjustment { args: vec!["a".into(); MAX_ENTRIES + 1], ..Default::default() };
        assert!(refused(many).contains("args: 4097 entries"));
        adjustment("10-x", &nri::ContainerAdjustment::default()).unwrap();
    }
}
