//! Fields of the requests themselves.

use super::State::{Honoured as H, Ignored as I, Refused as R};
use super::{Message, SAME_AS_RUN};

pub(super) const MESSAGES: &[Message] = &[
    ("VersionRequest", &[("version", I, I, "", "the answer is the one version that is served")]),
    (
        "RunPodSandboxRequest",
        &[
            ("config", H, H, "pod_lifecycle::a_pod_from_runp_to_rmp", ""),
            ("runtime_handler", H, H, "errors::an_unknown_handler", "empty is the default handler"),
        ],
    ),
    ("StopPodSandboxRequest", &[("pod_sandbox_id", H, H, "pod_lifecycle::stop_and_remove_may_be_repeated", "")]),
    ("RemovePodSandboxRequest", &[("pod_sandbox_id", H, H, "pod_lifecycle::stop_and_remove_may_be_repeated", "")]),
    (
        "PodSandboxStatusRequest",
        &[
            ("pod_sandbox_id", H, H, "pod_lifecycle::unknown_ids_are_not_found", ""),
            ("verbose", H, H, "stats::a_pod_counts_what_carries_it", ""),
        ],
    ),
    ("ListPodSandboxRequest", &[("filter", H, H, "pod_lifecycle::labels_and_annotations_come_back_unaltered", "")]),
    ("StreamPodSandboxesRequest", &[("filter", H, H, "stats::lists_filters_and_streams_agree", "")]),
    (
        "CreateContainerRequest",
        &[
            ("pod_sandbox_id", H, H, "errors::a_container_without_a_pod", ""),
            ("config", H, H, "pod_lifecycle::every_verb_works_on_a_container", ""),
            ("sandbox_config", I, I, "", "the sandbox keeps the configuration that it was run with"),
        ],
    ),
    ("StartContainerRequest", &[("container_id", H, H, "pod_lifecycle::every_verb_works_on_a_container", "")]),
    (
        "StopContainerRequest",
        &[
            ("container_id", H, H, "pod_lifecycle::stop_and_remove_may_be_repeated", ""),
            ("timeout", H, H, "container_environment::stop_asks_before_it_kills", ""),
        ],
    ),
    ("RemoveContainerRequest", &[("container_id", H, H, "pod_lifecycle::removing_a_running_container_ends_it", "")]),
    ("ListContainersRequest", &[("filter", H, H, "pod_lifecycle::labels_and_annotations_come_back_unaltered", "")]),
    ("StreamContainersRequest", &[("filter", H, H, "stats::lists_filters_and_streams_agree", "")]),
    (
        "ContainerStatusRequest",
        &[
            ("container_id", H, H, "pod_lifecycle::unknown_ids_are_not_found", ""),
            ("verbose", H, H, "pod_lifecycle::every_verb_works_on_a_container", ""),
        ],
    ),
    (
        "UpdateContainerResourcesRequest",
        &[
            ("container_id", H, H, "pod_lifecycle::every_verb_works_on_a_container", ""),
            ("linux", H, H, "pod_lifecycle::every_verb_works_on_a_container", "all of it or nothing"),
            ("windows", I, I, "", ""),
            ("annotations", I, I, "", ""),
        ],
    ),
    ("ReopenContainerLogRequest", &[("container_id", H, H, "pod_lifecycle::a_log_that_is_rotated_loses_nothing", "")]),
    (
        "ExecSyncRequest",
        &[
            ("container_id", H, H, "pod_lifecycle::every_verb_works_on_a_container", ""),
            ("cmd", H, H, "container_environment::exec_runs_as_the_container_does", ""),
            ("timeout", H, H, "container_environment::exec_runs_as_the_container_does", "0 is no limit"),
        ],
    ),
    (
        "ExecRequest",
        &[
            ("container_id", H, H, "streaming::exec_gives_output_and_exit_code", ""),
            ("cmd", H, H, "streaming::exec_gives_output_and_exit_code", ""),
            ("tty", H, H, "streaming::a_terminal_follows_the_clients_size", ""),
            ("stdin", H, H, "streaming::exec_input_is_half_closed", ""),
            ("stdout", H, H, "streaming::exec_gives_output_and_exit_code", ""),
            ("stderr", H, H, "streaming::exec_gives_output_and_exit_code", ""),
        ],
    ),
    (
        "AttachRequest",
        &[
            ("container_id", H, H, "streaming::attach_joins_the_containers_streams", ""),
            ("stdin", H, H, "streaming::attach_joins_the_containers_streams", ""),
            ("tty", H, H, "streaming::several_clients_attach_at_once", ""),
            ("stdout", H, H, "streaming::attach_joins_the_containers_streams", ""),
            ("stderr", H, H, "streaming::attach_joins_the_containers_streams", ""),
        ],
    ),
    (
        "PortForwardRequest",
        &[
            ("pod_sandbox_id", H, H, "streaming::ports_are_forwarded", ""),
            (
                "port",
                H,
                H,
                "streaming::what_makes_no_sense_is_refused",
                "only for WebSocket clients without a tunnel; others name ports themselves",
            ),
        ],
    ),
    ("ContainerStatsRequest", &[("container_id", H, H, "stats::a_container_has_every_figure", "")]),
    ("ListContainerStatsRequest", &[("filter", H, H, "stats::lists_filters_and_streams_agree", "")]),
    ("StreamContainerStatsRequest", &[("filter", H, H, "stats::lists_filters_and_streams_agree", "")]),
    ("PodSandboxStatsRequest", &[("pod_sandbox_id", H, H, "stats::a_pod_counts_what_carries_it", "")]),
    ("ListPodSandboxStatsRequest", &[("filter", H, H, "stats::lists_filters_and_streams_agree", "")]),
    ("StreamPodSandboxStatsRequest", &[("filter", H, H, "stats::lists_filters_and_streams_agree", "")]),
    ("UpdateRuntimeConfigRequest", &[("runtime_config", I, I, "", "")]),
    ("RuntimeConfig", &[("network_config", I, I, "", "")]),
    ("NetworkConfig", &[("pod_cidr", I, I, "", "CNI configuration comes from files")]),
    ("StatusRequest", &[("verbose", H, H, "pod_lifecycle::version_and_status_are_what_a_kubelet_needs", "")]),
    (
        "CheckpointContainerRequest",
        &[
            ("container_id", R, R, "pod_lifecycle::verbs_that_are_not_built_say_so", ""),
            ("location", R, R, "pod_lifecycle::verbs_that_are_not_built_say_so", ""),
            ("timeout", R, R, "pod_lifecycle::verbs_that_are_not_built_say_so", ""),
        ],
    ),
    (
        "CheckpointPodRequest",
        &[
            ("pod_sandbox_id", R, R, "", ""),
            ("output_path", R, R, "", ""),
            ("container_ids", R, R, "", ""),
            ("options", R, R, "", ""),
        ],
    ),
    (
        "RestorePodRequest",
        &[
            ("checkpoint_path", R, R, "", ""),
            ("config", R, R, "", ""),
            ("runtime_handler", R, R, "", ""),
            ("options", R, R, "", ""),
            ("container_configs", R, R, "", ""),
        ],
    ),
    (
        "UpdatePodSandboxResourcesRequest",
        &[
            ("pod_sandbox_id", H, H, "sizing::cpus_follow_the_pod_and_its_containers", ""),
            ("overhead", H, H, "sizing::cpus_follow_the_pod_and_its_containers", ""),
            (
                "resources",
                H,
                H,
                "sizing::cpus_follow_the_pod_and_its_containers",
                "within the machine that was made; native: the kubelet set the pod's cgroup",
            ),
        ],
    ),
    ("ListImagesRequest", &[("filter", H, H, "images::two_tags_are_one_image", "")]),
    ("StreamImagesRequest", &[("filter", H, H, "stats::lists_filters_and_streams_agree", "")]),
    (
        "ImageStatusRequest",
        &[
            ("image", H, H, "images::an_absent_image_is_no_error_to_ask_for", ""),
            ("verbose", H, H, "images::crictl_pulls_lists_inspects_and_removes", ""),
        ],
    ),
    (
        "PullImageRequest",
        &[
            ("image", H, H, "images::every_format_is_understood_and_runs", ""),
            ("auth", H, H, "images::a_password_is_needed_and_used", ""),
            ("sandbox_config", I, I, "", SAME_AS_RUN),
        ],
    ),
    ("RemoveImageRequest", &[("image", H, H, "images::two_tags_are_one_image", "")]),
    (
        "PodSandboxFilter",
        &[
            ("id", H, H, "", "a prefix"),
            ("state", H, H, "", ""),
            ("label_selector", H, H, "pod_lifecycle::labels_and_annotations_come_back_unaltered", ""),
        ],
    ),
    ("PodSandboxStateValue", &[("state", H, H, "", "")]),
    (
        "ContainerFilter",
        &[
            ("id", H, H, "", "a prefix"),
            ("state", H, H, "", ""),
            ("pod_sandbox_id", H, H, "", "a prefix"),
            ("label_selector", H, H, "pod_lifecycle::labels_and_annotations_come_back_unaltered", ""),
        ],
    ),
    ("ContainerStateValue", &[("state", H, H, "", "")]),
    (
        "ContainerStatsFilter",
        &[
            ("id", H, H, "stats::lists_filters_and_streams_agree", "a prefix"),
            ("pod_sandbox_id", H, H, "stats::lists_filters_and_streams_agree", "a prefix"),
            ("label_selector", H, H, "stats::lists_filters_and_streams_agree", ""),
        ],
    ),
    (
        "PodSandboxStatsFilter",
        &[("id", H, H, "", "a prefix"), ("label_selector", H, H, "stats::lists_filters_and_streams_agree", "")],
    ),
    ("ImageFilter", &[("image", H, H, "", "")]),
    (
        "ImageSpec",
        &[
            ("image", H, H, "images::a_digest_names_an_image_too", ""),
            ("annotations", I, I, "", ""),
            ("user_specified_image", H, H, "", "the label `image` of metrics"),
            ("runtime_handler", I, I, "", "all handlers run the same images"),
            ("image_ref", I, I, "", ""),
        ],
    ),
    (
        "AuthConfig",
        &[
            ("username", H, H, "images::a_password_is_needed_and_used", ""),
            ("password", H, H, "images::a_password_is_needed_and_used", ""),
            ("auth", H, H, "credentials::user_and_password_in_both_forms", ""),
            (
                "server_address",
                H,
                H,
                "credentials::the_server_address_is_respected",
                "empty is every registry of the pull",
            ),
            ("identity_token", H, H, "credentials::an_identity_token_is_exchanged", ""),
            ("registry_token", H, H, "host/tests/images/auth.rs::a_token_from_a_token_server", ""),
        ],
    ),
];
