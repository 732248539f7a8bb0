//! The guest as what carries a pod.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bulkhead_proto::agent::ConfigureSandboxRequest;
use rustix::fs::CWD;
use rustix::mount::{MountAttrFlags, MoveMountFlags, UnmountFlags};

use super::{cpus, drives, network};
use crate::helper::detached_mount;
use crate::sandbox::{Platform, PlatformError};

const SCRATCH: &str = "/run/scratch";

/// A virtual machine.
#[derive(Debug, Default)]
pub(super) struct Machine {
    layers: Mutex<Option<PathBuf>>,
}

fn at<E: Into<io::Error>>(step: impl Into<String>) -> impl FnOnce(E) -> PlatformError {
    move |source| PlatformError { step: step.into(), source: source.into() }
}

impl Platform for Machine {
    fn configure(&self, request: &ConfigureSandboxRequest) -> Result<(), PlatformError> {
        if !request.hostname.is_empty() {
            let step = format!("set the hostname {:?}", request.hostname);
            rustix::system::sethostname(request.hostname.as_bytes()).map_err(at(step))?;
        }
        network::configure(request)
    }

    fn image_drive(&self) -> Result<Option<String>, PlatformError> {
        let drive = drives::image().map_err(at("list the guest's drives"))?;
        Ok(drive.map(|drive| drive.number))
    }

    fn layers(&self, has_scratch_drive: bool) -> Result<PathBuf, PlatformError> {
        // Held while mounting: a second container must not go on without the drive.
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = &*layers {
            return Ok(path.clone());
        }
        fs::create_dir_all(SCRATCH).map_err(at(format!("make {SCRATCH}")))?;
        if has_scratch_drive {
            mount_scratch()?;
        }
        let path = Path::new(SCRATCH).join("layers");
        fs::create_dir_all(&path).map_err(at(format!("make {}", path.display())))?;
        Ok(layers.insert(path).clone())
    }

    fn shares_host(&self) -> bool {
        false
    }

    fn set_cpus(&self, online: u32) -> Result<u32, PlatformError> {
        cpus::set_online(Path::new(cpus::DEVICES), online).map_err(at(format!("have {online} CPUs online")))
    }

    fn shut_down(&self) {
        if self.layers.lock().unwrap_or_else(PoisonError::into_inner).take().is_some() {
            rustix::fs::sync();
            // Without a scratch drive there is no mount to undo.
            let _ = rustix::mount::unmount(SCRATCH, UnmountFlags::DETACH);
        }
    }
}

/// The drive lives as long as the pod, so it is mounted for speed, not for surviving a crash.
fn mount_scratch() -> Result<(), PlatformError> {
    let drive = drives::scratch().map_err(at("list the guest's drives"))?;
    let missing = || io::Error::new(io::ErrorKind::NotFound, "the guest has no writable drive");
    let drive = drive.ok_or_else(missing).map_err(at("find the scratch drive"))?;
    let source = format!("/dev/{}", drive.name);
    let options = [("source", source.as_str()), ("noinit_itable", ""), ("nobarrier", "")];
    let attributes = MountAttrFlags::MOUNT_ATTR_NOATIME;
    detached_mount("ext4", &options, attributes)
        .and_then(|tree| rustix::mount::move_mount(&tree, "", CWD, SCRATCH, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH))
        .map_err(at(format!("mount the scratch drive {source} as ext4")))
}
