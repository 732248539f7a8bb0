//! Specification files of the Container Device Interface, versions 0.3.0 to 1.1.0 (cncf-tags/container-device-interface,
//! SPEC.md). What a file says is checked when it is read; what of it this runtime does not do is refused when it is used.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

/// Longest file; a node with hundreds of devices has some hundred kilobytes.
const MAX_FILE: u64 = 4 << 20;
/// Most devices of one file, and most edits of one kind of one device.
const MAX_ENTRIES: usize = 4096;
const VERSIONS: [&str; 8] = ["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];

/// One file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Specification {
    cdi_version: String,
    /// VENDOR/CLASS of all its devices.
    pub(super) kind: String,
    #[serde(default, rename = "annotations")]
    _annotations: Option<IgnoredAny>,
    pub(super) devices: Vec<Device>,
    /// For whoever uses one of its devices.
    #[serde(default)]
    pub(super) container_edits: ContainerEdits,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Device {
    pub(super) name: String,
    #[serde(default, rename = "annotations")]
    _annotations: Option<IgnoredAny>,
    pub(super) container_edits: ContainerEdits,
}

/// Changes to a container.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct ContainerEdits {
    #[serde(deserialize_with = "list")]
    pub(super) env: Vec<String>,
    #[serde(deserialize_with = "list")]
    pub(super) device_nodes: Vec<DeviceNode>,
    #[serde(deserialize_with = "list")]
    pub(super) mounts: Vec<Mount>,
    /// The specification writes its name both ways.
    #[serde(alias = "additionalGIDs", deserialize_with = "list")]
    pub(super) additional_gids: Vec<u32>,
    #[serde(deserialize_with = "list")]
    hooks: Vec<IgnoredAny>,
    #[serde(deserialize_with = "list")]
    net_devices: Vec<IgnoredAny>,
    intel_rdt: Option<IgnoredAny>,
}

/// A list that may be null, as generators write an empty one.
fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Option::<Vec<T>>::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct DeviceNode {
    /// In the container, and on the host when `host_path` is left out.
    pub(super) path: String,
    pub(super) host_path: String,
    /// "b", "c", "u", "p"; the host's when left out, as the numbers.
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) file_mode: Option<u32>,
    /// Letters of "rwm", or "none".
    pub(super) permissions: String,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Mount {
    pub(super) host_path: String,
    pub(super) container_path: String,
    #[serde(default, deserialize_with = "list")]
    pub(super) options: Vec<String>,
    #[serde(default, rename = "type")]
    pub(super) kind: String,
}

impl ContainerEdits {
    /// The name of something in here that is not done.
    pub(super) fn unsupported(&self) -> Option<&'static str> {
        let found = [
            ("hooks", !self.hooks.is_empty()),
            ("netDevices", !self.net_devices.is_empty()),
            ("intelRdt", self.intel_rdt.is_some()),
        ];
        found.into_iter().find(|(_, used)| *used).map(|(name, _)| name)
    }

    fn check(&self) -> Result<(), String> {
        let sizes = [
            self.env.len(),
            self.device_nodes.len(),
            self.mounts.len(),
            self.additional_gids.len(),
            self.hooks.len(),
            self.net_devices.len(),
        ];
        if sizes.into_iter().any(|size| size > MAX_ENTRIES) {
            return Err(format!("containerEdits has more than {MAX_ENTRIES} entries of one kind"));
        }
        check_variables(&self.env)?;
        for node in &self.device_nodes {
            check_path(&node.path, "deviceNodes.path")?;
            if !["", "b", "c", "u", "p"].contains(&node.kind.as_str()) {
                return Err(format!("deviceNodes.type {:?} of {} is unknown", node.kind, node.path));
            }
            if node.permissions != "none" && !node.permissions.chars().all(|letter| "rwm".contains(letter)) {
                return Err(format!(
                    "deviceNodes.permissions {:?} of {}: letters of \"rwm\" or \"none\" are possible",
                    node.permissions, node.path
                ));
            }
        }
        for mount in &self.mounts {
            check_path(&mount.host_path, "mounts.hostPath")?;
            check_path(&mount.container_path, "mounts.containerPath")?;
        }
        Ok(())
    }
}

