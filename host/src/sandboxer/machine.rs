//! The connection to one pod's running `bulkhead-vmm`.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bulkhead_proto::vmm_ttrpc::VmmClient;
use bulkhead_proto::{launch, vmm};

use super::death::Death;
use super::{MachineError, MachinePaths};
use crate::sys::descriptors::{DeliverError, deliver};
use crate::sys::process::Process;
use crate::version::{self, Speaker, VersionError};

/// Ordinary requests are answered from memory; only a broken process takes longer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest wait for one answer of a process that may be busy.
const INFO_TIMEOUT: Duration = Duration::from_secs(5);
/// A machine that listens but does not say who it is in this time counts as gone: a busy host must not cost pods.
const RECONNECT_PATIENCE: Duration = Duration::from_secs(30);
/// Between two tries.
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);

/// A running machine. Cheap to clone.
#[derive(Clone)]
pub struct Machine {
    paths: MachinePaths,
    client: VmmClient,
    /// Of a process that this daemon started.
    death: Option<Death>,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").field("paths", &self.paths).finish_non_exhaustive()
    }
}

/// How a container's output ended.
#[derive(Debug, Clone)]
pub struct LogEnd {
    /// As the agent said it; `None` when the machine ended first.
    pub exit: Option<launch::ContainerExitRecord>,
    /// Bytes that a full disk cost.
    pub lost_bytes: u64,
}

impl Machine {
    /// Connects to the process that serves `paths`.
    pub async fn connect(paths: MachinePaths) -> Result<Self, MachineError> {
        let socket = paths.control();
        let stream = tokio::net::UnixStream::connect(&socket)
            .await
            .map_err(|source| MachineError::Connect { socket, source })?;
        Ok(Self::over(stream, paths))
    }

    /// The machine behind `paths` and its process, as the kernel names it: what the process says of itself is a claim.
    /// `None` when nothing listens there.
    pub async fn find(paths: MachinePaths) -> Result<Option<(Self, Process)>, MachineError> {
        let socket = paths.control();
        let fail = |source| MachineError::Connect { socket: socket.clone(), source };
        let stream = match tokio::net::UnixStream::connect(&socket).await {
            Ok(stream) => stream,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => return Ok(None),
            Err(e) => return Err(fail(e)),
        };
        let pid = stream.peer_cred().map_err(fail)?.pid();
        let process = match pid.map(Process::open) {
            Some(Ok(process)) => process,
            Some(Err(e)) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Some(Err(e)) => return Err(fail(e)),
            None => return Err(fail(ErrorKind::Unsupported.into())),
        };
        Ok(Some((Self::over(stream, paths), process)))
    }

