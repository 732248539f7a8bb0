//! Creating a container: image and volumes are handed to the machine, then the agent builds it.

use std::path::Path;
use std::sync::Arc;

use bulkhead_proto::nri::{self, Event};
use bulkhead_proto::{agent, cri};
use protobuf::Message;

use super::adjust::Parts;
use super::edits::Editor;
use super::host_access::HostAccess;
use super::record::{ContainerRecord, Identity};
use super::{
    Container, ContainerError, ContainerEvent, ContainerState, cdi, devices, log, recover, remove, resources, seccomp,
    security, spec, volumes, watch,
};
use crate::image::{Image, ImageId, ImageRoot};
use crate::journaled::Journaled;
use crate::node::{Node, new_id, now_ns};
use crate::nri::{Creation, messages};
use crate::sandbox::{Live, Sandbox, SandboxRecord, user_namespace};
use crate::store::Kind;

/// Most groups of a process, as the kernel has it; a guest may claim more.
const MAX_GROUPS: usize = 65_536;
/// Paths that show kernel state; masked unless the kubelet says otherwise.
const MASKED: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
/// Paths that change kernel state.
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Makes a container in a ready sandbox and returns its id.
pub async fn create(
    node: &Arc<Node>,
    sandbox: &Arc<Sandbox>,
    config: cri::ContainerConfig,
) -> Result<String, ContainerError> {
    let metadata = config.metadata.clone().unwrap_or_default();
    let key = format!("{}/{}/{}", sandbox.id, metadata.name, metadata.attempt);
    let interrupted = ContainerError::Interrupted { id: format!("{} of sandbox {}", metadata.name, sandbox.id) };
    let (maker, target) = (node.clone(), sandbox.clone());
    let exists = |id: &str| {
        let found = node.containers.find("container", id);
        found.is_ok_and(|found| found.record.get().state != ContainerState::Removing)
    };
    let make = || async move { create_now(&maker, &target, config).await };
    node.container_creations.join(&key, interrupted, exists, make).await
}

async fn create_now(
    node: &Arc<Node>,
    sandbox: &Arc<Sandbox>,
    config: cri::ContainerConfig,
) -> Result<String, ContainerError> {
    let live = sandbox.live("creating a container")?;
    let image = find_image(node, &config)?;
    let id = new_id();
    refuse_twin(node, sandbox, &config)?;
    let host = HostAccess::of(&sandbox.record.get(), &node.config);
    let (order, config, seen) = match prepare(node, sandbox, &live, &host, &id, config, &image).await {
        Ok(order) => order,
        Err(error) => {
            node.nri.remove_container(&id).await;
            return Err(error);
        }
    };
    let first = ContainerRecord {
        id: id.clone(),
        sandbox_id: sandbox.id.clone(),
        image_id: image.id,
        image_ref: image.repo_digests.first().cloned().unwrap_or_else(|| image.id.to_string()),
        image_stop_signal: Some(image.config.stop_signal.clone()).filter(|s| !s.is_empty()),
        process: order.spec.process.write_to_bytes().map_err(|e| ContainerError::Invalid(e.to_string()))?,
        identity: None,
        pid: 0,
        nri: seen,
        volumes: order.volumes.share_names(),
        log_path: log_path(sandbox, &config),
        state: ContainerState::Creating,
        created_at: now_ns(),
        config,
    };
    let record = match Journaled::create(node.store.clone(), Kind::Container, &id, first).await {
        Ok(record) => record,
        Err(error) => {
            node.nri.remove_container(&id).await;
            return Err(error.into());
        }
    };
    let container = Container::new(&id, record.observed(node.events.of_container()));
    node.containers.insert(container.clone());
    match build(node, &container, &live, order).await {
        Ok(()) => {
            watch::spawn(node, &container);
            node.nri.container_told(Event::POST_CREATE_CONTAINER, &container).await;
            Ok(id)
        }
        Err(error) => {
            tracing::warn!(container = %id, error = %crate::error_text(&error), "container failed; undoing it");
            container.take(ContainerEvent::Remove).await?;
            node.nri.remove_container(&id).await;
            let undone = remove::release(node, &container.record.get()).await;
            if let Err(undo) = undone {
                tracing::warn!(container = %id, error = %crate::error_text(&undo), "cannot undo it in the guest");
            }
            container.record.forget()?;
            node.containers.remove(&id);
            Err(error)
        }
    }
}

fn find_image(node: &Node, config: &cri::ContainerConfig) -> Result<Image, ContainerError> {
    let name = config.image.as_ref().map(|spec| spec.image.clone()).unwrap_or_default();
    if name.is_empty() {
        return Err(ContainerError::Invalid("image is empty".into()));
    }
    node.images.find(&name).ok_or(ContainerError::NoImage { image: name })
}

