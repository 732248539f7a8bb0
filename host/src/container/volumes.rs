//! A container's mounts: host paths go into the pod's volume share, memory-backed emptyDirs become tmpfs in the guest,
//! image volumes are mapped into the image drive.

use std::path::{Component, Path, PathBuf};

use bulkhead_proto::{agent, cri};
use rustix::fs::statfs;

use super::ContainerError;
use super::host_access::HostAccess;
use crate::blocking;
use crate::image::ImageRoot;
use crate::node::Node;
use crate::sandbox::{Live, user_namespace};
use crate::sys::mounts::{self, Access};

const TMPFS_MAGIC: i64 = 0x0102_1994;
/// A path component of the kubelet's emptyDir volumes.
const EMPTY_DIR: &str = "kubernetes.io~empty-dir";

/// What has to be done for a container's mounts, checked before any of it is.
#[derive(Debug, Default)]
pub(super) struct Plan {
    mounts: Vec<Planned>,
}

#[derive(Debug)]
enum Planned {
    Share { name: String, host_path: PathBuf, directory: bool, access: Access, mount: agent::Mount },
    Ready(agent::Mount),
    Image { image: String, sub_path: String, mount: agent::Mount },
}

impl Planned {
    fn mount_mut(&mut self) -> &mut agent::Mount {
        match self {
            Self::Share { mount, .. } | Self::Ready(mount) | Self::Image { mount, .. } => mount,
        }
    }

    fn mount(&self) -> &agent::Mount {
        match self {
            Self::Share { mount, .. } | Self::Ready(mount) | Self::Image { mount, .. } => mount,
        }
    }
}

/// What the CRI cannot say of a mount.
#[derive(Debug, Clone, Default)]
pub(super) struct MountFlags {
    /// Which mount.
    pub(super) destination: String,
    pub(super) no_suid: bool,
    pub(super) no_dev: bool,
    pub(super) no_exec: bool,
}

impl Plan {
    /// Adds mounts that need nothing of the host, and forbids more on some of the others.
    pub(super) fn with(mut self, mounts: Vec<agent::Mount>, flags: &[MountFlags]) -> Self {
        for planned in &mut self.mounts {
            let mount = planned.mount_mut();
            if let Some(flags) = flags.iter().find(|flags| flags.destination == mount.destination) {
                (mount.no_suid, mount.no_dev, mount.no_exec) = (flags.no_suid, flags.no_dev, flags.no_exec);
            }
        }
        self.mounts.extend(mounts.into_iter().map(Planned::Ready));
        self
    }

    /// Names that will stand in the volume share.
    pub(super) fn share_names(&self) -> Vec<String> {
        let name = |planned: &Planned| match planned {
            Planned::Share { name, .. } => Some(name.clone()),
            _ => None,
        };
        self.mounts.iter().filter_map(name).collect()
    }

    /// Adds a mount that needs nothing done for it, in the place of one with the same destination.
    pub(super) fn replace(&mut self, mount: agent::Mount) {
        self.mounts.retain(|planned| planned.mount().destination != mount.destination);
        self.mounts.push(Planned::Ready(mount));
    }

    #[cfg(test)]
    pub(super) fn destinations(&self) -> Vec<&str> {
        self.mounts.iter().map(|planned| planned.mount().destination.as_str()).collect()
    }
}

/// Checks every mount of a container.
pub(super) async fn plan(container_id: &str, mounts: &[cri::Mount], host: &HostAccess) -> Result<Plan, ContainerError> {
    let mut plan = Plan::default();
    for (index, mount) in mounts.iter().enumerate() {
        let name = format!("{}-{index}", &container_id[..container_id.len().min(12)]);
        let (looked_at, host) = (mount.clone(), host.clone());
        let planned = blocking::on_path(Path::new(&mount.host_path), move || plan_one(name, &looked_at, &host)).await;
        plan.mounts.push(planned.map_err(|hung| refusal(mount, &hung.to_string()))??);
    }
    Ok(plan)
}

fn refusal(mount: &cri::Mount, why: &str) -> ContainerError {
    ContainerError::Mount {
        host_path: mount.host_path.clone(),
        container_path: mount.container_path.clone(),
        why: why.to_owned(),
    }
}

