//! vmm.proto: what the daemon asks of a pod's process.

mod memory;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bulkhead_proto::launch::{ExitRecord, PROTOCOL_VERSION};
use bulkhead_proto::vmm::{self, VmState};
use bulkhead_proto::vmm_ttrpc::Vmm;
use protobuf::MessageField;
use tokio::sync::{Notify, watch};
use ttrpc::Code;
use ttrpc::r#async::TtrpcContext;
use ttrpc::error::get_rpc_status;

use crate::descriptors::Descriptors;
use crate::devices::block::{BlockCounters, ImageDrive};
use crate::devices::vsock::VsockHandle;
use crate::logs::Logs;
use crate::volumes::FileServer;

/// Where the machine stands.
#[derive(Debug, Clone)]
pub enum State {
    /// The monitor runs, the agent has not reported.
    Booting,
    /// The agent listens.
    Ready {
        /// From the monitor's start, in microseconds.
        boot_us: u64,
    },
    /// It ended.
    Exited(ExitRecord),
}

/// Everything that requests work on.
#[derive(Debug)]
pub struct Control {
    /// Where the machine stands; changed by [`crate::pod`] only.
    pub state: watch::Sender<State>,
    /// The read-only drive of images.
    pub images: Arc<ImageDrive>,
    /// Of both drives.
    pub counters: Vec<Arc<BlockCounters>>,
    /// Connections into the guest.
    pub vsock: VsockHandle,
    /// Containers' logs.
    pub logs: Logs,
    /// Files that wait to be named by a request.
    pub descriptors: Descriptors,
    /// The pod's file server, if it has one.
    pub file_server: Option<FileServer>,
    /// QEMU.
    pub monitor_pid: u32,
    /// Shutdown was asked for.
    pub asked_to_end: AtomicBool,
    /// Wakes whoever ends the monitor.
    pub end: Notify,
}

/// Requests on a shared [`Control`].
#[derive(Debug, Clone)]
pub struct Service(pub Arc<Control>);

type Answer<T> = ttrpc::Result<T>;

