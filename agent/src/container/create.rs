//! CreateContainer: everything up to the exec of the command.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use bulkhead_proto::agent::{self, ContainerSpec as Request, PidMode};

use super::launch::{Helper, Launched};
use super::layers::Layer;
use super::process::{Process, ProcessParts};
use super::request::{self, FdTable};
use super::state::Event;
use super::streams::Streams;
use super::user_namespace::UserNamespace;
use super::volumes::{Tree, tree_of};
use super::{Container, ContainerError, devices, limits};
use crate::helper::spec::{ContainerSpec, Join, MountSpec, Propagation, Spec};
use crate::helper::users::Identity;
use crate::sandbox::Sandbox;

/// What a creation answers.
#[derive(Debug)]
pub struct Created {
    /// Of the first process, in the agent's PID namespace.
    pub pid: i32,
    /// What could not be applied.
    pub warnings: Vec<String>,
    /// Whose rights the first process has.
    pub identity: Option<Identity>,
}

/// Creates a container. Blocking; runs inside the runtime's context.
///
/// # Errors
/// See [`ContainerError`]; nothing is left then.
pub fn create(sandbox: &Arc<Sandbox>, request: &Request) -> Result<Created, ContainerError> {
    let id = request.id.as_str();
    request::check_id(id).map_err(|what| ContainerError::Invalid { id: id.into(), what })?;
    // Claimed first: of two callers with one id, only one may touch the cgroup and the layer.
    let container = Arc::new(Container::new(id, sandbox.cgroup.child_handle(id)));
    sandbox.insert(Arc::clone(&container))?;
    let built = Builder { sandbox, container: &container, request, fds: FdTable::default() }.build();
    if built.is_err() {
        for error in super::remove::release(sandbox, &container) {
            crate::log::warning!("container {id}: after its creation failed: {error}");
        }
        sandbox.forget(id);
    }
    container.end_creation();
    built
}

struct Builder<'a> {
    sandbox: &'a Arc<Sandbox>,
    container: &'a Arc<Container>,
    request: &'a Request,
    fds: FdTable,
}

