//! The verbs, in the order of api.proto.

use super::Verb;
use super::Verb::{Served, Unimplemented};

/// RuntimeService.
pub(super) const RUNTIME_SERVICE: &[(&str, Verb)] = &[
    ("Version", Served("")),
    ("RunPodSandbox", Served("")),
    ("StopPodSandbox", Served("")),
    ("RemovePodSandbox", Served("")),
    ("PodSandboxStatus", Served("")),
    ("ListPodSandbox", Served("")),
    ("StreamPodSandboxes", Served("")),
    ("CreateContainer", Served("")),
    ("StartContainer", Served("")),
    ("StopContainer", Served("")),
    ("RemoveContainer", Served("")),
    ("ListContainers", Served("")),
    ("StreamContainers", Served("")),
    ("ContainerStatus", Served("")),
    ("UpdateContainerResources", Served("")),
    ("ReopenContainerLog", Served("")),
    ("ExecSync", Served("")),
    ("Exec", Served("docs/streaming.md")),
    ("Attach", Served("docs/streaming.md")),
    ("PortForward", Served("docs/streaming.md")),
    ("ContainerStats", Served("docs/stats.md")),
    ("ListContainerStats", Served("docs/stats.md")),
    ("StreamContainerStats", Served("")),
    ("PodSandboxStats", Served("docs/stats.md")),
    ("ListPodSandboxStats", Served("docs/stats.md")),
    ("StreamPodSandboxStats", Served("")),
    ("UpdateRuntimeConfig", Served("CNI configuration comes from files; the pod CIDR is noted only")),
    ("Status", Served("")),
    ("CheckpointContainer", Unimplemented),
    ("CheckpointPod", Unimplemented),
    ("RestorePod", Unimplemented),
    ("GetContainerEvents", Served("docs/stats.md")),
    ("ListMetricDescriptors", Served("docs/stats.md")),
    ("ListPodSandboxMetrics", Served("docs/stats.md")),
    ("StreamPodSandboxMetrics", Served("")),
    ("RuntimeConfig", Served("cgroup driver `cgroupfs` or `systemd`: docs/native.md")),
    ("UpdatePodSandboxResources", Served("docs/sizing.md; handler `qemu` takes no memory back")),
];

/// ImageService.
pub(super) const IMAGE_SERVICE: &[(&str, Verb)] = &[
    ("ListImages", Served("")),
    ("StreamImages", Served("")),
    ("ImageStatus", Served("")),
    ("PullImage", Served("")),
    ("RemoveImage", Served("")),
    ("ImageFsInfo", Served("docs/stats.md")),
];