fn failed(error: &(dyn std::error::Error + 'static)) -> ttrpc::Error {
    get_rpc_status(Code::INTERNAL, crate::error_text(error))
}

impl Control {
    fn take(&self, token: &str) -> Answer<OwnedFd> {
        let none = || get_rpc_status(Code::INVALID_ARGUMENT, format!("no descriptor waits under the token {token:?}"));
        self.descriptors.take(token).ok_or_else(none)
    }

    fn volumes(&self) -> Answer<&FileServer> {
        let none = || get_rpc_status(Code::FAILED_PRECONDITION, "this pod was started without a file server");
        self.file_server.as_ref().ok_or_else(none)
    }

    /// Asks for the machine's end.
    pub fn shut_down(&self) {
        self.asked_to_end.store(true, Ordering::SeqCst);
        self.end.notify_one();
    }

    async fn past_boot(&self) -> State {
        let mut state = self.state.subscribe();
        match state.wait_for(|state| !matches!(state, State::Booting)).await {
            Ok(state) => state.clone(),
            Err(_) => self.state.borrow().clone(),
        }
    }
}

#[async_trait]
impl Vmm for Service {
    async fn info(&self, _: &TtrpcContext, _: vmm::InfoRequest) -> Answer<vmm::InfoResponse> {
        let state = match *self.0.state.borrow() {
            State::Booting => VmState::VM_STATE_BOOTING,
            State::Ready { .. } => VmState::VM_STATE_READY,
            State::Exited(_) => VmState::VM_STATE_EXITED,
        };
        Ok(vmm::InfoResponse {
            protocol_version: PROTOCOL_VERSION,
            vmm_version: env!("CARGO_PKG_VERSION").into(),
            state: state.into(),
            pid: std::process::id(),
            monitor_pid: self.0.monitor_pid,
            ..Default::default()
        })
    }

    async fn wait_ready(&self, _: &TtrpcContext, _: vmm::WaitReadyRequest) -> Answer<vmm::WaitReadyResponse> {
        match self.0.past_boot().await {
            State::Ready { boot_us } => Ok(vmm::WaitReadyResponse { boot_us, ..Default::default() }),
            State::Exited(record) => Err(get_rpc_status(Code::ABORTED, record.message)),
            State::Booting => Err(get_rpc_status(Code::ABORTED, "bulkhead-vmm is ending")),
        }
    }

    async fn wait_exit(&self, _: &TtrpcContext, _: vmm::WaitExitRequest) -> Answer<vmm::WaitExitResponse> {
        let mut state = self.0.state.subscribe();
        let gone = |_| get_rpc_status(Code::ABORTED, "bulkhead-vmm is ending");
        let state = state.wait_for(|state| matches!(state, State::Exited(_))).await.map_err(gone)?;
        let State::Exited(record) = &*state else { return Err(get_rpc_status(Code::INTERNAL, "no exit")) };
        let exit = vmm::VmExit {
            reason: protobuf::EnumOrUnknown::from_i32(record.reason),
            message: record.message.clone(),
            at_ns: record.at_ns,
            ..Default::default()
        };
        Ok(vmm::WaitExitResponse { exit: MessageField::some(exit), ..Default::default() })
    }

    async fn map_image(&self, _: &TtrpcContext, request: vmm::MapImageRequest) -> Answer<vmm::MapImageResponse> {
        let mut parts = Vec::with_capacity(request.parts.len());
        for part in &request.parts {
            parts.push((File::from(self.0.take(&part.descriptor_token)?), part.length));
        }
        let extent = self.0.images.map(&request.image_id, parts).map_err(|e| failed(&e))?;
        Ok(vmm::MapImageResponse { start_sector: extent.start_sector, sectors: extent.sectors, ..Default::default() })
    }

    async fn unmap_image(&self, _: &TtrpcContext, request: vmm::UnmapImageRequest) -> Answer<vmm::UnmapImageResponse> {
        self.0.images.unmap(&request.image_id);
        Ok(vmm::UnmapImageResponse::new())
    }

    async fn attach_log(&self, _: &TtrpcContext, request: vmm::AttachLogRequest) -> Answer<vmm::AttachLogResponse> {
        let file = match request.descriptor_token.as_str() {
            "" => None,
            token => Some(File::from(self.0.take(token)?)),
        };
        self.0.logs.attach(&request.container_id, file, &self.0.vsock).map_err(|e| failed(&e))?;
        Ok(vmm::AttachLogResponse::new())
    }

    async fn reopen_log(&self, _: &TtrpcContext, request: vmm::ReopenLogRequest) -> Answer<vmm::ReopenLogResponse> {
        let file = File::from(self.0.take(&request.descriptor_token)?);
        self.0.logs.reopen(&request.container_id, file).map_err(|e| failed(&e))?;
        Ok(vmm::ReopenLogResponse::new())
    }

    async fn wait_log(&self, _: &TtrpcContext, request: vmm::WaitLogRequest) -> Answer<vmm::WaitLogResponse> {
        let end = self.0.logs.wait(&request.container_id).await.map_err(|e| failed(&e))?;
        let exit = end.exit.map(|exit| vmm::ContainerExit {
            code: exit.code,
            oom_killed: exit.oom_killed,
            finished_at_ns: exit.finished_at_ns,
            ..Default::default()
        });
        Ok(vmm::WaitLogResponse { exit: exit.into(), lost_bytes: end.lost_bytes, ..Default::default() })
    }

    async fn detach_log(&self, _: &TtrpcContext, request: vmm::DetachLogRequest) -> Answer<vmm::DetachLogResponse> {
        self.0.logs.detach(&request.container_id);
        Ok(vmm::DetachLogResponse::new())
    }

    async fn add_volume(&self, _: &TtrpcContext, request: vmm::AddVolumeRequest) -> Answer<vmm::AddVolumeResponse> {
        let mount = self.0.take(&request.descriptor_token)?;
        self.0.volumes()?.add(&request.name, mount.as_fd(), request.directory).map_err(|e| failed(&e))?;
        Ok(vmm::AddVolumeResponse::new())
    }

    async fn remove_volume(
        &self,
        _: &TtrpcContext,
        request: vmm::RemoveVolumeRequest,
    ) -> Answer<vmm::RemoveVolumeResponse> {
        self.0.volumes()?.remove(&request.name).map_err(|e| failed(&e))?;
        Ok(vmm::RemoveVolumeResponse::new())
    }

    async fn statistics(&self, _: &TtrpcContext, _: vmm::StatisticsRequest) -> Answer<vmm::StatisticsResponse> {
        let sum = |of: fn(&BlockCounters) -> u64| self.0.counters.iter().map(|counters| of(counters)).sum();
        Ok(vmm::StatisticsResponse {
            vmm_memory_bytes: memory::own_bytes(std::process::id()).map_err(|e| failed(&e))?,
            monitor_memory_bytes: memory::own_bytes(self.0.monitor_pid).map_err(|e| failed(&e))?,
            block_read_bytes: sum(BlockCounters::read_bytes),
            block_written_bytes: sum(BlockCounters::written_bytes),
            vsock_rx_bytes: self.0.vsock.counters().to_guest_bytes(),
            vsock_tx_bytes: self.0.vsock.counters().from_guest_bytes(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: vmm::ShutdownRequest) -> Answer<vmm::ShutdownResponse> {
        self.0.shut_down();
        Ok(vmm::ShutdownResponse::new())
    }
}