impl Builder<'_> {
    fn build(mut self) -> Result<Created, ContainerError> {
        let helper = self.sandbox.launcher.begin().map_err(|error| self.container.launch_error(error))?;
        let mut warnings = self.cgroup()?;
        let (spec, streams) = self.spec()?;
        let mut launched = self.launch(helper, spec)?;
        warnings.append(&mut launched.warnings);
        let io = streams.attach(&mut launched).map_err(|e| self.io("watch the container's streams", e))?;
        let (pid, identity) = (launched.pid, launched.identity.take());
        let (parts, control) = ProcessParts::new(launched, io);
        // Before the process is watched: its exit must find the container created.
        self.container.advance(Event::Built)?;
        let watched = Arc::clone(self.container);
        let process = Process::watch(parts, move |code| watched.first_process_ended(code));
        let mut inner = self.container.lock();
        (inner.first, inner.control) = (Some(process), Some(control));
        Ok(Created { pid, warnings, identity })
    }

    fn io(&self, step: &'static str, source: std::io::Error) -> ContainerError {
        ContainerError::Io { id: self.container.id.clone(), step, source }
    }

    fn cgroup(&self) -> Result<Vec<String>, ContainerError> {
        let cgroup = self.sandbox.cgroup.child(&self.container.id)?;
        let wanted = limits::settings(self.request.resources.as_ref().unwrap_or_default())?;
        let (settings, missing) = self.sandbox.cgroup.applicable(wanted);
        let mut warnings = Vec::new();
        if !missing.is_empty() {
            let missing = missing.join(", ");
            warnings.push(format!("limits without effect: this kernel offers no cgroup v2 controller for {missing}"));
        }
        let (defaults, _) = self.sandbox.cgroup.applicable(limits::defaults());
        cgroup.apply(&defaults)?;
        cgroup.apply(&settings)?;
        if let Some(users) = self.sandbox.users().filter(|_| self.request.privileged) {
            cgroup.delegate(users.root())?;
        }
        if !self.request.privileged {
            let rules = devices::rules(&self.request.devices);
            match devices::confine(cgroup.directory()?.as_fd(), &rules) {
                // With the host's devices behind it, that is no warning.
                Err(why) if self.sandbox.platform.shares_host() => return Err(self.container.invalid(why)),
                confined => warnings.extend(confined.err()),
            }
        }
        Ok(warnings)
    }

    fn spec(&mut self) -> Result<(ContainerSpec, Streams), ContainerError> {
        let request = self.request;
        let invalid = |what| self.container.invalid(what);
        let wanted = request.process.as_ref().unwrap_or_default();
        let mut process = request::process(wanted).map_err(invalid)?;
        let users = self.sandbox.users();
        process.ids = users.map(UserNamespace::ids);
        let devices = request::device_nodes(request, users).map_err(invalid)?;
        let streams = Streams::make(wanted, &mut process, &mut self.fds, users);
        let streams = streams.map_err(|e| self.io("make the container's streams", e))?;
        let cgroup = self.fds.add(self.container.cgroup.directory()?);
        let (join, new_pid_namespace) = self.namespaces()?;
        let root = self.root()?;
        let user_namespace = users.map(|users| users.spec(&mut self.fds)).transpose();
        let spec = ContainerSpec {
            cgroup,
            join,
            user_namespace: user_namespace.map_err(|e| self.io("keep the pod's user namespace", e))?,
            new_pid_namespace,
            root: self.fds.add(root),
            attach_point: self.sandbox.places.attach_point.clone(),
            root_readonly: request.rootfs.readonly,
            mounts: self.mounts()?,
            masked_paths: self.paths(&request.masked_paths, "masked path")?,
            readonly_paths: self.paths(&request.readonly_paths, "read-only path")?,
            devices,
            privileged: request.privileged,
            process,
        };
        Ok((spec, streams))
    }

    fn paths(&self, paths: &[String], what: &str) -> Result<Vec<String>, ContainerError> {
        // A privileged container sees everything.
        let paths = if self.request.privileged { &[] } else { paths };
        paths
            .iter()
            .map(|path| request::check_path(path, what))
            .collect::<Result<_, _>>()
            .map_err(|what| self.container.invalid(what))
    }

    fn namespaces(&mut self) -> Result<(Vec<Join>, bool), ContainerError> {
        let mut namespaces = (libc::CLONE_NEWIPC | libc::CLONE_NEWUTS) & !self.sandbox.shared_namespaces();
        let mut join = Vec::new();
        let mode = self.request.pid_mode.enum_value();
        match mode {
            Ok(PidMode::PID_MODE_POD) => namespaces |= libc::CLONE_NEWPID,
            Ok(PidMode::PID_MODE_TARGET) => {
                let target = self.sandbox.container(&self.request.pid_target)?.running_process()?;
                let pidfd = target.pidfd.try_clone().map_err(|e| self.io("keep the PID target", e))?;
                join.push(Join { pidfd: self.fds.add(pidfd), namespaces: libc::CLONE_NEWPID });
            }
            Ok(PidMode::PID_MODE_CONTAINER | PidMode::PID_MODE_NODE) => {}
            Err(number) => return Err(self.container.invalid(format!("unknown PID mode {number}"))),
        }
        if namespaces != 0 {
            let pause = self.sandbox.pause()?;
            let pidfd = pause.pidfd.try_clone().map_err(|e| self.io("keep the pod's namespaces", e))?;
            join.push(Join { pidfd: self.fds.add(pidfd), namespaces });
        }
        Ok((join, mode == Ok(PidMode::PID_MODE_CONTAINER)))
    }

    /// The overlay that becomes the container's root.
    fn root(&self) -> Result<OwnedFd, ContainerError> {
        let lower = match &self.request.rootfs.source {
            Some(agent::rootfs::Source::Image(image)) => self.image(image)?,
            Some(agent::rootfs::Source::Directory(_)) if self.sandbox.users().is_some() => {
                return Err(self.container.invalid("a root directory cannot be in a user namespace".into()));
            }
            Some(agent::rootfs::Source::Directory(path)) if Path::new(path).is_absolute() => path.into(),
            Some(agent::rootfs::Source::Directory(path)) => {
                return Err(self.container.invalid(format!("root directory {path:?} is not absolute")));
            }
            _ => return Err(self.container.invalid("there is no root file system".into())),
        };
        let layer = Layer::create(&self.sandbox.layers()?, &self.container.id)?;
        self.container.lock().holdings.layer = Some(layer.clone());
        Ok(layer.overlay(&lower)?)
    }

    fn image(&self, image: &agent::ImageExtent) -> Result<std::path::PathBuf, ContainerError> {
        let extent = request::extent(image).map_err(|what| self.container.invalid(what))?;
        let drive = self.sandbox.image_drive()?;
        let directory = self.sandbox.images.acquire(&extent, drive.as_deref(), self.sandbox.users())?;
        self.container.lock().holdings.images.push(extent.image);
        Ok(directory)
    }

    fn mounts(&mut self) -> Result<Vec<MountSpec>, ContainerError> {
        let invalid = |what| self.container.invalid(what);
        let mut mounts = Vec::new();
        for mount in &self.request.mounts {
            let destination = request::check_path(&mount.destination, "mount destination").map_err(invalid)?;
            let propagation = request::propagation(mount.propagation).map_err(invalid)?;
            let tree = self.tree(mount)?;
            if mount.id_mapped {
                self.map_ids(mount, &tree)?;
            }
            if self.sandbox.users().is_some() && propagation == Propagation::Shared {
                let why = "mounts of a pod with a user namespace cannot reach the host";
                return Err(self.container.invalid(format!("{why}: {destination} is to be shared with it")));
            }
            mounts.push(MountSpec {
                destination,
                directory: tree.directory,
                tree: self.fds.add(tree.fd),
                readonly: mount.readonly,
                recursive_readonly: mount.recursive_readonly,
                no_suid: mount.no_suid,
                no_dev: mount.no_dev,
                no_exec: mount.no_exec,
                propagation,
            });
        }
        for (destination, tree) in self.sandbox.standard_trees()? {
            if mounts.iter().all(|mount| mount.destination != destination) {
                mounts.push(MountSpec {
                    destination: destination.into(),
                    directory: tree.directory,
                    tree: self.fds.add(tree.fd),
                    readonly: false,
                    recursive_readonly: false,
                    no_suid: false,
                    no_dev: false,
                    no_exec: false,
                    propagation: Propagation::Private,
                });
            }
        }
        // Parents before what lies in them; otherwise in the caller's order.
        mounts.sort_by_key(|mount| mount.destination.split('/').filter(|part| !part.is_empty()).count());
        Ok(mounts)
    }

    fn map_ids(&self, mount: &agent::Mount, tree: &Tree) -> Result<(), ContainerError> {
        // Images of a pod with a user namespace are mapped as a whole.
        if mount.has_image() {
            return Ok(());
        }
        let mapped = match self.sandbox.users() {
            Some(users) => users.map(tree.fd.as_fd()),
            None => Err(std::io::Error::other("the pod has no user namespace")),
        };
        mapped.map_err(|error| {
            let hint =
                "the file system of the volume, and each one mounted in it, must be able to (ext4, xfs, btrfs, tmpfs)";
            let at = &mount.destination;
            self.container.invalid(format!("cannot map the owners' ids of the volume for {at:?}: {error}; {hint}"))
        })
    }

    fn tree(&self, mount: &agent::Mount) -> Result<Tree, ContainerError> {
        let volumes = &self.sandbox.volumes;
        let owner = self.sandbox.users().map_or((0, 0), UserNamespace::root);
        match &mount.source {
            Some(agent::mount::Source::Volume(path)) => Ok(volumes.shared(path, !mount.without_submounts)?),
            Some(agent::mount::Source::Tmpfs(tmpfs)) => {
                let mode = if tmpfs.mode == 0 { 0o777 } else { tmpfs.mode & 0o7777 };
                Ok(volumes.memory(&tmpfs.name, tmpfs.size_bytes, mode, owner)?)
            }
            Some(agent::mount::Source::Image(volume)) => {
                let directory = self.image(volume.image.as_ref().unwrap_or_default())?;
                Ok(tree_of(&directory, &format!("/{}", volume.sub_path), "the image volume")?)
            }
            _ => Err(self.container.invalid(format!("mount {:?} has no source", mount.destination))),
        }
    }

    fn launch(&self, helper: Helper, spec: ContainerSpec) -> Result<Launched, ContainerError> {
        helper
            .launch(&Spec::Container(Box::new(spec)), &self.fds.borrowed())
            .map_err(|error| self.container.launch_error(error))
    }
}

impl Sandbox {
    /// See [`create`].
    ///
    /// # Errors
    /// See [`create`].
    pub fn create_container(self: &Arc<Self>, request: &Request) -> Result<Created, ContainerError> {
        create(self, request)
    }
}