fn check_variables(lines: &[String]) -> Result<(), String> {
    match lines.iter().find(|line| line.find('=').is_none_or(|at| at == 0) || line.contains('\0')) {
        Some(bad) => Err(format!("env {bad:?} is not NAME=VALUE")),
        None => Ok(()),
    }
}

fn check_path(path: &str, what: &str) -> Result<(), String> {
    if path.starts_with('/') && !path.contains('\0') { Ok(()) } else { Err(format!("{what} {path:?} is not absolute")) }
}

impl Specification {
    /// Reads a file whose name ends with .json or .yaml.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        // A FIFO would hold the daemon's thread for good.
        if !std::fs::metadata(path).map_err(|error| error.to_string())?.is_file() {
            return Err("it is no regular file".to_owned());
        }
        let mut text = String::new();
        let file = File::open(path).map_err(|error| error.to_string())?;
        let length = file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
        if length as u64 > MAX_FILE {
            return Err(format!("it is longer than {MAX_FILE} bytes"));
        }
        let is_json = path.extension().is_some_and(|extension| extension == "json");
        Self::parse(&text, is_json)
    }

    pub(super) fn parse(text: &str, is_json: bool) -> Result<Self, String> {
        let specification: Self = match is_json {
            true => serde_json::from_str(text).map_err(|error| error.to_string())?,
            false => {
                // Generators write modes as 0660.
                let options = serde_saphyr::options! { legacy_octal_numbers: true, with_snippet: false };
                serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())?
            }
        };
        specification.check()?;
        Ok(specification)
    }

    fn check(&self) -> Result<(), String> {
        let version = self.cdi_version.as_str();
        if !VERSIONS.contains(&version.strip_prefix('v').unwrap_or(version)) {
            return Err(format!("cdiVersion {version:?} is none of {}", VERSIONS.join(", ")));
        }
        check_kind(&self.kind)?;
        if self.devices.is_empty() || self.devices.len() > MAX_ENTRIES {
            return Err(format!("it has {} devices; 1 to {MAX_ENTRIES} are possible", self.devices.len()));
        }
        self.container_edits.check()?;
        let mut seen = HashSet::new();
        for device in &self.devices {
            check_device(&device.name)?;
            if !seen.insert(device.name.as_str()) {
                return Err(format!("it has two devices {:?}", device.name));
            }
            if device.container_edits == ContainerEdits::default() {
                return Err(format!("device {:?}: containerEdits is empty", device.name));
            }
            device.container_edits.check().map_err(|why| format!("device {:?}: {why}", device.name))?;
        }
        Ok(())
    }
}

/// VENDOR/CLASS=DEVICE
pub(super) fn check_qualified(name: &str) -> Result<(), String> {
    let (kind, device) = name.split_once('=').ok_or("there is no \"=\"")?;
    check_kind(kind)?;
    check_device(device)
}

/// VENDOR/CLASS
fn check_kind(kind: &str) -> Result<(), String> {
    let Some((vendor, class)) = kind.split_once('/') else { return Err(format!("kind {kind:?} is not VENDOR/CLASS")) };
    let letter = |c: char| c.is_ascii_alphabetic();
    match part(vendor, letter, "_-.") && part(class, letter, "_-.") {
        true => Ok(()),
        false => Err(format!("kind {kind:?} is not VENDOR/CLASS")),
    }
}

/// The last part of a device's name.
fn check_device(name: &str) -> Result<(), String> {
    match part(name, |c| c.is_ascii_alphanumeric(), "_-.:") {
        true => Ok(()),
        false => Err(format!("{name:?} is no name of a device")),
    }
}

