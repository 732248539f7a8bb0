//! Records as the CRI shows them.

use std::collections::HashMap;

use bulkhead_proto::cri;

use crate::container::record::Identity;
use crate::container::{ContainerRecord, ContainerState};
use crate::sandbox::{SandboxRecord, SandboxState};

pub(super) fn sandbox_state(state: SandboxState) -> i32 {
    match state {
        SandboxState::Ready => cri::PodSandboxState::SandboxReady as i32,
        _ => cri::PodSandboxState::SandboxNotready as i32,
    }
}

pub(super) fn sandbox(record: &SandboxRecord) -> cri::PodSandbox {
    cri::PodSandbox {
        id: record.id.clone(),
        metadata: Some(record.metadata()),
        state: sandbox_state(record.state),
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
    }
}

pub(super) fn sandbox_status(record: &SandboxRecord) -> cri::PodSandboxStatus {
    let network = record.network.as_ref().filter(|_| record.state == SandboxState::Ready);
    let options = record
        .config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|context| context.namespace_options.clone())
        .unwrap_or_default();
    cri::PodSandboxStatus {
        id: record.id.clone(),
        metadata: Some(record.metadata()),
        state: sandbox_state(record.state),
        created_at: record.created_at,
        network: Some(cri::PodSandboxNetworkStatus {
            ip: network.and_then(|n| n.primary_ip()).unwrap_or_default(),
            additional_ips: network
                .map(|n| n.additional_ips().iter().map(|ip| cri::PodIp { ip: ip.clone() }).collect())
                .unwrap_or_default(),
        }),
        linux: Some(cri::LinuxPodSandboxStatus { namespaces: Some(cri::Namespace { options: Some(options) }) }),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
    }
}

/// `crictl inspectp` shows this.
pub(super) fn sandbox_info(record: &SandboxRecord) -> HashMap<String, String> {
    let info = serde_json::json!({
        "state": format!("{:?}", record.state),
        "end": record.end,
        "network": record.network,
        "netns": record.netns(),
        "runtimeHandler": record.runtime_handler,
        "handler": record.handler,
    });
    HashMap::from([("info".to_owned(), info.to_string())])
}

pub(super) fn is_visible(record: &ContainerRecord) -> bool {
    !matches!(record.state, ContainerState::Creating | ContainerState::Removing)
}

fn container_state(state: &ContainerState) -> i32 {
    let state = match state {
        ContainerState::Creating | ContainerState::Created => cri::ContainerState::ContainerCreated,
        ContainerState::Running { .. } => cri::ContainerState::ContainerRunning,
        ContainerState::Exited { .. } | ContainerState::Removing => cri::ContainerState::ContainerExited,
    };
    state as i32
}

pub(super) fn container(record: &ContainerRecord) -> cri::Container {
    cri::Container {
        id: record.id.clone(),
        pod_sandbox_id: record.sandbox_id.clone(),
        metadata: Some(record.metadata()),
        image: record.config.image.clone(),
        image_ref: record.image_id.to_string(),
        state: container_state(&record.state),
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        image_id: record.image_id.to_string(),
    }
}

pub(super) fn container_status(record: &ContainerRecord) -> cri::ContainerStatus {
    let config = &record.config;
    let mut status = cri::ContainerStatus {
        id: record.id.clone(),
        metadata: Some(record.metadata()),
        state: container_state(&record.state),
        created_at: record.created_at,
        image: config.image.clone(),
        image_ref: record.image_ref.clone(),
        image_id: record.image_id.to_string(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        mounts: config.mounts.clone(),
        log_path: record.log_path.clone(),
        resources: Some(cri::ContainerResources {
            linux: config.linux.clone().and_then(|linux| linux.resources),
            ..Default::default()
        }),
        user: record.identity.as_ref().map(user),
        stop_signal: config.stop_signal,
        ..Default::default()
    };
    match &record.state {
        ContainerState::Running { started_at } => status.started_at = *started_at,
        ContainerState::Exited { started_at, exit } => {
            status.started_at = *started_at;
            status.finished_at = exit.finished_at;
            status.exit_code = exit.code;
            status.reason.clone_from(&exit.reason);
            status.message.clone_from(&exit.message);
        }
        ContainerState::Creating | ContainerState::Created | ContainerState::Removing => {}
    }
    status
}

fn user(identity: &Identity) -> cri::ContainerUser {
    let linux = cri::LinuxContainerUser {
        uid: identity.uid.into(),
        gid: identity.gid.into(),
        supplemental_groups: identity.groups.iter().map(|group| i64::from(*group)).collect(),
    };
    cri::ContainerUser { linux: Some(linux) }
}

/// `crictl inspect` shows this.
pub(super) fn container_info(record: &ContainerRecord) -> HashMap<String, String> {
    let info = serde_json::json!({
        "sandboxID": record.sandbox_id,
        "state": record.state.name(),
        "volumes": record.volumes,
    });
    HashMap::from([("info".to_owned(), info.to_string())])
}

/// Every pair of the selector stands among the labels.
pub(super) fn selected(labels: &HashMap<String, String>, selector: &HashMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}
