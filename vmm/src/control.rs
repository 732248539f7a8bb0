//! vmm.proto: requests of the daemon.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bulkhead_proto::launch::PROTOCOL_VERSION;
use bulkhead_proto::vmm as api;
use bulkhead_proto::vmm_ttrpc::Vmm;
use ttrpc::r#async::TtrpcContext;
use ttrpc::{Code, Error, Result, get_status};

use crate::descriptors::TokenError;
use crate::devices::balloon::{self, BalloonHandle};
use crate::devices::block::ImageDriveError;
use crate::devices::net::NetCounters;
use crate::file_server::protocol::{Name, Request};
use crate::kvm::Machine;
use crate::kvm::exits::{ExitKind, Exits};
use crate::kvm::machine::Position;
use crate::logs::LogError;
use crate::pod::{Pod, State};
use crate::statistics;
use crate::viewer;
use crate::volumes::VolumeError;

/// Parts of one image: its metadata and a blob for each layer.
const MAX_PARTS: usize = 512;
/// Longest image id in bytes.
const MAX_IMAGE_ID: usize = 512;

/// Answers requests about one pod.
#[derive(Debug)]
pub struct Control(pub Arc<Pod>);

impl Control {
    fn take(&self, token: &str) -> Result<OwnedFd> {
        self.0.tokens.take(token).map_err(|error| token_status(&error))
    }

    fn machine(&self) -> Result<&Arc<Machine>> {
        let refusal = "only a machine of bulkhead-vmm's own can be held up, once it runs";
        self.0.machine.get().ok_or_else(|| status(Code::FAILED_PRECONDITION, refusal))
    }

    /// Runs what holds processors up, which may wait for them, one after the other.
    async fn holding<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let held = self.0.holding.clone().lock_owned().await;
        let work = move || {
            // Kept to the end of the work, even if nobody waits for it any more.
            let _held = held;
            work()
        };
        tokio::task::spawn_blocking(work).await.map_err(|error| status(Code::INTERNAL, error))
    }

    async fn ask_volumes(&self, request: Request, mount: Option<OwnedFd>) -> Result<()> {
        let volumes = self.0.volumes.as_ref().ok_or_else(|| volume_status(&VolumeError::NoServer))?;
        volumes.ask(request, mount).await.map_err(|error| volume_status(&error))
    }
}

#[async_trait]
impl Vmm for Control {
    async fn info(&self, _: &TtrpcContext, _: api::InfoRequest) -> Result<api::InfoResponse> {
        let state = match &*self.0.state.borrow() {
            State::Booting => api::VmState::VM_STATE_BOOTING,
            State::Ready { .. } => api::VmState::VM_STATE_READY,
            State::Exited(_) => api::VmState::VM_STATE_EXITED,
        };
        Ok(api::InfoResponse {
            protocol_version: PROTOCOL_VERSION,
            vmm_version: env!("CARGO_PKG_VERSION").to_owned(),
            state: state.into(),
            pid: std::process::id(),
            monitor_pid: self.0.monitor_pid.unwrap_or(0),
            ..Default::default()
        })
    }

    async fn wait_ready(&self, _: &TtrpcContext, _: api::WaitReadyRequest) -> Result<api::WaitReadyResponse> {
        match self.0.ready().await {
            Ok(boot_us) => Ok(api::WaitReadyResponse { boot_us, ..Default::default() }),
            Err(exit) => Err(status(Code::FAILED_PRECONDITION, exit.message)),
        }
    }

    async fn wait_exit(&self, _: &TtrpcContext, _: api::WaitExitRequest) -> Result<api::WaitExitResponse> {
        let exit = self.0.exit().await;
        let exit =
            api::VmExit { reason: exit.reason.into(), message: exit.message, at_ns: exit.at_ns, ..Default::default() };
        Ok(api::WaitExitResponse { exit: Some(exit).into(), ..Default::default() })
    }

    async fn map_image(&self, _: &TtrpcContext, request: api::MapImageRequest) -> Result<api::MapImageResponse> {
        let bad = |what: String| status(Code::INVALID_ARGUMENT, what);
        if request.image_id.is_empty() || request.image_id.len() > MAX_IMAGE_ID {
            return Err(bad(format!("image_id has {} bytes, not 1 to {MAX_IMAGE_ID}", request.image_id.len())));
        }
        if request.parts.len() > MAX_PARTS {
            return Err(bad(format!(
                "image {} has {} parts, more than {MAX_PARTS}",
                request.image_id,
                request.parts.len()
            )));
        }
        let mut parts = Vec::with_capacity(request.parts.len());
        for part in &request.parts {
            parts.push((File::from(self.take(&part.descriptor_token)?), part.length));
        }
        let extent = self.0.images.map(&request.image_id, parts).map_err(|error| image_status(&error))?;
        Ok(api::MapImageResponse { start_sector: extent.start_sector, sectors: extent.sectors, ..Default::default() })
    }