    fn over(stream: tokio::net::UnixStream, paths: MachinePaths) -> Self {
        let socket = ttrpc::r#async::transport::Socket::new(stream);
        Self { paths, client: VmmClient::new(ttrpc::r#async::Client::new(socket)), death: None }
    }

    /// Of a process whose end can be told even when it leaves no record.
    pub(super) fn with_death(self, death: Death) -> Self {
        Self { death: Some(death), ..self }
    }

    /// The same machine by a new connection; `None` when it is gone.
    pub async fn again(&self) -> Option<Self> {
        // Its version was looked at before.
        let again = Self::reconnect(self.paths.clone()).await.ok()??;
        Some(Self { death: self.death.clone(), ..again })
    }

    /// Finds a machine again after a restart of the daemon; `None` when it is gone, or silent for [`RECONNECT_PATIENCE`].
    ///
    /// # Errors
    /// When it runs, but its `bulkhead-vmm` is of a release that this daemon does not know.
    pub async fn reconnect(paths: MachinePaths) -> Result<Option<Self>, VersionError> {
        let end = tokio::time::Instant::now() + RECONNECT_PATIENCE;
        loop {
            match Self::connect(paths.clone()).await {
                Ok(machine) => {
                    let context = ttrpc::context::with_duration(INFO_TIMEOUT);
                    if let Ok(info) = machine.client.info(context, &vmm::InfoRequest::new()).await {
                        if info.state.enum_value() == Ok(vmm::VmState::VM_STATE_EXITED) {
                            return Ok(None);
                        }
                        return version::check(Speaker::Vmm, info.protocol_version).map(|()| Some(machine));
                    }
                }
                // Nobody listens there any more.
                Err(MachineError::Connect { source, .. })
                    if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) =>
                {
                    return Ok(None);
                }
                // Out of descriptors, or a full backlog: what cannot be known is no end.
                Err(_) => {}
            }
            if tokio::time::Instant::now() >= end {
                return Ok(None);
            }
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
    }

    /// Where its sockets and files are.
    #[must_use]
    pub fn paths(&self) -> &MachinePaths {
        &self.paths
    }

    /// Returns when the agent listens, with the boot time in microseconds.
    pub async fn wait_ready(&self, seconds: u64) -> Result<u64, MachineError> {
        let request = vmm::WaitReadyRequest::new();
        let ready = self.client.wait_ready(ttrpc::context::Context::default(), &request);
        match tokio::time::timeout(Duration::from_secs(seconds), ready).await {
            Ok(Ok(ready)) => Ok(ready.boot_us),
            Ok(Err(ttrpc::Error::RpcStatus(status))) => Err(MachineError::Boot { detail: status.message }),
            Ok(Err(_)) => Err(MachineError::Boot { detail: self.end_text().await }),
            Err(_) => Err(MachineError::BootTimeout {
                seconds,
                console: MachinePaths::tail(&self.paths.console(), 10),
                processors: self.processors().await,
            }),
        }
    }

    /// Where every processor of the guest stands, in words; empty when that cannot be known.
    async fn processors(&self) -> String {
        let request = vmm::StatisticsRequest { processors: true, ..Default::default() };
        let Ok(answer) = self.client.statistics(ttrpc::context::with_duration(INFO_TIMEOUT), &request).await else {
            return "; bulkhead-vmm does not say where its processors stand".into();
        };
        let exits = |processor: &vmm::Processor| {
            processor.exits.iter().map(|exit| format!("{} {}", exit.count, exit.kind)).collect::<Vec<_>>().join(", ")
        };
        let text = |(index, processor): (usize, &vmm::Processor)| {
            format!("; processor {index} is at {:#x} after {}", processor.instruction, exits(processor))
        };
        answer.processors.iter().enumerate().map(text).collect()
    }

    async fn end_text(&self) -> String {
        if let Some(record) = self.paths.exit_record() {
            return record.message;
        }
        let known = match &self.death {
            Some(death) => death.text().await,
            None => None,
        };
        // Written between the two looks.
        if let Some(record) = self.paths.exit_record() {
            return record.message;
        }
        let why = known.unwrap_or_else(|| "bulkhead-vmm vanished".into());
        format!("{why}; its log says:\n{}", MachinePaths::tail(&self.paths.log(), 10))
    }

    /// Returns when the machine has ended, with the reason in words.
    pub async fn wait_exit(&self) -> String {
        let request = vmm::WaitExitRequest::new();
        match self.client.wait_exit(ttrpc::context::Context::default(), &request).await {
            Ok(answer) => answer.exit.message.clone(),
            Err(_) => self.end_text().await,
        }
    }

    /// Maps an image's parts into the image drive; gives first sector and count.
    pub async fn map_image(&self, image_id: &str, parts: &[(&std::fs::File, u64)]) -> Result<(u64, u64), MachineError> {
        let mut request = vmm::MapImageRequest { image_id: image_id.to_owned(), ..Default::default() };
        let mut held = Vec::new();
        for (file, length) in parts {
            let (token, guard) = self.send_descriptor(file).await?;
            held.push(guard);
            request.parts.push(vmm::ImagePart { descriptor_token: token, length: *length, ..Default::default() });
        }
        let answer = self.client.map_image(limit(), &request).await.map_err(|e| failed("map the image", e))?;
        Ok((answer.start_sector, answer.sectors))
    }

    /// Lets output of a container flow into `log`, or nowhere.
    pub async fn attach_log(&self, container: &str, log: Option<&std::fs::File>) -> Result<(), MachineError> {
        let (token, _held) = self.optional_descriptor(log).await?;
        let request =
            vmm::AttachLogRequest { container_id: container.to_owned(), descriptor_token: token, ..Default::default() };
        self.client.attach_log(limit(), &request).await.map_err(|e| failed("attach the log", e))?;
        Ok(())
    }

    /// Sends further lines of a container's log to `log`.
    pub async fn reopen_log(&self, container: &str, log: &std::fs::File) -> Result<(), MachineError> {
        let (token, _held) = self.send_descriptor(log).await?;
        let request =
            vmm::ReopenLogRequest { container_id: container.to_owned(), descriptor_token: token, ..Default::default() };
        self.client.reopen_log(limit(), &request).await.map_err(|e| failed("reopen the log", e))?;
        Ok(())
    }

    /// Returns when the container's last line is written.
    pub async fn wait_log(&self, container: &str) -> Result<LogEnd, MachineError> {
        let request = vmm::WaitLogRequest { container_id: container.to_owned(), ..Default::default() };
        let answer = self
            .client
            .wait_log(ttrpc::context::Context::default(), &request)
            .await
            .map_err(|e| failed("wait for the log's end", e))?;
        let exit = answer.exit.as_ref().map(|exit| launch::ContainerExitRecord {
            id: container.to_owned(),
            code: exit.code,
            oom_killed: exit.oom_killed,
            finished_at_ns: exit.finished_at_ns,
        });
        Ok(LogEnd { exit, lost_bytes: answer.lost_bytes })
    }

    /// Forgets a container's log.
    pub async fn detach_log(&self, container: &str) -> Result<(), MachineError> {
        let request = vmm::DetachLogRequest { container_id: container.to_owned(), ..Default::default() };
        self.client.detach_log(limit(), &request).await.map_err(|e| failed("detach the log", e))?;
        Ok(())
    }

    /// Shows a detached mount under `name` in the pod's volume share.
    pub async fn add_volume(&self, name: &str, mount: &impl AsFd, directory: bool) -> Result<(), MachineError> {
        let (token, _held) = self.send_descriptor(mount).await?;
        let request =
            vmm::AddVolumeRequest { name: name.to_owned(), descriptor_token: token, directory, ..Default::default() };
        self.client.add_volume(limit(), &request).await.map_err(|e| failed("add the volume", e))?;
        Ok(())
    }

    /// Takes a volume out of the pod's share.
    pub async fn remove_volume(&self, name: &str) -> Result<(), MachineError> {
        let request = vmm::RemoveVolumeRequest { name: name.to_owned(), ..Default::default() };
        self.client.remove_volume(limit(), &request).await.map_err(|e| failed("remove the volume", e))?;
        Ok(())
    }

    /// Lets the guest have `memory_mib` of the memory it was made with.
    pub async fn resize(&self, memory_mib: u64) -> Result<(), MachineError> {
        let request = vmm::ResizeRequest { memory_mib, ..Default::default() };
        self.client.resize(limit(), &request).await.map_err(|e| failed("resize the machine", e))?;
        Ok(())
    }

    /// Copies the guest's console to a stream socket; whether what comes from there is typed on it.
    pub async fn open_console(&self, socket: &UnixStream) -> Result<bool, MachineError> {
        let (token, _held) = self.send_descriptor(socket).await?;
        let request = vmm::OpenConsoleRequest { descriptor_token: token, ..Default::default() };
        let answer = self.client.open_console(limit(), &request).await.map_err(|e| failed("open the console", e))?;
        Ok(answer.takes_input)
    }

    /// Orders the machine's end.
    pub async fn shutdown(&self) -> Result<(), MachineError> {
        match self.client.shutdown(limit(), &vmm::ShutdownRequest::new()).await {
            // The answer races with the process's end.
            Ok(_)
            | Err(
                ttrpc::Error::Socket(_) | ttrpc::Error::LocalClosed | ttrpc::Error::RemoteClosed | ttrpc::Error::Eof,
            ) => {}
            Err(e) => return Err(failed("shut down", e)),
        }
        Ok(())
    }

    async fn optional_descriptor(
        &self,
        file: Option<&std::fs::File>,
    ) -> Result<(String, Option<UnixStream>), MachineError> {
        match file {
            Some(file) => self.send_descriptor(file).await.map(|(token, held)| (token, Some(held))),
            None => Ok((String::new(), None)),
        }
    }

    /// Sends a descriptor; its token is good while the returned connection lives.
    async fn send_descriptor(&self, descriptor: &impl AsFd) -> Result<(String, UnixStream), MachineError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let token = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let socket = self.paths.descriptors();
        let io = |source| {
            MachineError::Descriptor(DeliverError::Io {
                socket: socket.clone(),
                token: token.clone(),
                step: "duplicating it",
                source,
            })
        };
        let descriptor = descriptor.as_fd().try_clone_to_owned().map_err(io)?;
        let (path, name) = (socket.clone(), token.clone());
        let sent = tokio::task::spawn_blocking(move || deliver(&path, &name, descriptor.as_fd())).await;
        let held = sent.map_err(|e| io(std::io::Error::other(e)))?.map_err(MachineError::Descriptor)?;
        Ok((token, held))
    }
}

fn limit() -> ttrpc::context::Context {
    ttrpc::context::with_duration(REQUEST_TIMEOUT)
}

fn failed(request: &'static str, error: ttrpc::Error) -> MachineError {
    match error {
        ttrpc::Error::RpcStatus(status) => MachineError::Refused { request, message: status.message },
        other => MachineError::Broken { request, message: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use bulkhead_proto::vmm_ttrpc::{Vmm, create_vmm};

    /// A `bulkhead-vmm` of a release that is not written yet.
    struct Other(u32);

    #[async_trait::async_trait]
    impl Vmm for Other {
        async fn info(
            &self,
            _: &ttrpc::r#async::TtrpcContext,
            _: vmm::InfoRequest,
        ) -> ttrpc::Result<vmm::InfoResponse> {
            let state = vmm::VmState::VM_STATE_READY.into();
            Ok(vmm::InfoResponse { protocol_version: self.0, state, ..Default::default() })
        }
    }

    #[tokio::test]
    async fn older_processes_are_driven_and_newer_ones_left_alone() {
        for (version, driven) in [(0, true), (launch::PROTOCOL_VERSION, true), (launch::PROTOCOL_VERSION + 1, false)] {
            let directory = tempfile::tempdir().unwrap();
            let paths = MachinePaths::new(directory.path().into());
            let listener = std::os::unix::net::UnixListener::bind(paths.control()).unwrap();
            let listener = ttrpc::r#async::transport::Listener::try_from(listener).unwrap();
            let mut server = ttrpc::r#async::Server::new()
                .add_listener(listener)
                .register_service(create_vmm(Arc::new(Other(version))));
            server.start().await.unwrap();
            let found = Machine::reconnect(paths.clone()).await;
            assert_eq!(found.as_ref().is_ok_and(Option::is_some), driven, "{version}: {found:?}");
            if let Err(error) = found {
                assert!(error.to_string().contains("the pod runs on"), "{error}");
            }
            // It was asked for nothing else, and answers still.
            assert!(Machine::connect(paths).await.is_ok());
            server.shutdown().await.unwrap();
        }
    }
}
