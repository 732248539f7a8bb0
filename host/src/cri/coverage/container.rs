//! Fields of a container's configuration.

use super::Message;
use super::State::{Honoured as H, Ignored as I, Refused as R};

pub(super) const MESSAGES: &[Message] = &[
    (
        "ContainerConfig",
        &[
            ("metadata", H, H, "pod_lifecycle::every_verb_works_on_a_container", ""),
            ("image", H, H, "errors::an_image_that_was_not_pulled", ""),
            ("command", H, H, "container_environment::the_pod_can_say_otherwise", ""),
            ("args", H, H, "container_environment::the_pod_can_say_otherwise", ""),
            ("working_dir", H, H, "container_environment::the_pod_can_say_otherwise", ""),
            ("envs", H, H, "container_environment::the_pod_can_say_otherwise", ""),
            ("mounts", H, H, "volumes::a_directory_is_shared_both_ways", ""),
            ("devices", R, H, "errors::what_is_the_hosts_in_a_container", ""),
            ("labels", H, H, "pod_lifecycle::labels_and_annotations_come_back_unaltered", ""),
            ("annotations", H, H, "pod_lifecycle::labels_and_annotations_come_back_unaltered", ""),
            ("log_path", H, H, "pod_lifecycle::every_verb_works_on_a_container", ""),
            ("stdin", H, H, "streaming::attach_joins_the_containers_streams", ""),
            ("stdin_once", H, H, "streaming::stdin_once_ends_with_its_client", ""),
            ("tty", H, H, "container_environment::a_terminal_is_one", ""),
            ("linux", H, H, "container_environment::limits_are_seen_in_the_cgroup", ""),
            ("windows", I, I, "", ""),
            ("CDI_devices", R, R, "", ""),
            ("stop_signal", H, H, "container_environment::stop_asks_before_it_kills", ""),
        ],
    ),
    (
        "ContainerMetadata",
        &[
            ("name", H, H, "pod_lifecycle::every_verb_works_on_a_container", ""),
            ("attempt", H, H, "", "two containers of a pod never share name and attempt"),
        ],
    ),
    (
        "KeyValue",
        &[
            ("key", H, H, "container_environment::the_pod_can_say_otherwise", ""),
            ("value", H, H, "container_environment::the_pod_can_say_otherwise", "any bytes"),
        ],
    ),
    (
        "Mount",
        &[
            ("container_path", H, H, "volumes::a_directory_is_shared_both_ways", ""),
            ("host_path", H, H, "volumes::a_missing_host_path_is_told", ""),
            ("readonly", H, H, "volumes::a_read_only_volume_cannot_be_written", ""),
            ("selinux_relabel", I, I, "", "the guest's kernel has no SELinux"),
            (
                "propagation",
                H,
                H,
                "errors::what_is_the_hosts_in_a_container",
                "a VM cannot give BIDIRECTIONAL and refuses it",
            ),
            ("uidMappings", R, R, "", ""),
            ("gidMappings", R, R, "", ""),
            ("recursive_read_only", H, H, "", ""),
            ("image", H, H, "", ""),
            ("image_sub_path", H, H, "", ""),
            ("mount_options", I, I, "", ""),
        ],
    ),
    ("Device", &[("container_path", R, H, "", ""), ("host_path", R, H, "", ""), ("permissions", R, H, "", "")]),
    ("CDIDevice", &[("name", R, R, "", "")]),
    (
        "LinuxContainerConfig",
        &[
            ("resources", H, H, "container_environment::limits_are_seen_in_the_cgroup", ""),
            ("security_context", H, H, "container_environment::users_of_the_pod_win", ""),
        ],
    ),
    (
        "LinuxContainerResources",
        &[
            ("cpu_period", H, H, "container_environment::limits_are_seen_in_the_cgroup", ""),
            ("cpu_quota", H, H, "container_environment::limits_are_seen_in_the_cgroup", ""),
            ("cpu_shares", H, H, "container_environment::limits_are_seen_in_the_cgroup", "as `cpu.weight`"),
            ("memory_limit_in_bytes", H, H, "stats::a_container_over_its_limit_is_oom_killed_alone", ""),
            ("oom_score_adj", H, H, "container_environment::an_update_changes_the_oom_score", ""),
            ("cpuset_cpus", H, H, "", "the guest's CPUs in a VM"),
            ("cpuset_mems", H, H, "", "the guest's nodes in a VM"),
            (
                "hugepage_limits",
                H,
                H,
                "container_environment::huge_pages_are_limited",
                "native: where the host has the `hugetlb` controller",
            ),
            ("unified", H, H, "stats::a_killed_container_is_not_oom_killed", ""),
            ("memory_swap_limit_in_bytes", H, H, "agent/src/container/limits.rs::limits_become_files", ""),
        ],
    ),
    ("HugepageLimit", &[("page_size", H, H, "", "2MB, 1GB"), ("limit", H, H, "", "bytes")]),
    (
        "LinuxContainerSecurityContext",
        &[
            ("capabilities", H, H, "container_environment::capabilities_are_the_usual_ones_unless_changed", ""),
            ("privileged", H, H, "", "of the guest in a VM"),
            ("namespace_options", H, H, "container_environment::processes_see_only_their_container", ""),
            (
                "selinux_options",
                R,
                R,
                "host/src/container/security.rs::what_no_kernel_gives_is_refused",
                "no pod's kernel has SELinux",
            ),
            ("run_as_user", H, H, "container_environment::users_of_the_pod_win", ""),
            ("run_as_group", H, H, "container_environment::users_of_the_pod_win", ""),
            ("run_as_username", H, H, "container_environment::users_of_the_pod_win", ""),
            ("readonly_rootfs", H, H, "container_environment::a_read_only_root_cannot_be_written", ""),
            ("supplemental_groups", H, H, "container_environment::groups_are_merged_or_strict", ""),
            ("supplemental_groups_policy", H, H, "container_environment::groups_are_merged_or_strict", ""),
            ("no_new_privs", H, H, "container_environment::no_new_privileges_is_set", ""),
            ("masked_paths", H, H, "container_environment::kernel_files_are_masked", ""),
            ("readonly_paths", H, H, "container_environment::kernel_files_are_masked", ""),
            ("seccomp", H, H, "seccomp::the_default_profile_refuses_what_is_dangerous", "docs/seccomp.md"),
            (
                "apparmor",
                I,
                I,
                "host/src/container/security.rs::what_no_kernel_gives_is_refused",
                "Localhost is refused",
            ),
            ("apparmor_profile", I, I, "", ""),
            ("seccomp_profile_path", H, H, "", "where `seccomp` is unset"),
        ],
    ),
    (
        "Capability",
        &[
            ("add_capabilities", H, H, "container_environment::capabilities_are_the_usual_ones_unless_changed", ""),
            ("drop_capabilities", H, H, "container_environment::capabilities_are_the_usual_ones_unless_changed", ""),
            ("add_ambient_capabilities", H, H, "", ""),
        ],
    ),
    (
        "SELinuxOption",
        &[
            ("user", R, R, "", ""),
            ("role", R, R, "", ""),
            ("type", R, R, "host/src/container/security.rs::what_no_kernel_gives_is_refused", ""),
            ("level", R, R, "", ""),
        ],
    ),
    (
        "SecurityProfile",
        &[
            (
                "profile_type",
                H,
                H,
                "seccomp::without_a_profile_nothing_is_filtered",
                "of seccomp; AppArmor takes no Localhost",
            ),
            ("localhost_ref", H, H, "seccomp::every_action_is_taken", "of seccomp"),
        ],
    ),
    ("Int64Value", &[("value", H, H, "container_environment::users_of_the_pod_win", "")]),
    ("WindowsContainerConfig", &[("resources", I, I, "", ""), ("security_context", I, I, "", "")]),
    (
        "WindowsContainerResources",
        &[
            ("cpu_shares", I, I, "", ""),
            ("cpu_count", I, I, "", ""),
            ("cpu_maximum", I, I, "", ""),
            ("memory_limit_in_bytes", I, I, "", ""),
            ("rootfs_size_in_bytes", I, I, "", ""),
            ("affinity_cpus", I, I, "", ""),
        ],
    ),
    ("WindowsCpuGroupAffinity", &[("cpu_mask", I, I, "", ""), ("cpu_group", I, I, "", "")]),
    (
        "WindowsContainerSecurityContext",
        &[("run_as_username", I, I, "", ""), ("credential_spec", I, I, "", ""), ("host_process", I, I, "", "")],
    ),
];
