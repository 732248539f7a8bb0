//! Checks what a caller asks for and turns it into what a helper is told.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use bulkhead_proto::agent::{self, ImageExtent, Process, User};

use super::images::{Extent, Place};
use super::user_namespace::UserNamespace;
use super::{capabilities, devices};
use crate::helper::clean;
use crate::helper::spec::{Fd, ProcessSpec, Propagation, Stdio, UserSpec};
use crate::helper::users::MAX_ID as MAX_USER_ID;
use crate::seccomp;

/// Longest id of a container or exec'd process; both name files.
const MAX_ID: usize = 128;

/// Descriptors on their way to a helper.
#[derive(Debug, Default)]
pub struct FdTable(Vec<OwnedFd>);

impl FdTable {
    /// Adds one and returns its index.
    pub fn add(&mut self, fd: OwnedFd) -> Fd {
        self.0.push(fd);
        self.0.len() - 1
    }

    /// To be sent.
    #[must_use]
    pub fn borrowed(&self) -> Vec<BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd).collect()
    }
}

/// An id that may name a file.
///
/// # Errors
/// What is wrong with it.
pub fn check_id(id: &str) -> Result<(), String> {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let first = id.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    if first && id.len() <= MAX_ID && id.chars().all(valid) {
        return Ok(());
    }
    Err(format!("{id:?} is no id: 1 to {MAX_ID} letters, digits, '_', '.', '-', the first a letter or digit"))
}

/// An absolute path in a container, without "." and "..".
///
/// # Errors
/// What is wrong with it.
pub fn check_path(path: &str, what: &str) -> Result<String, String> {
    if !path.starts_with('/') {
        return Err(format!("{what} {path:?} is not absolute"));
    }
    Ok(clean(Path::new(path)).to_string_lossy().into_owned())
}

/// An image extent.
///
/// # Errors
/// What is wrong with it.
pub fn extent(extent: &ImageExtent) -> Result<Extent, String> {
    if !extent.files.is_empty() {
        if let Some(relative) = extent.files.iter().find(|file| !file.starts_with('/')) {
            return Err(format!("file {relative:?} of image {:?} is not absolute", extent.image_id));
        }
        let files = extent.files.iter().map(Into::into).collect();
        return Ok(Extent { image: extent.image_id.clone(), place: Place::Files(files) });
    }
    if extent.image_id.is_empty() || extent.sectors == 0 || extent.start_sector.checked_add(extent.sectors).is_none() {
        return Err(format!("image extent {:?} is empty or exceeds any drive", extent.image_id));
    }
    let place = Place::Drive { start: extent.start_sector, sectors: extent.sectors };
    Ok(Extent { image: extent.image_id.clone(), place })
}

/// A mount's propagation.
///
/// # Errors
/// An unknown number.
pub fn propagation(value: protobuf::EnumOrUnknown<agent::Propagation>) -> Result<Propagation, String> {
    match value.enum_value() {
        Ok(agent::Propagation::PROPAGATION_PRIVATE) => Ok(Propagation::Private),
        Ok(agent::Propagation::PROPAGATION_SLAVE) => Ok(Propagation::Slave),
        Ok(agent::Propagation::PROPAGATION_SHARED) => Ok(Propagation::Shared),
        Err(number) => Err(format!("unknown mount propagation {number}")),
    }
}

/// A process; `stdio` is filled in by who makes its streams.
///
/// # Errors
/// What is wrong with it.
pub fn process(process: &Process) -> Result<ProcessSpec, String> {
    if process.args.is_empty() {
        return Err("there is no command: args is empty".into());
    }
    let working_directory = match process.working_directory.as_str() {
        "" => "/".into(),
        path => check_path(path, "working directory")?,
    };
    if let Some(score) = process.oom_score_adj
        && !(-1000..=1000).contains(&score)
    {
        return Err(format!("oom_score_adj {score} is outside -1000 to 1000"));
    }
    Ok(ProcessSpec {
        args: process.args.clone(),
        env: process.env.clone(),
        working_directory,
        user: user(process.user.as_ref().unwrap_or_default())?,
        capabilities: capabilities::sets(process.capabilities.as_ref().unwrap_or_default())?,
        rlimits: process.rlimits.iter().map(|r| (r.name.clone(), r.soft, r.hard)).collect(),
        ids: None,
        no_new_privileges: process.no_new_privileges,
        oom_score_adj: process.oom_score_adj,
        seccomp: process
            .seccomp
            .as_ref()
            .map(|s| seccomp::checked(s).and_then(|s| seccomp::compile(&s)))
            .transpose()?,
        stdio: Stdio::Terminal(dimension(process.rows), dimension(process.columns)),
    })
}

/// Rows or columns of a terminal.
#[must_use]
pub fn dimension(value: u32) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

fn user(user: &User) -> Result<UserSpec, String> {
    let id = |value: Option<i64>, what: &str| {
        let number = |value| u32::try_from(value).ok().filter(|id| *id <= MAX_USER_ID);
        value.map(|value| number(value).ok_or_else(|| format!("{what} {value} is out of range"))).transpose()
    };
    if let Some(group) = user.supplemental_groups.iter().find(|group| **group > MAX_USER_ID) {
        return Err(format!("supplemental group {group} is out of range"));
    }
    Ok(UserSpec {
        uid: id(user.uid, "user id")?,
        gid: id(user.gid, "group id")?,
        username: user.username.clone(),
        image_user: user.image_user.clone(),
        supplemental_groups: user.supplemental_groups.clone(),
        strict_groups: user.strict_supplemental_groups,
    })
}

/// The nodes that a container gets beside the standard ones; those that nobody named stay the host's.
///
/// # Errors
/// What is wrong with one.
pub fn device_nodes(
    spec: &agent::ContainerSpec,
    users: Option<&UserNamespace>,
) -> Result<Vec<crate::helper::spec::DeviceSpec>, String> {
    let mut nodes = if spec.privileged { devices::all_nodes() } else { Vec::new() };
    for device in &spec.devices {
        check_path(&device.path, "device")?;
        let mut node = devices::node(device)?;
        if let Some(users) = users {
            users.own_device(&mut node);
        }
        nodes.push(node);
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_name_files() {
        for good in ["a", "0123abc", "a.b-c_d"] {
            check_id(good).unwrap();
        }
        for bad in ["", ".", "..", "a/b", ".pause", "a b", &"x".repeat(129)] {
            assert!(check_id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_are_absolute_and_clean() {
        assert_eq!(check_path("/a/../b/./c", "mount").unwrap(), "/b/c");
        assert!(check_path("a", "mount").is_err());
    }

    #[test]
    fn user_ids_that_the_kernel_takes_for_none_are_refused() {
        let mut wanted = User::new();
        wanted.uid = Some(i64::from(u32::MAX));
        assert!(user(&wanted).is_err());
        wanted.uid = Some(-1);
        assert!(user(&wanted).is_err());
        wanted.uid = Some(i64::from(MAX_USER_ID) + 1);
        assert!(user(&wanted).is_err());
        wanted.uid = Some(0);
        assert_eq!(user(&wanted).unwrap().uid, Some(0));
    }
}
