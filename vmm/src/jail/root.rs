//! An empty root: no path leads anywhere.

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::plan::{JailError, step};

/// Room for the root directory and nothing else.
const NOTHING: &str = "mode=0555,size=4k,nr_inodes=1";

/// Leaves all mounts behind. Needs a mount namespace of the process's own.
pub(super) fn enter() -> Result<(), JailError> {
    let safe = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // Any directory will do: nobody else sees what is mounted there.
    step("mount an empty root", mount(Some("empty"), "/proc", Some("tmpfs"), safe, Some(NOTHING)))?;
    step("enter the empty root", rustix::process::chdir("/proc"))?;
    step("make the empty directory the root", rustix::process::pivot_root(".", "."))?;
    // Both are at "." now, the old root on top.
    step("leave the old root", umount2(".", MntFlags::MNT_DETACH))?;
    step("enter the new root", rustix::process::chdir("/"))
}