fn part(text: &str, first: impl Fn(char) -> bool, between: &str) -> bool {
    text.chars().next().is_some_and(first)
        && text.chars().next_back().is_some_and(|c| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || between.contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FULL: &str = r#"
cdiVersion: "0.7.0"
kind: vendor.com/class
annotations: {a.b/c: d}
containerEdits: {env: [A=1], additionalGIDs: [7]}
devices:
- name: "gpu0:1"
  containerEdits:
    deviceNodes: [{path: /dev/x, hostPath: /dev/null, permissions: rw, fileMode: 438}]
    mounts: [{hostPath: /etc, containerPath: /host, options: [ro, bind]}]
"#;

    #[test]
    fn yaml_and_json_say_the_same() {
        let spec = Specification::parse(FULL, false).unwrap();
        assert_eq!(spec.devices[0].container_edits.device_nodes[0].file_mode, Some(0o666));
        let json = r#"{"cdiVersion": "0.7.0", "kind": "vendor.com/class", "annotations": {"a.b/c": "d"},
            "containerEdits": {"env": ["A=1"], "additionalGIDs": [7]}, "devices": [{"name": "gpu0:1", "containerEdits": {
            "deviceNodes": [{"path": "/dev/x", "hostPath": "/dev/null", "permissions": "rw", "fileMode": 438}],
            "mounts": [{"hostPath": "/etc", "containerPath": "/host", "options": ["ro", "bind"]}]}}]}"#;
        assert_eq!(Specification::parse(json, true).unwrap(), spec);
    }

    #[test]
    fn what_is_wrong_in_a_file_is_named() {
        for (from, to, words) in [
            ("0.7.0", "9.0.0", "cdiVersion \"9.0.0\""),
            ("vendor.com/class", "vendor.com", "VENDOR/CLASS"),
            ("vendor.com/class", "vendor.com/a b", "VENDOR/CLASS"),
            ("gpu0:1", "-x", "no name of a device"),
            ("A=1", "=1", "NAME=VALUE"),
            ("path: /dev/x", "path: dev/x", "not absolute"),
            ("permissions: rw", "permissions: x", "\"rwm\""),
            ("containerPath", "unknown", "unknown field"),
            ("hostPath: /etc", "hostPath: etc", "not absolute"),
            ("containerEdits:\n", "containerEdits: {}\n  annotations:\n", "containerEdits is empty"),
        ] {
            let text = Specification::parse(&FULL.replacen(from, to, 1), false).unwrap_err();
            assert!(text.contains(words), "{text} lacks {words}");
        }
    }

    #[test]
    fn what_generators_write_is_read() {
        let text = FULL.replace("fileMode: 438", "fileMode: 0666").replace("0.7.0", "v1.1.0");
        let text = text.replace("additionalGIDs: [7]", "additionalGids: null, hooks:, mounts: []");
        let read = Specification::parse(&format!("---\n{text}"), false).unwrap();
        assert_eq!(read.devices[0].container_edits.device_nodes[0].file_mode, Some(0o666));
        assert!(read.container_edits.additional_gids.is_empty() && read.container_edits.mounts.is_empty());
    }

    #[test]
    fn what_is_not_done_is_found_by_name() {
        for (field, value) in [("hooks", "[{hookName: x, path: /x}]"), ("netDevices", "[{}]"), ("intelRdt", "{a: b}")] {
            let text = FULL.replace("env: [A=1]", &format!("{field}: {value}"));
            assert_eq!(Specification::parse(&text, false).unwrap().container_edits.unsupported(), Some(field));
        }
        assert_eq!(Specification::parse(FULL, false).unwrap().container_edits.unsupported(), None);
    }

    #[test]
    fn aliases_that_grow_without_end_are_refused() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let before = format!("*a{}", level - 1);
            let nine = [before.as_str(); 9].join(", ");
            text.push_str(&format!("a{level}: &a{level} [{nine}]\n"));
        }
        assert!(Specification::parse(&text, false).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in ".{0,300}", is_json in any::<bool>()) {
            let _ = Specification::parse(&text, is_json);
        }
    }
}
