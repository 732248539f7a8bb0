//! Changes to a container before it is made, for whoever asks for them. What is set takes the place of what has the same name
//! or path, so of two that set one thing the later wins.

use bulkhead_proto::agent;

use super::volumes::Plan;

/// Changes what the agent and the machine will be told of one container.
#[derive(Debug)]
pub(super) struct Editor<'a> {
    spec: &'a mut agent::ContainerSpec,
    volumes: &'a mut Plan,
}

impl<'a> Editor<'a> {
    /// For a container whose mounts are in `volumes`, and everything else in `spec`.
    pub(super) fn new(spec: &'a mut agent::ContainerSpec, volumes: &'a mut Plan) -> Self {
        Self { spec, volumes }
    }

    /// Sets an environment variable of the first process, and of those that are exec'd later.
    pub(super) fn set_variable(&mut self, name: &[u8], value: &[u8]) {
        set_variable(&mut self.spec.process.mut_or_insert_default().env, [name, b"=", value].concat());
    }

    /// Adds a device node, and the right to use it.
    pub(super) fn set_device(&mut self, device: agent::Device) {
        self.spec.devices.retain(|other| other.path != device.path);
        self.spec.devices.push(device);
    }

    /// Adds a mount whose source the agent finds by itself.
    pub(super) fn set_mount(&mut self, mount: agent::Mount) {
        self.volumes.replace(mount);
    }

    /// Adds a group to those of the first process.
    pub(super) fn add_group(&mut self, gid: u32) {
        let groups = &mut self.spec.process.mut_or_insert_default().user.mut_or_insert_default().supplemental_groups;
        if !groups.contains(&gid) {
            groups.push(gid);
        }
    }
}

/// Puts the line "NAME=value" in the place of one with this name, else at the end.
pub(super) fn set_variable(environment: &mut Vec<Vec<u8>>, line: Vec<u8>) {
    let name = |line: &[u8]| line.split(|b| *b == b'=').next().unwrap_or_default().to_vec();
    match environment.iter_mut().find(|old| name(old) == name(&line)) {
        Some(old) => *old = line,
        None => environment.push(line),
    }
}

/// A bind mount of the host's path `source`, with options as mount(8) and the OCI's runtimes have them.
///
/// # Errors
/// The option that is not done.
pub(super) fn bind_mount(source: String, destination: String, options: &[String]) -> Result<agent::Mount, String> {
    let mut mount =
        agent::Mount { destination, source: Some(agent::mount::Source::Volume(source)), ..Default::default() };
    // Of "bind" and "rbind" the last wins; without either there is nothing else that it could be.
    for option in options {
        match option.as_str() {
            "bind" => mount.without_submounts = true,
            "rbind" => mount.without_submounts = false,
            "ro" => mount.readonly = true,
            "rro" => mount.recursive_readonly = true,
            "rw" => (mount.readonly, mount.recursive_readonly) = (false, false),
            "nosuid" => mount.no_suid = true,
            "suid" => mount.no_suid = false,
            "nodev" => mount.no_dev = true,
            "dev" => mount.no_dev = false,
            "noexec" => mount.no_exec = true,
            "exec" => mount.no_exec = false,
            "private" | "rprivate" => mount.propagation = agent::Propagation::PROPAGATION_PRIVATE.into(),
            "slave" | "rslave" => mount.propagation = agent::Propagation::PROPAGATION_SLAVE.into(),
            other => return Err(format!("the mount option {other:?} is not supported")),
        }
    }
    Ok(mount)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_later_of_one_name_wins() {
        let (mut spec, mut volumes) = (agent::ContainerSpec::new(), Plan::default());
        spec.process.mut_or_insert_default().env = vec![b"A=1".to_vec(), b"AB=2".to_vec()];
        let mut editor = Editor::new(&mut spec, &mut volumes);
        editor.set_variable(b"A", b"3=4");
        editor.set_variable(b"C", b"");
        for minor in [3, 5] {
            editor.set_device(agent::Device { path: "/dev/x".into(), minor, ..Default::default() });
            editor.set_mount(bind_mount(format!("/{minor}"), "/x".into(), &[]).unwrap());
            editor.add_group(7);
        }
        assert_eq!(spec.process.env, [b"A=3=4".to_vec(), b"AB=2".to_vec(), b"C=".to_vec()]);
        assert_eq!(spec.process.user.supplemental_groups, [7]);
        let [device] = spec.devices.as_slice() else { panic!("{:?}", spec.devices) };
        assert_eq!(device.minor, 5);
        assert_eq!(volumes.destinations(), ["/x"]);
    }

    #[test]
    fn mount_options_are_those_of_mount() {
        let options = |words: &str| words.split(',').map(str::to_owned).collect::<Vec<_>>();
        let mount = bind_mount("/a".into(), "/b".into(), &options("ro,nosuid,nodev,noexec,rbind,rslave")).unwrap();
        assert!(mount.readonly && mount.no_suid && mount.no_dev && mount.no_exec && !mount.without_submounts);
        assert_eq!(mount.propagation, agent::Propagation::PROPAGATION_SLAVE.into());
        let mount = bind_mount("/a".into(), "/b".into(), &options("bind,ro,rw,nodev,dev")).unwrap();
        assert!(mount.without_submounts && !mount.readonly && !mount.no_dev);
        let text = bind_mount("/a".into(), "/b".into(), &options("ro,size=1")).unwrap_err();
        assert!(text.contains("\"size=1\""), "{text}");
    }
}
