//! What NRI plugins want of a container that is being made, carried into what the agent will be told.

use bulkhead_proto::nri::{self, Field};
use bulkhead_proto::{agent, cri};

use super::host_access::HostAccess;
use super::volumes::MountFlags;
use super::{ContainerError, cdi, edits, resources, seccomp};
use crate::nri::owners::unmarked;
use crate::nri::resources::to_cri;
use crate::nri::{Creation, NriError};

/// Most digits of a tmpfs's size; more cannot be bytes of any machine.
const MAX_DIGITS: usize = 15;

/// A container before the agent is told of it.
#[derive(Debug)]
pub(super) struct Parts {
    /// As the kubelet sent it; mounts and limits become what plugins make of them.
    pub(super) config: cri::ContainerConfig,
    pub(super) process: agent::Process,
    pub(super) devices: Vec<agent::Device>,
    /// Mounts that need nothing of the host.
    pub(super) memory: Vec<agent::Mount>,
    /// Of those in the configuration.
    pub(super) flags: Vec<MountFlags>,
}

/// A refusal that names the plugin that set `field`.
struct Refusal<'a> {
    creation: &'a Creation,
    field: Field,
    key: &'a str,
}

impl Refusal<'_> {
    fn say(&self, field: &str, why: impl Into<String>) -> ContainerError {
        let plugin = self.creation.owners.of(&self.creation.container.id, self.field, self.key);
        let field = if self.key.is_empty() { field.to_owned() } else { format!("{field} {:?}", self.key) };
        NriError::Unsupported { plugin, field, why: why.into() }.into()
    }
}

impl Parts {
    /// Applies everything, or nothing of the container is made.
    pub(super) fn adjust(&mut self, creation: &Creation, host: &HostAccess) -> Result<(), ContainerError> {
        let asked = &creation.adjust;
        self.variables(&asked.env);
        if !asked.args.is_empty() {
            self.process.args = asked.args.iter().map(|word| word.clone().into_bytes()).collect();
        }
        for limit in &asked.rlimits {
            let refusal = Refusal { creation, field: Field::Rlimits, key: &limit.type_ };
            self.rlimit(limit).map_err(|why| refusal.say("rlimits", why))?;
        }
        for mount in &asked.mounts {
            let refusal = Refusal { creation, field: Field::Mounts, key: &mount.destination };
            self.mount(&creation.container.id, mount).map_err(|why| refusal.say("mounts", why))?;
        }
        for device in &asked.CDI_devices {
            let refusal = Refusal { creation, field: Field::CdiDevices, key: &device.name };
            let name = cdi::check(&device.name);
            let allowed = host.ask("it", "a device of the host").map_err(|refused| refused.to_string());
            name.and(allowed).map_err(|why| refusal.say("CDI_devices", why))?;
            self.config.cdi_devices.push(cri::CdiDevice { name: device.name.clone() });
        }
        let Some(linux) = asked.linux.as_ref() else { return Ok(()) };
        for device in &linux.devices {
            let refusal = Refusal { creation, field: Field::Devices, key: &device.path };
            self.device(device, host).map_err(|why| refusal.say("linux.devices", why))?;
        }
        if let Some(limits) = linux.resources.as_ref() {
            self.limits(to_cri(limits));
        }
        if let Some(adj) = linux.oom_score_adj.as_ref() {
            let refusal = Refusal { creation, field: Field::OomScoreAdj, key: "" };
            let value = i32::try_from(adj.value).ok().filter(|value| (-1000..=1000).contains(value));
            let why = || format!("{} is outside -1000 to 1000", adj.value);
            let value = value.ok_or_else(|| refusal.say("linux.oom_score_adj", why()))?;
            self.process.oom_score_adj = Some(value);
            self.limits(cri::LinuxContainerResources { oom_score_adj: value.into(), ..Default::default() });
        }
        Ok(())
    }

    /// The profile that plugins want instead of the kubelet's.
    pub(super) fn seccomp(
        creation: &Creation,
        capabilities: &[String],
    ) -> Result<Option<agent::Seccomp>, ContainerError> {
        let asked = creation.adjust.linux.as_ref().and_then(|linux| linux.seccomp_policy.as_ref());
        let Some(policy) = asked else { return Ok(None) };
        let refusal = Refusal { creation, field: Field::SeccompPolicy, key: "" };
        let filter = seccomp::of_plugin(policy, capabilities);
        filter.map(Some).map_err(|why| refusal.say("linux.seccomp_policy", why))
    }

    fn variables(&mut self, asked: &[nri::KeyValue]) {
        let name = |line: &[u8]| line.split(|byte| *byte == b'=').next().unwrap_or_default().to_vec();
        for pair in asked {
            let (key, is_removed) = unmarked(&pair.key);
            if is_removed {
                self.process.env.retain(|line| name(line) != key.as_bytes());
            } else {
                edits::set_variable(&mut self.process.env, format!("{key}={}", pair.value).into_bytes());
            }
        }
    }