/// Two containers of one pod never share name and attempt, but for one whose removal, or the undoing of its creation, did
/// not get through: nobody lists it, so nobody would remove it to make room. Asked where no other creation of this name
/// can run.
fn refuse_twin(node: &Arc<Node>, sandbox: &Sandbox, config: &cri::ContainerConfig) -> Result<(), ContainerError> {
    let metadata = config.metadata.clone().unwrap_or_default();
    for twin in super::of_sandbox(node, &sandbox.id) {
        let record = twin.record.get();
        if record.metadata() != metadata {
            continue;
        }
        if !matches!(record.state, ContainerState::Creating | ContainerState::Removing) {
            let (name, sandbox) = (metadata.name, sandbox.id.clone());
            return Err(ContainerError::Exists { name, sandbox, id: twin.id.clone() });
        }
        let node = node.clone();
        tokio::spawn(async move {
            if let Err(error) = recover::undo(&node, &twin).await {
                tracing::warn!(container = %twin.id, error = %crate::error_text(&error), "still cannot be removed");
            }
        });
    }
    Ok(())
}

/// What the agent and the machine will be told.
struct Order {
    volumes: volumes::Plan,
    /// Without the mounts.
    spec: agent::ContainerSpec,
}

impl Order {
    fn editor(&mut self) -> Editor<'_> {
        Editor::new(&mut self.spec, &mut self.volumes)
    }
}

/// [`order`] with what its devices' names stand for.
async fn prepare(
    node: &Arc<Node>,
    sandbox: &Sandbox,
    live: &Live,
    host: &HostAccess,
    id: &str,
    config: cri::ContainerConfig,
    image: &Image,
) -> Result<(Order, cri::ContainerConfig, Vec<u8>), ContainerError> {
    let (mut order, config, seen) = order(node, sandbox, live, host, id, config, image).await?;
    let devices = cdi::resolve(cdi::names(&config)?, &node.config.cdi.spec_dirs).await?;
    devices.apply(&mut order.editor());
    Ok((order, config, seen))
}

/// Makes the order; gives also the configuration with the limits and mounts that it has become, and the container as NRI
/// plugins see it, encoded, if they changed it.
async fn order(
    node: &Arc<Node>,
    sandbox: &Sandbox,
    live: &Live,
    host: &HostAccess,
    id: &str,
    config: cri::ContainerConfig,
    image: &Image,
) -> Result<(Order, cri::ContainerConfig, Vec<u8>), ContainerError> {
    let context = config.linux.clone().unwrap_or_default().security_context.unwrap_or_default();
    refuse_unsupported(&config, &context, host)?;
    let record = sandbox.record.get();
    let process = spec::process(&config, &image.config, &record.hostname())?;
    let devices = devices::of_host(&config.devices).await?;
    let mut parts = Parts { config, process, devices, memory: Vec::new(), flags: Vec::new() };
    let creation = consult(node, &record, id, &parts, image).await?;
    parts.adjust(&creation, host)?;
    let (config, mut process) = (parts.config, parts.process);
    let capabilities = &process.capabilities.bounding;
    process.seccomp = match Parts::seccomp(&creation, capabilities)? {
        Some(filter) => Some(filter),
        None => seccomp::filter(&context, capabilities, live).await?,
    }
    .into();
    let (pid_mode, pid_target) = spec::pid_mode(context.namespace_options.as_ref(), host)?;
    let paths = |asked: &[String], default: &[&str]| match (context.privileged, asked.is_empty()) {
        (true, _) => Vec::new(),
        (false, true) => default.iter().map(|p| (*p).to_owned()).collect(),
        (false, false) => asked.to_vec(),
    };
    let limits = config.linux.clone().unwrap_or_default().resources.unwrap_or_default();
    let spec = agent::ContainerSpec {
        id: id.to_owned(),
        process: Some(process).into(),
        pid_mode: pid_mode.into(),
        pid_target,
        resources: Some(resources::to_agent(&limits)).into(),
        masked_paths: paths(&context.masked_paths, &MASKED),
        readonly_paths: paths(&context.readonly_paths, &READONLY),
        devices: parts.devices,
        privileged: context.privileged,
        rootfs: Some(agent::Rootfs { readonly: context.readonly_rootfs, ..Default::default() }).into(),
        ..Default::default()
    };
    let volumes = volumes::plan(id, &config.mounts, host).await?.with(parts.memory, &parts.flags);
    node.nri.apply(creation.updates).await;
    let changed = creation.adjust != nri::ContainerAdjustment::default();
    let seen = if changed { creation.container.write_to_bytes().ok() } else { None };
    Ok((Order { volumes, spec }, config, seen.unwrap_or_default()))
}

