//! ExecProcess: a further command in a running container.

use std::sync::Arc;

use bulkhead_proto::agent::Process as Request;

use super::process::{Process, ProcessParts};
use super::request::{self, FdTable};
use super::streams::Streams;
use super::user_namespace::UserNamespace;
use super::{Container, ContainerError};
use crate::helper::spec::{ExecSpec, Join, Spec};
use crate::sandbox::Sandbox;

const NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP;

impl Container {
    /// Starts a command; its streams wait on the stdio port. Blocking; runs inside the runtime's context.
    ///
    /// # Errors
    /// Why the command cannot be run; nothing is left then.
    pub fn exec(self: &Arc<Self>, sandbox: &Sandbox, exec_id: &str, request: &Request) -> Result<i32, ContainerError> {
        request::check_id(exec_id).map_err(|what| self.invalid(what))?;
        let first = self.running_process()?;
        self.claim(exec_id)?;
        match self.run(sandbox, &first, request) {
            Ok(process) => {
                let pid = process.pid;
                self.lock().execs.insert(exec_id.into(), Some(process));
                Ok(pid)
            }
            Err(error) => {
                self.lock().execs.remove(exec_id);
                Err(error)
            }
        }
    }

    fn claim(&self, exec_id: &str) -> Result<(), ContainerError> {
        let mut inner = self.lock();
        if inner.execs.contains_key(exec_id) {
            return Err(ContainerError::ProcessExists { id: self.id.clone(), exec_id: exec_id.into() });
        }
        inner.execs.insert(exec_id.into(), None);
        Ok(())
    }

    fn run(
        self: &Arc<Self>,
        sandbox: &Sandbox,
        first: &Process,
        request: &Request,
    ) -> Result<Arc<Process>, ContainerError> {
        let io = |step| move |source| ContainerError::Io { id: self.id.clone(), step, source };
        let mut fds = FdTable::default();
        let mut process = request::process(request).map_err(|what| self.invalid(what))?;
        let users = sandbox.users();
        process.ids = users.map(UserNamespace::ids);
        let streams = Streams::make(request, &mut process, &mut fds, users);
        let streams = streams.map_err(io("make the process's streams"))?;
        let pidfd = first.pidfd.try_clone().map_err(io("keep the container's namespaces"))?;
        let namespaces = NAMESPACES | users.map_or(0, |_| libc::CLONE_NEWUSER);
        let join = vec![Join { pidfd: fds.add(pidfd), namespaces }];
        let cgroup = fds.add(self.cgroup.directory()?);
        let spec = Spec::Exec(Box::new(ExecSpec { cgroup, join, process }));
        let launched = sandbox.launcher.launch(&spec, &fds.borrowed());
        let mut launched = launched.map_err(|error| self.launch_error(error))?;
        for warning in &launched.warnings {
            crate::log::warning!("container {}: {warning}", self.id);
        }
        let io = streams.attach(&mut launched).map_err(io("watch the process's streams"))?;
        // The pipes' other ends must be the process's alone, or their end never comes.
        drop(fds);
        let (parts, control) = ProcessParts::new(launched, io);
        let container = Arc::clone(self);
        let process = Process::watch(parts, move |code| container.was_killed_for_memory(code));
        control.start().map_err(|error| {
            if error.may_leave_process() {
                // One that has ended meanwhile needs none.
                let _ = process.signal(libc::SIGKILL);
            }
            ContainerError::Start(error)
        })?;
        Ok(process)
    }

    /// Forgets a process; one that still runs is forgotten when it ends. Idempotent.
    pub fn remove_process(self: &Arc<Self>, exec_id: &str) {
        let mut inner = self.lock();
        let Some(Some(process)) = inner.execs.get(exec_id) else { return };
        if process.has_ended() {
            inner.execs.remove(exec_id);
            return;
        }
        let (process, container, exec_id) = (Arc::clone(process), Arc::clone(self), exec_id.to_owned());
        drop(inner);
        tokio::spawn(async move {
            process.wait().await;
            container.lock().execs.remove(&exec_id);
        });
    }
}