    fn rlimit(&mut self, limit: &nri::POSIXRlimit) -> Result<(), String> {
        let name =
            if limit.type_.starts_with("RLIMIT_") { limit.type_.clone() } else { format!("RLIMIT_{}", limit.type_) };
        if limit.soft > limit.hard {
            return Err(format!("the soft limit {} is above the hard limit {}", limit.soft, limit.hard));
        }
        self.process.rlimits.retain(|other| other.name != name);
        let limit = agent::Rlimit { name, soft: limit.soft, hard: limit.hard, ..Default::default() };
        self.process.rlimits.push(limit);
        Ok(())
    }

    fn mount(&mut self, container_id: &str, asked: &nri::Mount) -> Result<(), String> {
        let (destination, is_removed) = unmarked(&asked.destination);
        self.config.mounts.retain(|mount| mount.container_path != destination);
        self.memory.retain(|mount| mount.destination != destination);
        self.flags.retain(|flags| flags.destination != destination);
        if is_removed {
            return Ok(());
        }
        match asked.type_.as_str() {
            "tmpfs" => self.memory.push(tmpfs(container_id, asked)?),
            "bind" | "" | "none" => {
                let (mount, flags) = bind(asked)?;
                self.config.mounts.push(mount);
                self.flags.push(flags);
            }
            other => return Err(format!("type {other:?} is not supported; \"bind\" and \"tmpfs\" are")),
        }
        Ok(())
    }

    fn device(&mut self, asked: &nri::LinuxDevice, host: &HostAccess) -> Result<(), String> {
        let (path, is_removed) = unmarked(&asked.path);
        self.devices.retain(|device| device.path != path);
        if is_removed {
            return Ok(());
        }
        host.ask("it", "a device of the host").map_err(|refusal| refusal.to_string())?;
        if !path.starts_with('/') {
            return Err("the path is not absolute".into());
        }
        let number = |value: i64| u32::try_from(value).map_err(|_| format!("{value} is no device number"));
        let mode = asked.file_mode.as_ref().map(|mode| mode.value);
        self.devices.push(agent::Device {
            path: path.to_owned(),
            kind: kind(&asked.type_)?.to_owned(),
            major: number(asked.major)?,
            minor: number(asked.minor)?,
            mode: mode.unwrap_or(0o666) & 0o7777,
            uid: asked.uid.as_ref().map(|uid| uid.value),
            gid: asked.gid.as_ref().map(|gid| gid.value),
            access: access(&asked.type_, mode),
            ..Default::default()
        });
        Ok(())
    }

    fn limits(&mut self, asked: cri::LinuxContainerResources) {
        let linux = self.config.linux.get_or_insert_default();
        let before = linux.resources.take().unwrap_or_default();
        linux.resources = Some(resources::merge(before, asked));
    }
}

fn kind(kind: &str) -> Result<&str, String> {
    match kind {
        "c" | "u" => Ok("c"),
        "b" | "p" => Ok(kind),
        other => Err(format!("type {other:?} is none of c, b and p")),
    }
}

/// As the reference: what the mode gives to anybody; block devices may also be made.
fn access(kind: &str, mode: Option<u32>) -> String {
    let mut access = String::new();
    for (letter, bits) in [('r', 0o444), ('w', 0o222)] {
        if mode.is_none_or(|mode| mode & bits != 0) {
            access.push(letter);
        }
    }
    if kind == "b" {
        access.push('m');
    }
    access
}

/// A mount of a host path, as the CRI would ask for it: the same rules hold.
fn bind(asked: &nri::Mount) -> Result<(cri::Mount, MountFlags), String> {
    use cri::MountPropagation as Propagation;
    let mut flags = MountFlags { destination: asked.destination.clone(), ..Default::default() };
    let mut mount =
        cri::Mount { container_path: asked.destination.clone(), host_path: asked.source.clone(), ..Default::default() };
    for option in &asked.options {
        match option.as_str() {
            // Mounts below are always taken along, as for the kubelet's own.
            "bind" | "rbind" | "rw" => {}
            "nosuid" => flags.no_suid = true,
            "nodev" => flags.no_dev = true,
            "noexec" => flags.no_exec = true,
            "ro" => mount.readonly = true,
            "rro" => (mount.readonly, mount.recursive_read_only) = (true, true),
            "private" | "rprivate" => mount.propagation = Propagation::PropagationPrivate as i32,
            "slave" | "rslave" => mount.propagation = Propagation::PropagationHostToContainer as i32,
            "shared" | "rshared" => mount.propagation = Propagation::PropagationBidirectional as i32,
            other => return Err(format!("option {other:?} of a bind mount is not supported")),
        }
    }
    Ok((mount, flags))
}

