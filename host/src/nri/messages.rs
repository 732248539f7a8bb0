//! Pods and containers as plugins see them, filled as the reference's runtimes do.

use bulkhead_proto::{agent, cri, nri};
use protobuf::{Message, MessageField};

use super::resources;
use crate::container::{ContainerRecord, ContainerState};
use crate::sandbox::SandboxRecord;

fn some<M>(message: M) -> MessageField<M> {
    MessageField::some(message)
}

/// A pod. Its `pid` stays 0: a pod of ours has no pause process.
pub(crate) fn pod(record: &SandboxRecord) -> nri::PodSandbox {
    let metadata = record.metadata();
    let asked = record.config.linux.clone().unwrap_or_default();
    let namespaces = network_namespace(record).into_iter().collect();
    let limits = |asked: &Option<cri::LinuxContainerResources>| asked.as_ref().map(resources::to_nri).into();
    let linux = nri::LinuxPodSandbox {
        pod_overhead: limits(&asked.overhead),
        pod_resources: limits(&asked.resources),
        cgroup_parent: asked.cgroup_parent,
        cgroups_path: format!("/{}", record.cgroup().display()),
        namespaces,
        ..Default::default()
    };
    nri::PodSandbox {
        id: record.id.clone(),
        name: metadata.name,
        uid: metadata.uid,
        namespace: metadata.namespace,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
        linux: some(linux),
        ips: record.network.as_ref().map(|network| network.ips.clone()).unwrap_or_default(),
        ..Default::default()
    }
}

fn network_namespace(record: &SandboxRecord) -> Option<nri::LinuxNamespace> {
    let path = record.netns();
    (!record.shares_network()).then(|| namespace("network", path.display().to_string()))
}

fn namespace(kind: &str, path: String) -> nri::LinuxNamespace {
    nri::LinuxNamespace { type_: kind.to_owned(), path, ..Default::default() }
}

/// What a container is going to be: as the kubelet asked for it, with the image's part, before any plugin changed it.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    pub(crate) id: &'a str,
    pub(crate) config: &'a cri::ContainerConfig,
    pub(crate) process: &'a agent::Process,
    pub(crate) devices: &'a [agent::Device],
    /// `sha256:...` of the image's configuration.
    pub(crate) image_id: &'a str,
    /// A repository digest of the image, or its id.
    pub(crate) image_ref: &'a str,
}

