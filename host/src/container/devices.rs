//! Devices of the host for containers that run on its kernel.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use bulkhead_proto::{agent, cri};

use super::ContainerError;
use crate::blocking;

/// Most devices below one directory that is asked for as a whole.
const MAX_DEVICES: usize = 1024;

/// What the agent is told of the devices that a request names; a directory stands for every device below it.
pub(super) async fn of_host(devices: &[cri::Device]) -> Result<Vec<agent::Device>, ContainerError> {
    let mut all = Vec::new();
    for device in devices {
        let (asked, path) = (device.clone(), PathBuf::from(&device.host_path));
        let found = blocking::on_path(&path, move || find(&asked)).await;
        all.extend(found.map_err(|hung| ContainerError::Invalid(hung.to_string()))??);
    }
    Ok(all)
}

fn find(device: &cri::Device) -> Result<Vec<agent::Device>, ContainerError> {
    let refuse = |why: String| ContainerError::Invalid(format!("device {:?}: {why}", device.host_path));
    if !device.container_path.starts_with('/') {
        return Err(refuse(format!("container_path {:?} is not absolute", device.container_path)));
    }
    if !device.permissions.chars().all(|letter| "rwm".contains(letter)) {
        return Err(refuse(format!("permissions are {:?}; letters of \"rwm\" are possible", device.permissions)));
    }
    let access = if device.permissions.is_empty() { "rwm" } else { device.permissions.as_str() };
    let mut found = Vec::new();
    collect(Path::new(&device.host_path), Path::new(&device.container_path), access, &mut found)
        .map_err(|error| refuse(error.to_string()))?;
    if found.is_empty() {
        return Err(refuse("neither a device nor a directory with one".into()));
    }
    Ok(found)
}

fn collect(host: &Path, container: &Path, access: &str, found: &mut Vec<agent::Device>) -> std::io::Result<()> {
    let metadata = fs::metadata(host)?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        for entry in fs::read_dir(host)? {
            let entry = entry?;
            // A symbolic link below a directory may lead anywhere, and in circles.
            if !entry.file_type()?.is_symlink() {
                collect(&entry.path(), &container.join(entry.file_name()), access, found)?;
            }
        }
    } else if kind.is_char_device() || kind.is_block_device() {
        if found.len() >= MAX_DEVICES {
            return Err(std::io::Error::other(format!("more than {MAX_DEVICES} devices")));
        }
        found.push(agent::Device {
            path: container.display().to_string(),
            kind: if kind.is_block_device() { "b" } else { "c" }.into(),
            major: rustix::fs::major(metadata.rdev()),
            minor: rustix::fs::minor(metadata.rdev()),
            mode: metadata.mode() & 0o7777,
            uid: Some(metadata.uid()),
            gid: Some(metadata.gid()),
            access: access.into(),
            ..Default::default()
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(host: &str, permissions: &str) -> cri::Device {
        cri::Device { host_path: host.into(), container_path: "/dev/x".into(), permissions: permissions.into() }
    }

    #[test]
    fn devices_are_told_by_number() {
        let found = find(&device("/dev/null", "rw")).unwrap();
        let [null] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((null.kind.as_str(), null.major, null.minor, null.access.as_str()), ("c", 1, 3, "rw"));
        assert_eq!(null.path, "/dev/x");
        let all = find(&device("/dev", "")).unwrap();
        assert!(all.iter().any(|device| device.path == "/dev/x/zero" && device.access == "rwm"));
    }

    #[test]
    fn what_is_no_device_is_refused() {
        for (path, permissions, words) in
            [("/etc/passwd", "r", "neither"), ("/no/such/device", "r", "No such file"), ("/dev/null", "x", "letters")]
        {
            let text = find(&device(path, permissions)).unwrap_err().to_string();
            assert!(text.contains(words) && text.contains(path), "{text}");
        }
    }
}