/// Asks NRI plugins what they want of the container.
async fn consult(
    node: &Node,
    sandbox: &SandboxRecord,
    id: &str,
    parts: &Parts,
    image: &Image,
) -> Result<Creation, ContainerError> {
    if !node.nri.is_serving() {
        return Ok(Creation::default());
    }
    let image_id = image.id.to_string();
    let draft = messages::Draft {
        id,
        config: &parts.config,
        process: &parts.process,
        devices: &parts.devices,
        image_id: &image_id,
        image_ref: image.repo_digests.first().unwrap_or(&image_id),
    };
    Ok(node.nri.create_container(sandbox, messages::draft(&draft, sandbox)).await?)
}

/// What is not applied is refused, never dropped.
fn refuse_unsupported(
    config: &cri::ContainerConfig,
    context: &cri::LinuxContainerSecurityContext,
    host: &HostAccess,
) -> Result<(), ContainerError> {
    if !config.devices.is_empty() {
        host.ask("devices", "devices of the host")?;
    }
    if !config.cdi_devices.is_empty() {
        host.ask("CDI_devices", "devices of the host")?;
    }
    if let Some(annotation) = config.annotations.keys().find(|key| key.starts_with(cdi::ANNOTATION)) {
        host.ask(&format!("the annotation {annotation}"), "devices of the host")?;
    }
    if let Some(options) = &context.namespace_options {
        user_namespace::check_container(host.users(), options).map_err(ContainerError::Invalid)?;
    }
    security::check(context)
}

fn log_path(sandbox: &Sandbox, config: &cri::ContainerConfig) -> String {
    let directory = sandbox.record.get().config.log_directory.clone();
    if directory.is_empty() || config.log_path.is_empty() {
        return String::new();
    }
    Path::new(&directory).join(&config.log_path).display().to_string()
}

async fn build(node: &Arc<Node>, container: &Arc<Container>, live: &Live, order: Order) -> Result<(), ContainerError> {
    let record = container.record.get();
    let id = record.id.as_str();
    let log = match record.log_path.as_str() {
        "" => None,
        path => Some(log::open(id, path).await?),
    };
    let (extent, root) = map_image(node, live, id, &record.image_id).await?;
    let mut spec = order.spec;
    let (mounts, roots) = volumes::attach(node, live, id, order.volumes).await?;
    spec.mounts = mounts;
    if let Some(rootfs) = spec.rootfs.as_mut() {
        rootfs.source = Some(agent::rootfs::Source::Image(extent));
    }
    let request = agent::CreateContainerRequest { spec: Some(spec).into(), ..Default::default() };
    let created = live.agent.create_container(request).await.map_err(ContainerError::guest(id))?;
    for warning in &created.warnings {
        tracing::warn!(container = id, "{warning}");
    }
    // Mounted by now, or held by the machine: the images' files may go.
    drop((root, roots));
    let followed = async { live.machine.attach_log(id, log.as_ref()).await.map_err(ContainerError::machine(id)) };
    tokio::try_join!(followed, built(container, created))?;
    // A machine that ended meanwhile has reported to its containers before this one counted as one.
    node.sandboxes.find("sandbox", &record.sandbox_id)?.live("creating a container").map(drop)?;
    Ok(())
}

/// Notes what the agent made.
async fn built(container: &Container, created: agent::CreateContainerResponse) -> Result<(), ContainerError> {
    let identity = created.identity.into_option().map(|identity| Identity {
        uid: identity.uid,
        gid: identity.gid,
        groups: identity.groups.into_iter().take(MAX_GROUPS).collect(),
    });
    let pid = created.pid;
    let noted = container.record.change(move |record: &mut ContainerRecord| {
        record.identity = identity;
        record.pid = pid;
        record.state = record.state.clone().next(ContainerEvent::Built)?;
        Ok::<_, ContainerError>(())
    });
    noted.await.map(drop)
}

/// Makes an image readable for the agent; in a machine the same image twice is one mapping. The files must be held until the
/// agent has them.
pub(super) async fn map_image(
    node: &Node,
    live: &Live,
    container_id: &str,
    image: &ImageId,
) -> Result<(agent::ImageExtent, ImageRoot), ContainerError> {
    let (images, id) = (node.images.clone(), *image);
    let opened = tokio::task::spawn_blocking(move || images.open_root(&id)).await;
    let opened = opened.map_err(|_| ContainerError::Interrupted { id: container_id.to_owned() })?;
    let root =
        opened.map_err(|source| ContainerError::Root { id: container_id.to_owned(), source: Arc::new(source) })?;
    let name = image.to_string();
    if live.shares_host {
        let files = root.files.iter().map(|part| part.path.display().to_string()).collect();
        return Ok((agent::ImageExtent { image_id: name, files, ..Default::default() }, root));
    }
    let parts: Vec<_> = root.files.iter().map(|part| (&part.file, part.len)).collect();
    let (start_sector, sectors) =
        live.machine.map_image(&name, &parts).await.map_err(ContainerError::machine(container_id))?;
    Ok((agent::ImageExtent { image_id: name, start_sector, sectors, ..Default::default() }, root))
}