    async fn unmap_image(&self, _: &TtrpcContext, request: api::UnmapImageRequest) -> Result<api::UnmapImageResponse> {
        self.0.images.unmap(&request.image_id);
        Ok(api::UnmapImageResponse::new())
    }

    async fn attach_log(&self, _: &TtrpcContext, request: api::AttachLogRequest) -> Result<api::AttachLogResponse> {
        let token = &request.descriptor_token;
        let target = if token.is_empty() { None } else { Some(File::from(self.take(token)?)) };
        self.0.logs.attach(&request.container_id, target).await.map_err(|error| log_status(&error))?;
        Ok(api::AttachLogResponse::new())
    }

    async fn reopen_log(&self, _: &TtrpcContext, request: api::ReopenLogRequest) -> Result<api::ReopenLogResponse> {
        let target = File::from(self.take(&request.descriptor_token)?);
        self.0.logs.reopen(&request.container_id, target).await.map_err(|error| log_status(&error))?;
        Ok(api::ReopenLogResponse::new())
    }

    async fn wait_log(&self, _: &TtrpcContext, request: api::WaitLogRequest) -> Result<api::WaitLogResponse> {
        let end = self.0.logs.wait(&request.container_id).await.map_err(|error| log_status(&error))?;
        let exit = end.exit.map(|exit| api::ContainerExit {
            code: exit.code,
            oom_killed: exit.oom_killed,
            finished_at_ns: exit.finished_at_ns,
            ..Default::default()
        });
        Ok(api::WaitLogResponse { exit: exit.into(), lost_bytes: end.lost_bytes, ..Default::default() })
    }

    async fn detach_log(&self, _: &TtrpcContext, request: api::DetachLogRequest) -> Result<api::DetachLogResponse> {
        self.0.logs.detach(&request.container_id);
        Ok(api::DetachLogResponse::new())
    }

    async fn add_volume(&self, _: &TtrpcContext, request: api::AddVolumeRequest) -> Result<api::AddVolumeResponse> {
        let name = Name::new(&request.name).map_err(|error| volume_status(&error.into()))?;
        let mount = self.take(&request.descriptor_token)?;
        self.ask_volumes(Request::Add { name, directory: request.directory }, Some(mount)).await?;
        Ok(api::AddVolumeResponse::new())
    }

    async fn remove_volume(
        &self,
        _: &TtrpcContext,
        request: api::RemoveVolumeRequest,
    ) -> Result<api::RemoveVolumeResponse> {
        let name = Name::new(&request.name).map_err(|error| volume_status(&error.into()))?;
        self.ask_volumes(Request::Remove(name), None).await?;
        Ok(api::RemoveVolumeResponse::new())
    }

    async fn resize(&self, _: &TtrpcContext, request: api::ResizeRequest) -> Result<api::ResizeResponse> {
        let Some(balloon) = &self.0.balloon else {
            let what = "this machine has no balloon: its memory stays as it was made; make the pod anew";
            return Err(status(Code::FAILED_PRECONDITION, what));
        };
        let made = self.0.memory_mib;
        let kept = request.memory_mib;
        let Some(taken) = made.checked_sub(kept).filter(|_| kept > 0) else {
            let what = format!("memory_mib is {kept}; the machine was made with {made} MiB");
            return Err(status(Code::INVALID_ARGUMENT, what));
        };
        balloon.set_target(balloon::pages(taken << 20));
        Ok(api::ResizeResponse::new())
    }

    async fn pause(&self, _: &TtrpcContext, _: api::PauseRequest) -> Result<api::PauseResponse> {
        let machine = self.machine()?.clone();
        // A processor may be about to reset a device, which takes its time.
        if self.holding(move || machine.pause()).await? {
            return Ok(api::PauseResponse::new());
        }
        Err(status(Code::FAILED_PRECONDITION, "the machine is ending"))
    }

    async fn resume(&self, _: &TtrpcContext, _: api::ResumeRequest) -> Result<api::ResumeResponse> {
        let machine = self.machine()?.clone();
        self.holding(move || machine.resume()).await?;
        Ok(api::ResumeResponse::new())
    }

