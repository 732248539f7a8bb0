//! What the host's kernel must give: namespaces, taps and their cross-connection, cgroups, nftables.

use std::path::{Path, PathBuf};

use super::{Finding, Level};
use crate::error_text;
use crate::network::link;
use crate::sys::cgroup::Hierarchy;
use crate::sys::host::find_program;
use crate::sys::{netns, tap, userns};

/// Controllers that pods' limits need.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

pub(super) async fn findings() -> Vec<Finding> {
    let mut findings = network_devices().await;
    findings.push(match userns::probe() {
        Ok(()) => Finding::ok("user namespaces", "pods on this host's kernel can have users of their own"),
        Err(error) => {
            let to_do = "pods with hostUsers: false are refused on this node";
            Finding::lacking("user namespaces", Level::Warning, error_text(&error), to_do)
        }
    });
    findings.push(cgroup(Hierarchy::discover().map_err(|e| error_text(&e))));
    findings.push(match find_program(Path::new("nft")) {
        Some(path) => Finding::ok("nftables", path.display().to_string()),
        None => Finding::lacking(
            "nftables",
            Level::Warning,
            "no nft in PATH; pods get no host ports",
            "apt-get install nftables",
        ),
    });
    findings
}

// Makes what a pod gets, in a namespace that is removed again.
async fn network_devices() -> Vec<Finding> {
    let path = PathBuf::from(format!("/run/bulkhead/check-{}", std::process::id()));
    let to_do_root = "run it as root";
    if let Err(error) = netns::create(&path) {
        return vec![Finding::lacking("network namespace", Level::Missing, error_text(&error), to_do_root)];
    }
    let mut findings = vec![Finding::ok("network namespace", "can be created")];
    match (tap::create(&path, "check0", 1), tap::create(&path, "check1", 1)) {
        (Ok(_first), Ok(_second)) => {
            findings.push(Finding::ok("tap", format!("{} opens; a tap can be created", tap::TUN_DEVICE)));
            let pair = vec![("check0".to_owned(), "check1".to_owned())];
            findings.push(match link::cross_connect(&path, pair).await {
                Ok(_) => Finding::ok("tc redirect", "ingress, u32 and mirred work"),
                Err(error) => {
                    let to_do = "load sch_ingress, cls_u32 and act_mirred (modprobe), or use a kernel that has them";
                    Finding::lacking("tc redirect", Level::Missing, error_text(&error), to_do)
                }
            });
        }
        (Err(error), _) | (_, Err(error)) => {
            findings.push(Finding::lacking("tap", Level::Missing, error_text(&error), "load tun (modprobe tun)"));
        }
    }
    if let Err(error) = netns::remove(&path) {
        findings.push(Finding::lacking(
            "network namespace",
            Level::Warning,
            error_text(&error),
            "unmount and delete it",
        ));
    }
    findings
}

fn cgroup(found: Result<Hierarchy, String>) -> Finding {
    let hierarchy = match found {
        Ok(hierarchy) => hierarchy,
        Err(why) => {
            let to_do = "mount -t cgroup2 none /sys/fs/cgroup, or boot with systemd.unified_cgroup_hierarchy=1";
            return Finding::lacking(
                "cgroup v2",
                Level::Warning,
                format!("{why}; pods are neither limited nor accounted"),
                to_do,
            );
        }
    };
    let layout = if hierarchy.hybrid { "hybrid" } else { "unified" };
    let controllers =
        if hierarchy.controllers.is_empty() { "no controllers".to_owned() } else { hierarchy.controllers.join(" ") };
    let text = format!("{} ({layout}; {controllers})", hierarchy.root.display());
    let lacking: Vec<&str> =
        CONTROLLERS.into_iter().filter(|name| !hierarchy.controllers.iter().any(|have| have == name)).collect();
    if lacking.is_empty() {
        return Finding::ok("cgroup v2", text);
    }
    let found = format!("{text}; without {} pods are not limited by the host", lacking.join(", "));
    let to_do = "boot with cgroup_no_v1=all and systemd.unified_cgroup_hierarchy=1";
    Finding::lacking("cgroup v2", Level::Warning, found, to_do)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hierarchy(controllers: &[&str], hybrid: bool) -> Finding {
        let controllers = controllers.iter().map(|&name| name.to_owned()).collect();
        cgroup(Ok(Hierarchy { root: "/sys/fs/cgroup".into(), controllers, hybrid }))
    }

    #[test]
    fn controllers_decide() {
        assert_eq!(hierarchy(&["cpuset", "cpu", "memory", "pids"], false).level, Level::Ok);
        let hybrid = hierarchy(&["cpu"], true);
        assert_eq!(hybrid.level, Level::Warning);
        assert_eq!(hybrid.found, "/sys/fs/cgroup (hybrid; cpu); without memory, pids pods are not limited by the host");
        assert!(cgroup(Err("no mount".into())).found.starts_with("no mount; pods are neither"));
    }
}
