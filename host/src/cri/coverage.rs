//! Which verbs of CRI v1 are served; docs/cri-coverage.md is made from this table.

use std::fmt::Write as _;

/// How far a verb is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coverage {
    /// Served; the note says what is left out.
    Served(&'static str),
    /// Answers `Unimplemented`.
    Unimplemented,
}

use Coverage::{Served, Unimplemented};

/// Every verb of api.proto, in its order.
pub const RUNTIME_SERVICE: &[(&str, Coverage)] = &[
    ("Version", Served("")),
    ("RunPodSandbox", Served("refuses host namespaces and user namespaces by field name")),
    ("StopPodSandbox", Served("")),
    ("RemovePodSandbox", Served("")),
    ("PodSandboxStatus", Served("")),
    ("ListPodSandbox", Served("")),
    ("StreamPodSandboxes", Unimplemented),
    (
        "CreateContainer",
        Served(
            "refuses host devices, Localhost seccomp and AppArmor profiles, SELinux labels, id-mapped and bidirectional mounts; the guest applies no seccomp filter yet",
        ),
    ),
    ("StartContainer", Served("")),
    ("StopContainer", Served("")),
    ("RemoveContainer", Served("")),
    ("ListContainers", Served("")),
    ("StreamContainers", Unimplemented),
    ("ContainerStatus", Served("without the user")),
    ("UpdateContainerResources", Served("")),
    ("ReopenContainerLog", Served("")),
    ("ExecSync", Served("")),
    ("Exec", Unimplemented),
    ("Attach", Unimplemented),
    ("PortForward", Unimplemented),
    ("ContainerStats", Served("without PSI and IO")),
    ("ListContainerStats", Served("without PSI and IO")),
    ("StreamContainerStats", Unimplemented),
    ("PodSandboxStats", Served("without PSI and IO; the guest's view")),
    ("ListPodSandboxStats", Served("without PSI and IO; the guest's view")),
    ("StreamPodSandboxStats", Unimplemented),
    ("UpdateRuntimeConfig", Served("CNI configuration comes from files; the pod CIDR is noted only")),
    ("Status", Served("")),
    ("CheckpointContainer", Unimplemented),
    ("CheckpointPod", Unimplemented),
    ("RestorePod", Unimplemented),
    ("GetContainerEvents", Unimplemented),
    ("ListMetricDescriptors", Unimplemented),
    ("ListPodSandboxMetrics", Unimplemented),
    ("StreamPodSandboxMetrics", Unimplemented),
    ("RuntimeConfig", Served("cgroup driver cgroupfs")),
    ("UpdatePodSandboxResources", Unimplemented),
];

/// Every verb of the image service.
pub const IMAGE_SERVICE: &[(&str, Coverage)] = &[
    ("ListImages", Served("")),
    ("StreamImages", Served("")),
    ("ImageStatus", Served("")),
    ("PullImage", Served("identity tokens are refused")),
    ("RemoveImage", Served("")),
    ("ImageFsInfo", Served("")),
];

/// The page docs/cri-coverage.md.
#[must_use]
pub fn page() -> String {
    let mut page = String::from(
        "# CRI coverage\n\nMade from `host/src/cri/coverage.rs` by `BULKHEAD_REGENERATE=1 cargo test -p bulkhead coverage`.\n",
    );
    for (service, verbs) in [("RuntimeService", RUNTIME_SERVICE), ("ImageService", IMAGE_SERVICE)] {
        let served = verbs.iter().filter(|(_, coverage)| *coverage != Unimplemented).count();
        let _ = write!(
            page,
            "\n## {service}: {served} of {}\n\n| verb | | what is left out |\n|---|---|---|\n",
            verbs.len()
        );
        for (verb, coverage) in verbs {
            let (state, note) = match coverage {
                Served(note) => ("served", *note),
                Unimplemented => ("answers `Unimplemented`", ""),
            };
            let _ = writeln!(page, "| {verb} | {state} | {note} |");
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn verbs_of(service: &str) -> Vec<String> {
        let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/protos/cri.proto");
        let text = std::fs::read_to_string(proto).unwrap();
        let body = text.split(&format!("service {service} {{")).nth(1).unwrap().split("\n}").next().unwrap();
        let names = body.lines().filter_map(|line| line.trim().strip_prefix("rpc "));
        names.map(|rest| rest.split('(').next().unwrap().trim().to_owned()).collect()
    }

    #[test]
    fn every_verb_of_the_protocol_stands_in_the_table() {
        for (service, table) in [("RuntimeService", RUNTIME_SERVICE), ("ImageService", IMAGE_SERVICE)] {
            let mut ours: Vec<_> = table.iter().map(|(verb, _)| (*verb).to_owned()).collect();
            let mut theirs = verbs_of(service);
            ours.sort();
            theirs.sort();
            assert_eq!(ours, theirs);
        }
    }

    /// The dispatching files say `not_built("Verb")` for exactly the verbs that the table calls unimplemented.
    #[test]
    fn the_table_says_what_the_code_does() {
        let code = [include_str!("runtime/mod.rs"), include_str!("image/mod.rs")].concat();
        for (verb, coverage) in RUNTIME_SERVICE.iter().chain(IMAGE_SERVICE) {
            let refused = code.contains(&format!("not_built(\"{verb}\")"));
            assert_eq!(refused, *coverage == Unimplemented, "{verb}");
        }
    }

    #[test]
    fn the_page_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cri-coverage.md");
        if std::env::var_os("BULKHEAD_REGENERATE").is_some() {
            std::fs::write(&path, page()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), page());
    }
}