fn plan_one(name: String, mount: &cri::Mount, host: &HostAccess) -> Result<Planned, ContainerError> {
    let refuse = |why: &str| Err(refusal(mount, why));
    if !mount.container_path.starts_with('/') {
        return refuse("container_path must be absolute");
    }
    if mount.propagation == cri::MountPropagation::PropagationBidirectional as i32 {
        host.ask("mount.propagation = PROPAGATION_BIDIRECTIONAL", "mounts that reach the host")?;
    }
    if !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty() {
        host.ask("mount.uidMappings or gidMappings", "id-mapped mounts")?;
    }
    let id_mapped = user_namespace::maps_ids(host.users(), mount).map_err(|why| refusal(mount, &why))?;
    if host.users().is_some() {
        check_for_users(mount).map_err(|why| refusal(mount, &why))?;
    }
    if mount.recursive_read_only && !mount.readonly {
        return refuse("recursive_read_only needs readonly");
    }
    if mount.recursive_read_only && mount.propagation != cri::MountPropagation::PropagationPrivate as i32 {
        return refuse("recursive_read_only needs the propagation PROPAGATION_PRIVATE: later mounts would be writable");
    }
    let base = agent::Mount {
        destination: mount.container_path.clone(),
        readonly: mount.readonly,
        recursive_readonly: mount.recursive_read_only,
        id_mapped,
        ..Default::default()
    };
    if let Some(image) = &mount.image {
        let image = image.image.clone();
        return Ok(Planned::Image { image, sub_path: mount.image_sub_path.clone(), mount: base });
    }
    let host_path = match std::fs::canonicalize(&mount.host_path) {
        Ok(path) => path,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return refuse("host_path does not exist; create it on the node or fix the volume");
        }
        Err(e) => return refuse(&e.to_string()),
    };
    if matches!(host, HostAccess::Given(_)) {
        return of_host(mount, &host_path, base);
    }
    if let Some(size) = memory_empty_dir(&host_path) {
        let tmpfs = agent::TmpfsSource {
            name: host_path.to_string_lossy().into_owned(),
            size_bytes: size,
            mode: 0o777,
            ..Default::default()
        };
        return Ok(Planned::Ready(agent::Mount { source: Some(agent::mount::Source::Tmpfs(tmpfs)), ..base }));
    }
    let access = match (mount.readonly, mount.recursive_read_only) {
        (_, true) => Access::RecursiveReadOnly,
        (true, false) => Access::ReadOnly,
        (false, false) => Access::ReadWrite,
    };
    let source = Some(agent::mount::Source::Volume(name.clone()));
    // The host's mounts enforce it. The guest sees one file system, and its flag would cover the mounts below as well.
    let mount = agent::Mount { source, readonly: mount.recursive_read_only, ..base };
    Ok(Planned::Share { name, directory: host_path.is_dir(), host_path, access, mount })
}

/// What a container in a user namespace cannot have: its kernel file systems are mounted last, and its mounts are its own.
fn check_for_users(mount: &cri::Mount) -> Result<(), String> {
    let path = clean(Path::new(&mount.container_path));
    if let Some(covered) = ["/proc", "/sys", "/dev/pts", "/dev/mqueue"].iter().find(|own| path.starts_with(own)) {
        return Err(format!("nothing can be mounted in {covered} of a pod with a user namespace"));
    }
    if mount.propagation == cri::MountPropagation::PropagationBidirectional as i32 {
        return Err(
            "propagation is BIDIRECTIONAL, and mounts of a pod with a user namespace cannot reach the host".into()
        );
    }
    Ok(())
}

