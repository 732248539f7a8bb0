//! What the edits of CDI devices change in a container.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use bulkhead_proto::agent;

use super::spec::{ContainerEdits, DeviceNode, Mount};
use crate::container::edits::{Editor, bind_mount};

/// Permissions that give a node without any use of it.
const NO_PERMISSIONS: &str = "none";

/// Edits with all that had to be looked up on the host.
#[derive(Debug, Default)]
pub(crate) struct Resolved {
    variables: Vec<(String, String)>,
    devices: Vec<agent::Device>,
    mounts: Vec<agent::Mount>,
    groups: Vec<u32>,
}

impl Resolved {
    /// Adds further edits, which come after those before. Blocking.
    pub(super) fn add(&mut self, edits: &ContainerEdits) -> Result<(), String> {
        if let Some(what) = edits.unsupported() {
            return Err(format!("{what} are not supported by this runtime"));
        }
        let variables = edits.env.iter().filter_map(|line| line.split_once('='));
        self.variables.extend(variables.map(|(name, value)| (name.to_owned(), value.to_owned())));
        for node in &edits.device_nodes {
            self.devices.push(device(node).map_err(|why| format!("deviceNodes {}: {why}", node.path))?);
        }
        for mount in &edits.mounts {
            self.mounts.push(bind(mount).map_err(|why| format!("mounts {}: {why}", mount.container_path))?);
        }
        // The specification ignores 0.
        self.groups.extend(edits.additional_gids.iter().copied().filter(|gid| *gid != 0));
        Ok(())
    }

    /// Makes the changes.
    pub(crate) fn apply(self, editor: &mut Editor<'_>) {
        self.variables.iter().for_each(|(name, value)| editor.set_variable(name.as_bytes(), value.as_bytes()));
        self.devices.into_iter().for_each(|device| editor.set_device(device));
        self.mounts.into_iter().for_each(|mount| editor.set_mount(mount));
        self.groups.into_iter().for_each(|gid| editor.add_group(gid));
    }
}

/// A node that names its kind and number need not be on the host; of others the host's says both.
fn device(node: &DeviceNode) -> Result<agent::Device, String> {
    let host = if node.host_path.is_empty() { &node.path } else { &node.host_path };
    let is_complete = node.kind == "p" || !node.kind.is_empty() && node.major != 0;
    let metadata = match fs::symlink_metadata(host) {
        Ok(metadata) => Some(metadata),
        Err(_) if is_complete => None,
        Err(error) => return Err(format!("{host} on the host: {error}")),
    };
    let mode = node.file_mode.unwrap_or_else(|| metadata.as_ref().map_or(0o666, MetadataExt::mode)) & 0o7777;
    let asked = if node.kind == "u" { "c" } else { node.kind.as_str() };
    let (kind, major, minor) = match &metadata {
        Some(metadata) if !is_complete => {
            let (kind, major, minor) = of_host(metadata).ok_or_else(|| format!("{host} on the host is no device"))?;
            if !asked.is_empty() && asked != kind {
                return Err(format!("its type is {asked:?}, and {host} on the host is of type {kind:?}"));
            }
            (kind, major, minor)
        }
        _ => (asked, node.major, node.minor),
    };
    let access = match node.permissions.as_str() {
        "" => "rwm",
        NO_PERMISSIONS => "",
        letters => letters,
    };
    Ok(agent::Device {
        path: node.path.clone(),
        kind: kind.to_owned(),
        major,
        minor,
        mode,
        uid: node.uid,
        gid: node.gid,
        access: access.to_owned(),
        ..Default::default()
    })
}

/// Type and number of a device of the host.
fn of_host(metadata: &fs::Metadata) -> Option<(&'static str, u32, u32)> {
    let kind = metadata.file_type();
    let kinds = [("b", kind.is_block_device()), ("c", kind.is_char_device()), ("p", kind.is_fifo())];
    let (name, _) = kinds.into_iter().find(|(_, is)| *is)?;
    Some((name, rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev())))
}

fn bind(mount: &Mount) -> Result<agent::Mount, String> {
    if !["", "bind", "none"].contains(&mount.kind.as_str()) {
        return Err(format!("the type {:?} is not supported; \"bind\" is", mount.kind));
    }
    let source =
        fs::canonicalize(&mount.host_path).map_err(|error| format!("{} on the host: {error}", mount.host_path))?;
    let source = source.to_str().ok_or("hostPath is not UTF-8")?.to_owned();
    bind_mount(source, mount.container_path.clone(), &mount.options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(kind: &str, major: u32, minor: u32, host_path: &str) -> DeviceNode {
        let (kind, host_path) = (kind.to_owned(), host_path.to_owned());
        DeviceNode { path: "/dev/x".into(), host_path, kind, major, minor, ..DeviceNode::default() }
    }

    #[test]
    fn what_a_node_leaves_out_is_the_hosts() {
        let found = device(&node("", 0, 0, "/dev/null")).unwrap();
        let number = (found.kind.as_str(), found.major, found.minor);
        assert_eq!((number, found.mode, found.access.as_str()), (("c", 1, 3), 0o666, "rwm"));
        assert_eq!((found.uid, found.gid), (None, None));
        let complete = device(&node("u", 10, 229, "/no/such")).unwrap();
        assert_eq!((complete.kind.as_str(), complete.major, complete.minor), ("c", 10, 229));
        let unused = DeviceNode { permissions: "none".into(), uid: Some(5), ..node("c", 1, 5, "") };
        let unused = device(&unused).unwrap();
        assert_eq!((unused.access.as_str(), unused.uid), ("", Some(5)));
    }

    #[test]
    fn nodes_that_the_host_lacks_are_told() {
        for (node, words) in [
            (node("", 0, 0, "/no/such"), "/no/such on the host"),
            (node("", 0, 0, "/etc/passwd"), "is no device"),
            (node("b", 0, 0, "/dev/null"), "of type \"c\""),
        ] {
            let text = device(&node).unwrap_err();
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn mounts_that_cannot_be_are_told() {
        let mount = |kind: &str, host: &str| Mount {
            host_path: host.into(),
            container_path: "/x".into(),
            options: vec!["ro".into()],
            kind: kind.into(),
        };
        assert!(bind(&mount("", "/etc")).unwrap().readonly);
        assert!(bind(&mount("tmpfs", "/etc")).unwrap_err().contains("tmpfs"));
        assert!(bind(&mount("bind", "/no/such")).unwrap_err().contains("/no/such on the host"));
    }
}