    async fn statistics(&self, _: &TtrpcContext, request: api::StatisticsRequest) -> Result<api::StatisticsResponse> {
        let machine = self.0.machine.get();
        let (paused, positions) = match machine.cloned() {
            Some(machine) => {
                let look = move || (!machine.is_running(), request.processors.then(|| machine.look()));
                self.holding(look).await?
            }
            None => (false, None),
        };
        let (to_agent, from_agent) = self.0.agent.bytes();
        // A monitor that has just ended has no memory.
        let memory = |pid| statistics::own_memory(pid).unwrap_or(0);
        let faults = statistics::page_faults();
        let network = |of: fn(&NetCounters) -> &AtomicU64| {
            self.0.net_counters.iter().map(|counters| of(counters).load(Ordering::Relaxed)).sum()
        };
        let balloon = |of: fn(&BalloonHandle) -> u32| {
            self.0.balloon.as_ref().map_or(0, |handle| u64::from(of(handle)) * balloon::PAGE)
        };
        Ok(api::StatisticsResponse {
            vmm_memory_bytes: statistics::this_process().unwrap_or(0),
            monitor_memory_bytes: self.0.monitor_pid.map_or(0, memory),
            paused,
            processors: positions.unwrap_or_default().iter().map(processor).collect(),
            block_read_bytes: self.0.block_counters.iter().map(|counters| counters.read_bytes()).sum(),
            block_written_bytes: self.0.block_counters.iter().map(|counters| counters.written_bytes()).sum(),
            vsock_rx_bytes: to_agent,
            vsock_tx_bytes: from_agent,
            minor_faults: faults.0,
            major_faults: faults.1,
            network_rx_bytes: network(|counters| &counters.rx_bytes),
            network_tx_bytes: network(|counters| &counters.tx_bytes),
            guest_memory_bytes: machine.map_or(0, |machine| machine.resident_bytes()),
            balloon_target_bytes: balloon(BalloonHandle::target),
            balloon_bytes: balloon(BalloonHandle::actual),
            exits: machine.map(|machine| exit_counts(machine.exits())).unwrap_or_default(),
            ..Default::default()
        })
    }

    async fn open_console(
        &self,
        _: &TtrpcContext,
        request: api::OpenConsoleRequest,
    ) -> Result<api::OpenConsoleResponse> {
        let socket = self.take(&request.descriptor_token)?;
        viewer::spawn(self.0.clone(), socket).map_err(|error| status(Code::INVALID_ARGUMENT, error))?;
        Ok(api::OpenConsoleResponse { takes_input: self.0.keyboard.is_some(), ..Default::default() })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: api::ShutdownRequest) -> Result<api::ShutdownResponse> {
        self.0.shutdown.notify_one();
        self.0.exit().await;
        Ok(api::ShutdownResponse::new())
    }
}

fn processor(position: &Position) -> api::Processor {
    api::Processor { instruction: position.instruction, exits: exit_counts(position.exits), ..Default::default() }
}

fn exit_counts(exits: Exits) -> Vec<api::ExitCount> {
    let count =
        |(kind, count): (ExitKind, u64)| api::ExitCount { kind: kind.name().to_owned(), count, ..Default::default() };
    exits.into_iter().map(count).collect()
}

fn status(code: Code, text: impl ToString) -> Error {
    Error::RpcStatus(get_status(code, text.to_string()))
}

fn token_status(error: &TokenError) -> Error {
    let TokenError::Unknown(_) = error;
    status(Code::NOT_FOUND, error)
}

fn image_status(error: &ImageDriveError) -> Error {
    let code = match error {
        ImageDriveError::PartLength { .. } | ImageDriveError::NoParts { .. } => Code::INVALID_ARGUMENT,
        ImageDriveError::Full { .. } => Code::RESOURCE_EXHAUSTED,
    };
    status(code, error)
}

fn log_status(error: &LogError) -> Error {
    let code = match error {
        LogError::Unknown(_) => Code::NOT_FOUND,
        LogError::Exists(_) => Code::ALREADY_EXISTS,
        LogError::Ended(_) => Code::FAILED_PRECONDITION,
        LogError::Id(_) => Code::INVALID_ARGUMENT,
        LogError::TooMany => Code::RESOURCE_EXHAUSTED,
        LogError::Connect { .. } | LogError::Stream { .. } => Code::UNAVAILABLE,
    };
    status(code, error)
}

fn volume_status(error: &VolumeError) -> Error {
    let code = match error {
        VolumeError::Name(_) => Code::INVALID_ARGUMENT,
        VolumeError::NoServer => Code::FAILED_PRECONDITION,
        VolumeError::Refused { .. } => Code::INTERNAL,
        VolumeError::Gone { .. } => Code::UNAVAILABLE,
    };
    status(code, error)
}