/// Without "." and "..", which never lead above the root.
fn clean(path: &Path) -> PathBuf {
    let mut result = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => result.push(name),
            Component::ParentDir => {
                result.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    result
}

/// A mount of a container on the host's kernel: the agent clones it from the host's own mounts.
fn of_host(mount: &cri::Mount, path: &Path, base: agent::Mount) -> Result<Planned, ContainerError> {
    use cri::MountPropagation as Asked;
    let propagation = match Asked::try_from(mount.propagation) {
        Ok(Asked::PropagationPrivate) => agent::Propagation::PROPAGATION_PRIVATE,
        Ok(Asked::PropagationHostToContainer) => agent::Propagation::PROPAGATION_SLAVE,
        Ok(Asked::PropagationBidirectional) => {
            if !mounts::is_shared(path).map_err(|error| refusal(mount, &error.to_string()))? {
                return Err(refusal(
                    mount,
                    "bidirectional propagation needs a shared mount on the host; make it one with mount --make-rshared",
                ));
            }
            agent::Propagation::PROPAGATION_SHARED
        }
        Err(_) => return Err(refusal(mount, &format!("propagation has the unknown value {}", mount.propagation))),
    };
    let Some(source) = path.to_str() else { return Err(refusal(mount, "host_path is not UTF-8")) };
    let source = Some(agent::mount::Source::Volume(source.to_owned()));
    Ok(Planned::Ready(agent::Mount { source, propagation: propagation.into(), ..base }))
}

/// The size of a memory-backed emptyDir, if the path is one.
fn memory_empty_dir(path: &Path) -> Option<u64> {
    if !path.components().any(|part| part.as_os_str() == EMPTY_DIR) {
        return None;
    }
    let facts = statfs(path).ok()?;
    (facts.f_type == TMPFS_MAGIC).then(|| facts.f_blocks.saturating_mul(u64::try_from(facts.f_bsize).unwrap_or(4096)))
}

/// Carries the plan out; the mounts are what the agent is told.
pub(super) async fn attach(
    node: &Node,
    live: &Live,
    container_id: &str,
    plan: Plan,
) -> Result<(Vec<agent::Mount>, Vec<ImageRoot>), ContainerError> {
    let mut roots = Vec::new();
    let mut ready = Vec::with_capacity(plan.mounts.len());
    for planned in plan.mounts {
        ready.push(match planned {
            Planned::Ready(mount) => mount,
            Planned::Share { name, host_path, directory, access, mount } => {
                let source = host_path.clone();
                let cloned = blocking::on_path(&host_path, move || mounts::clone_tree(&source, access)).await;
                let failed = |why: String| ContainerError::Mount {
                    host_path: host_path.display().to_string(),
                    container_path: mount.destination.clone(),
                    why,
                };
                let tree = cloned
                    .map_err(|hung| failed(hung.to_string()))?
                    .map_err(|error| failed(crate::error_text(&error)))?;
                live.machine
                    .add_volume(&name, &tree, directory)
                    .await
                    .map_err(ContainerError::machine(container_id))?;
                mount
            }
            Planned::Image { image, sub_path, mount } => {
                let found = node.images.find(&image).ok_or(ContainerError::NoImage { image })?;
                let (extent, root) = super::create::map_image(node, live, container_id, &found.id).await?;
                roots.push(root);
                let volume = agent::ImageVolume { image: Some(extent).into(), sub_path, ..Default::default() };
                agent::Mount { source: Some(agent::mount::Source::Image(volume)), readonly: true, ..mount }
            }
        });
    }
    Ok((ready, roots))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn refused(mount: cri::Mount) -> String {
        plan("c0ffee", &[mount], &HostAccess::Refused("native can".into())).await.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn impossible_mounts_say_why() {
        let mount =
            |host: &str| cri::Mount { host_path: host.into(), container_path: "/x".into(), ..Default::default() };
        let text = refused(mount("/no/such/path")).await;
        assert!(text.contains("/no/such/path") && text.contains("does not exist"), "{text}");
        let text =
            refused(cri::Mount { propagation: cri::MountPropagation::PropagationBidirectional as i32, ..mount("/") })
                .await;
        assert!(text.contains("mount.propagation") && text.ends_with("native can"), "{text}");
        let text = refused(cri::Mount { container_path: "x".into(), ..mount("/") }).await;
        assert!(text.contains("absolute"), "{text}");
    }

    #[test]
    fn users_of_their_own_reach_neither_the_kernels_file_systems_nor_the_host() {
        let mount = |path: &str| cri::Mount { container_path: path.into(), ..Default::default() };
        for path in ["/proc/sys", "/x/../sys", "//sys/fs/bpf", "/dev/pts"] {
            assert!(check_for_users(&mount(path)).unwrap_err().contains("user namespace"), "{path}");
        }
        for path in ["/processes", "/data", "/dev/termination-log"] {
            check_for_users(&mount(path)).unwrap();
        }
        let propagation = cri::MountPropagation::PropagationBidirectional as i32;
        assert!(check_for_users(&cri::Mount { propagation, ..mount("/data") }).is_err());
    }

    #[tokio::test]
    async fn host_paths_get_a_name_in_the_share() {
        let dir = tempfile::tempdir().unwrap();
        let mount = cri::Mount {
            host_path: dir.path().display().to_string(),
            container_path: "/x".into(),
            ..Default::default()
        };
        assert_eq!(
            plan("0123456789abcdef", &[mount], &HostAccess::Refused(String::new())).await.unwrap().share_names(),
            ["0123456789ab-0"]
        );
    }
}