fn tmpfs(container_id: &str, asked: &nri::Mount) -> Result<agent::Mount, String> {
    if !asked.destination.starts_with('/') {
        return Err("the destination is not absolute".into());
    }
    let name = format!("nri/{container_id}{}", asked.destination);
    let mut source = agent::TmpfsSource { name, mode: 0o1777, ..Default::default() };
    let mut mount = agent::Mount { destination: asked.destination.clone(), ..Default::default() };
    for option in &asked.options {
        let refuse = || format!("option {option:?} of a tmpfs is not supported");
        match option.split_once('=') {
            // A memory volume is both in any case.
            None if ["rw", "nosuid", "nodev"].contains(&option.as_str()) => {}
            None if option == "ro" => mount.readonly = true,
            Some(("mode", octal)) => source.mode = u32::from_str_radix(octal, 8).map_err(|_| refuse())? & 0o7777,
            Some(("size", size)) => source.size_bytes = bytes(size).ok_or_else(refuse)?,
            _ => return Err(refuse()),
        }
    }
    mount.source = Some(agent::mount::Source::Tmpfs(source));
    Ok(mount)
}

/// "65536k" and the like, as tmpfs(5) takes them.
fn bytes(text: &str) -> Option<u64> {
    let (digits, unit) = match text.char_indices().last()? {
        (at, 'k' | 'K') => (&text[..at], 1 << 10),
        (at, 'm' | 'M') => (&text[..at], 1 << 20),
        (at, 'g' | 'G') => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    if digits.len() > MAX_DIGITS {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> Parts {
        let mount = cri::Mount { container_path: "/data".into(), host_path: "/srv".into(), ..Default::default() };
        Parts {
            config: cri::ContainerConfig { mounts: vec![mount], ..Default::default() },
            process: agent::Process { env: vec![b"A=1".to_vec(), b"B=\xff".to_vec()], ..Default::default() },
            devices: Vec::new(),
            memory: Vec::new(),
            flags: Vec::new(),
        }
    }

    fn mount(destination: &str, kind: &str, options: &[&str]) -> nri::Mount {
        nri::Mount {
            destination: destination.into(),
            type_: kind.into(),
            source: "/src".into(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn variables_that_no_plugin_touches_keep_their_bytes() {
        let mut parts = parts();
        let pair = |key: &str| nri::KeyValue { key: key.into(), value: "2".into(), ..Default::default() };
        parts.variables(&[pair("-A"), pair("C")]);
        assert_eq!(parts.process.env, [b"B=\xff".to_vec(), b"C=2".to_vec()]);
    }

    #[test]
    fn mounts_are_added_replaced_removed_or_refused() {
        let mut parts = parts();
        parts.mount("c", &mount("/data", "bind", &["rbind", "ro", "rslave", "noexec"])).unwrap();
        assert!(parts.flags[0].no_exec && !parts.flags[0].no_suid);
        let [only] = parts.config.mounts.as_slice() else { panic!("{parts:?}") };
        assert!(only.host_path == "/src" && only.readonly && only.propagation == 1);
        parts.mount("c", &mount("/tmp", "tmpfs", &["size=64k", "mode=755", "nosuid"])).unwrap();
        let Some(agent::mount::Source::Tmpfs(tmpfs)) = &parts.memory[0].source else { panic!("{parts:?}") };
        assert_eq!((tmpfs.size_bytes, tmpfs.mode, tmpfs.name.as_str()), (64 << 10, 0o755, "nri/c/tmp"));
        parts.mount("c", &mount("-/data", "", &[])).unwrap();
        assert!(parts.config.mounts.is_empty());
        for (asked, words) in [
            (mount("/x", "overlay", &[]), "type \"overlay\""),
            (mount("/x", "bind", &["noatime"]), "option \"noatime\""),
            (mount("/x", "tmpfs", &["size=9999999999999999g"]), "size=9999"),
        ] {
            let text = parts.mount("c", &asked).unwrap_err();
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn devices_are_for_containers_on_the_host() {
        let asked =
            nri::LinuxDevice { path: "/dev/x".into(), type_: "c".into(), major: 1, minor: 3, ..Default::default() };
        let mut parts = parts();
        let text = parts.device(&asked, &HostAccess::Refused("y can".into())).unwrap_err();
        assert!(text.contains("a device of the host") && text.contains("y can"), "{text}");
        parts.device(&asked, &HostAccess::Given(None)).unwrap();
        assert_eq!((parts.devices[0].access.as_str(), parts.devices[0].mode), ("rw", 0o666));
        assert_eq!(access("b", Some(0o400)), "rm");
        parts
            .device(&nri::LinuxDevice { path: "-/dev/x".into(), ..Default::default() }, &HostAccess::Given(None))
            .unwrap();
        assert!(parts.devices.is_empty());
    }

    #[test]
    fn limits_that_no_plugin_sets_stay() {
        let mut parts = parts();
        let limits = |cpu_shares, memory| cri::LinuxContainerResources {
            cpu_shares,
            memory_limit_in_bytes: memory,
            ..Default::default()
        };
        parts.limits(limits(2, 4096));
        parts.limits(limits(0, 8192));
        let now = parts.config.linux.unwrap().resources.unwrap();
        assert_eq!((now.cpu_shares, now.memory_limit_in_bytes), (2, 8192));
    }
}