/// The container of a draft.
pub(crate) fn draft(draft: &Draft<'_>, sandbox: &SandboxRecord) -> nri::Container {
    let Draft { id, config, process, devices, image_id, image_ref } = draft;
    let linux = config.linux.clone().unwrap_or_default();
    let context = linux.security_context.unwrap_or_default();
    let limits = linux.resources.unwrap_or_default();
    let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
    let user = process.user.as_ref().and_then(|user| {
        Some(nri::User {
            uid: u32::try_from(user.uid?).ok()?,
            gid: user.gid.and_then(|gid| u32::try_from(gid).ok()).unwrap_or(0),
            additional_gids: user.supplemental_groups.clone(),
            ..Default::default()
        })
    });
    let mut namespaces = vec![namespace("mount", String::new()), namespace("ipc", String::new())];
    namespaces.push(namespace("uts", String::new()));
    if context.namespace_options.as_ref().is_none_or(|options| options.pid != cri::NamespaceMode::Node as i32) {
        namespaces.push(namespace("pid", String::new()));
    }
    namespaces.extend(network_namespace(sandbox));
    let asked = nri::LinuxContainer {
        namespaces,
        devices: devices.iter().map(device).collect(),
        oom_score_adj: process.oom_score_adj.map(optional_int).into(),
        cgroups_path: format!("/{}/{id}", sandbox.cgroup().display()),
        seccomp_profile: context.seccomp.as_ref().map(profile).into(),
        resources: some(resources::to_nri(&limits)),
        ..Default::default()
    };
    let image = config.image.clone().unwrap_or_default();
    nri::Container {
        id: (*id).to_owned(),
        pod_sandbox_id: sandbox.id.clone(),
        name: config.metadata.clone().unwrap_or_default().name,
        state: nri::ContainerState::CONTAINER_UNKNOWN.into(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        args: process.args.iter().map(text).collect(),
        env: process.env.iter().map(text).collect(),
        mounts: config.mounts.iter().map(mount).collect(),
        hooks: some(nri::Hooks::default()),
        linux: some(asked),
        rlimits: process.rlimits.iter().map(rlimit).collect(),
        user: user.into(),
        image: some(nri::Image {
            name: if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image },
            digest: image_ref.rsplit('@').next().filter(|digest| digest.contains(':')).unwrap_or_default().to_owned(),
            config_digest: (*image_id).to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn optional_int(value: i32) -> nri::OptionalInt {
    nri::OptionalInt { value: value.into(), ..Default::default() }
}

/// A container as it stands: what it was made as, with state, limits and times of now.
pub(crate) fn container(record: &ContainerRecord, sandbox: &SandboxRecord) -> nri::Container {
    let mut container = match nri::Container::parse_from_bytes(&record.nri) {
        Ok(made) if !record.nri.is_empty() => made,
        _ => {
            let process = agent::Process::parse_from_bytes(&record.process).unwrap_or_default();
            let image_id = record.image_id.to_string();
            let made_of = Draft {
                id: &record.id,
                config: &record.config,
                process: &process,
                devices: &[],
                image_id: &image_id,
                image_ref: &record.image_ref,
            };
            draft(&made_of, sandbox)
        }
    };
    if let Some(limits) = record.config.linux.as_ref().and_then(|linux| linux.resources.as_ref()) {
        container.linux.mut_or_insert_default().resources = some(resources::to_nri(limits));
    }
    container.pid = if sandbox.shares_host() { record.pid } else { 0 };
    container.created_at = record.created_at;
    let (state, started_at) = match &record.state {
        ContainerState::Creating | ContainerState::Removing => (nri::ContainerState::CONTAINER_UNKNOWN, 0),
        ContainerState::Created => (nri::ContainerState::CONTAINER_CREATED, 0),
        ContainerState::Running { started_at } => (nri::ContainerState::CONTAINER_RUNNING, *started_at),
        ContainerState::Exited { started_at, exit } => {
            container.finished_at = exit.finished_at;
            container.exit_code = exit.code;
            container.status_reason = exit.reason.clone();
            container.status_message = exit.message.clone();
            container.pid = 0;
            (nri::ContainerState::CONTAINER_STOPPED, *started_at)
        }
    };
    container.state = state.into();
    container.started_at = started_at;
    container
}

fn mount(mount: &cri::Mount) -> nri::Mount {
    let propagation = match cri::MountPropagation::try_from(mount.propagation) {
        Ok(cri::MountPropagation::PropagationHostToContainer) => "rslave",
        Ok(cri::MountPropagation::PropagationBidirectional) => "rshared",
        _ => "rprivate",
    };
    let options = ["rbind", propagation, if mount.readonly { "ro" } else { "rw" }];
    let image = mount.image.as_ref().map(|image| image.image.clone());
    nri::Mount {
        destination: mount.container_path.clone(),
        type_: "bind".into(),
        source: image.unwrap_or_else(|| mount.host_path.clone()),
        options: options.into_iter().map(str::to_owned).collect(),
        ..Default::default()
    }
}

fn device(device: &agent::Device) -> nri::LinuxDevice {
    let number = |value: Option<u32>| value.map(|value| nri::OptionalUInt32 { value, ..Default::default() }).into();
    nri::LinuxDevice {
        path: device.path.clone(),
        type_: device.kind.clone(),
        major: device.major.into(),
        minor: device.minor.into(),
        file_mode: some(nri::OptionalFileMode { value: device.mode, ..Default::default() }),
        uid: number(device.uid),
        gid: number(device.gid),
        ..Default::default()
    }
}

fn rlimit(limit: &agent::Rlimit) -> nri::POSIXRlimit {
    nri::POSIXRlimit { type_: limit.name.clone(), hard: limit.hard, soft: limit.soft, ..Default::default() }
}

fn profile(profile: &cri::SecurityProfile) -> nri::SecurityProfile {
    use nri::security_profile::ProfileType as Theirs;
    let kind = match cri::security_profile::ProfileType::try_from(profile.profile_type) {
        Ok(cri::security_profile::ProfileType::Unconfined) => Theirs::UNCONFINED,
        Ok(cri::security_profile::ProfileType::Localhost) => Theirs::LOCALHOST,
        _ => Theirs::RUNTIME_DEFAULT,
    };
    nri::SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: profile.localhost_ref.clone(),
        ..Default::default()
    }
}
