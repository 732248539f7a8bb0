//! Fields of a pod sandbox's configuration.

use super::Message;
use super::State::{Honoured as H, Ignored as I, Refused as R};

const NO_PROCESS: &str = "a sandbox has no process of the pod's own";

pub(super) const MESSAGES: &[Message] = &[
    (
        "PodSandboxConfig",
        &[
            ("metadata", H, H, "errors::a_pod_without_a_name", ""),
            ("hostname", H, H, "container_environment::hostname_hosts_and_resolver_are_the_pods", ""),
            ("log_directory", H, H, "pod_lifecycle::every_verb_works_on_a_container", ""),
            ("dns_config", H, H, "container_environment::hostname_hosts_and_resolver_are_the_pods", ""),
            ("port_mappings", H, H, "host_ports::tcp_leads_to_the_pod_from_everywhere", "mapped by nftables"),
            ("labels", H, H, "pod_lifecycle::labels_and_annotations_come_back_unaltered", ""),
            (
                "annotations",
                H,
                H,
                "errors::an_annotation_that_is_not_allowed",
                "those that a handler allows change its options",
            ),
            ("linux", H, H, "", ""),
            ("windows", I, I, "", ""),
        ],
    ),
    (
        "PodSandboxMetadata",
        &[
            ("name", H, H, "errors::a_pod_without_a_name", ""),
            ("uid", H, H, "pod_lifecycle::a_retried_run_joins_the_first", ""),
            ("namespace", H, H, "pod_lifecycle::a_retried_run_joins_the_first", ""),
            ("attempt", H, H, "pod_lifecycle::a_retried_run_joins_the_first", ""),
        ],
    ),
    (
        "DNSConfig",
        &[
            ("servers", H, H, "container_environment::hostname_hosts_and_resolver_are_the_pods", ""),
            ("searches", H, H, "container_environment::hostname_hosts_and_resolver_are_the_pods", ""),
            ("options", H, H, "container_environment::hostname_hosts_and_resolver_are_the_pods", ""),
        ],
    ),
    (
        "PortMapping",
        &[
            ("protocol", H, H, "host_ports::udp_leads_to_the_pod", ""),
            ("container_port", H, H, "host_ports::tcp_leads_to_the_pod_from_everywhere", ""),
            ("host_port", H, H, "host_ports::the_port_is_held_while_the_pod_lives", "0 is none"),
            ("host_ip", H, H, "host_ports::two_pods_share_a_port_on_two_addresses", ""),
        ],
    ),
    (
        "LinuxPodSandboxConfig",
        &[
            ("cgroup_parent", H, H, "errors::a_vm_that_dies_while_it_runs", ""),
            ("security_context", H, H, "errors::a_namespace_of_the_host", ""),
            (
                "sysctls",
                H,
                H,
                "host/src/sandbox/validate.rs::only_namespaced_sysctls_reach_the_hosts_kernel",
                "in a VM of the guest; native: those of the pod's own namespaces",
            ),
            ("overhead", H, H, "sizing::limits_make_the_machine", "sizes the machine"),
            ("resources", H, H, "sizing::limits_make_the_machine", "sizes the machine"),
        ],
    ),
    (
        "LinuxSandboxSecurityContext",
        &[
            ("namespace_options", H, H, "errors::a_namespace_of_the_host", ""),
            ("selinux_options", I, I, "", NO_PROCESS),
            ("run_as_user", I, I, "", NO_PROCESS),
            ("run_as_group", I, I, "", NO_PROCESS),
            ("readonly_rootfs", I, I, "", NO_PROCESS),
            ("supplemental_groups", I, I, "", NO_PROCESS),
            ("supplemental_groups_policy", I, I, "", NO_PROCESS),
            ("privileged", I, I, "", "a container's own field decides"),
            ("seccomp", I, I, "", NO_PROCESS),
            ("apparmor", I, I, "", NO_PROCESS),
            ("seccomp_profile_path", I, I, "", NO_PROCESS),
        ],
    ),
    (
        "NamespaceOption",
        &[
            ("network", H, H, "errors::a_namespace_of_the_host", "a VM cannot give NODE and refuses it"),
            (
                "pid",
                H,
                H,
                "container_environment::processes_see_only_their_container",
                "NODE is refused by handlers that run VMs",
            ),
            (
                "ipc",
                H,
                H,
                "host/src/sandbox/validate.rs::a_vm_refuses_what_is_the_hosts_and_names_who_can",
                "a VM cannot give NODE and refuses it",
            ),
            ("target_id", H, H, "", ""),
            (
                "userns_options",
                R,
                H,
                "user_namespaces::ids_of_the_container_are_others_of_the_host",
                "POD with mappings, in no pod with a namespace of the host; docs/native.md",
            ),
        ],
    ),
    (
        "UserNamespace",
        &[
            ("mode", R, H, "host/src/sandbox/user_namespace.rs::a_mapping_is_one_range_from_the_containers_root", ""),
            ("uids", R, H, "user_namespaces::ids_of_the_container_are_others_of_the_host", "one mapping"),
            ("gids", R, H, "user_namespaces::ids_of_the_container_are_others_of_the_host", "one mapping"),
        ],
    ),
    (
        "IDMapping",
        &[
            ("host_id", R, H, "user_namespaces::two_pods_have_nothing_in_common", "not 0"),
            (
                "container_id",
                R,
                H,
                "host/src/sandbox/user_namespace.rs::a_mapping_is_one_range_from_the_containers_root",
                "0",
            ),
            ("length", R, H, "user_namespaces::ids_that_the_pod_lacks_are_told", ""),
        ],
    ),
    ("WindowsPodSandboxConfig", &[("security_context", I, I, "", "")]),
    (
        "WindowsSandboxSecurityContext",
        &[
            ("run_as_username", I, I, "", ""),
            ("credential_spec", I, I, "", ""),
            ("host_process", I, I, "", ""),
            ("namespace_options", I, I, "", ""),
        ],
    ),
    ("WindowsNamespaceOption", &[("network", I, I, "", "")]),
];
