//! Starting a pod's `bulkhead-vmm`.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use bulkhead_proto::launch::{DeviceLimits, JailUser, Launch, Monitor, PROTOCOL_VERSION};
use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, AsyncReadExt};
use tokio::process::Command;

use super::death::{self, Death};
use super::place::Place;
use super::{Machine, MachineError, MachinePaths};
use crate::error_text;
use crate::sys;
use crate::sys::process::Process;

/// Longest wait for the process's `ok`.
const ORDER_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes of its answer.
const MAX_ANSWER: u64 = 16 * 1024;

/// What a pod's machine is made of.
#[derive(Debug)]
pub struct Plan {
    /// For messages.
    pub sandbox_id: String,
    /// Where its sockets and files go; the directory exists.
    pub paths: MachinePaths,
    /// The `bulkhead-vmm` binary.
    pub vmm: PathBuf,
    /// The `bulkhead-fs` binary; a pod without a machine needs none.
    pub file_server: Option<PathBuf>,
    /// What runs the guest.
    pub monitor: Monitor,
    /// Guest kernel.
    pub kernel: PathBuf,
    /// Guest initramfs.
    pub initramfs: PathBuf,
    /// Appended to the kernel command line.
    pub kernel_arguments: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// What the balloon holds of it from boot on, in MiB.
    pub balloon_mib: u64,
    /// A guest that runs out of memory may take back what the balloon holds.
    pub deflate_on_oom: bool,
    /// The queues of the pod's tap; a pod without a machine has none.
    pub tap: Vec<OwnedFd>,
    /// The scratch drive's file, open for reading and writing; a pod without a machine has none.
    pub scratch: Option<File>,
    /// The guest's console takes input.
    pub debug_console: bool,
    /// User and group that the process is jailed as; `None` for a monitor that has no jail.
    pub user: Option<u32>,
    /// How much its devices may move.
    pub limits: DeviceLimits,
    /// The process's cgroup, if the host has a hierarchy for it.
    pub cgroup: Option<Place>,
}

/// Starts the process and gives it its orders, which it carries out in the pod's cgroup. The guest boots when this returns.
pub async fn launch(plan: Plan) -> Result<Machine, MachineError> {
    let spawn_failed = |source| MachineError::Spawn { binary: plan.vmm.clone(), source };
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(spawn_failed)?;
    let log = File::create(plan.paths.log()).map_err(spawn_failed)?;
    let mut child = Command::new(&plan.vmm)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::from(log))
        .current_dir("/")
        .spawn()
        .map_err(spawn_failed)?;
    let mut jailed = None;
    let result = give_orders(&plan, child.id(), ours, &mut jailed).await;
    match result {
        Ok(()) => {
            // The machine's own end is learnt from its control socket, or from its record.
            let death = Death::watch(child, jailed, plan.cgroup.as_ref().map(|place| place.cgroup().clone()));
            Ok(Machine::connect(plan.paths.clone()).await?.with_death(death))
        }
        Err(error) => {
            let _ = child.kill().await;
            if let Some(process) = jailed {
                // One that is gone already is as good.
                let _ = process.signal(Signal::KILL);
                death::reap(&process).await;
            }
            Err(error)
        }
    }
}

async fn give_orders(
    plan: &Plan,
    pid: Option<u32>,
    socket: std::os::unix::net::UnixStream,
    jailed: &mut Option<Process>,
) -> Result<(), MachineError> {
    let refused = |detail: String| MachineError::Launch { binary: plan.vmm.clone(), detail };
    let cgroup = match &plan.cgroup {
        Some(place) => Some(place.enter(pid).await.map_err(|e| refused(error_text(&e)))?),
        None => None,
    };
    let (orders, descriptors) = orders(plan, cgroup.as_ref().map(AsFd::as_fd));
    let bytes = serde_json::to_vec(&orders).map_err(|e| refused(e.to_string()))?;
    sys::descriptors::send_with(&socket, &bytes, &descriptors).map_err(|e| refused(e.to_string()))?;
    socket.set_nonblocking(true).map_err(|e| refused(e.to_string()))?;
    let socket = tokio::net::UnixStream::from_std(socket).map_err(|e| refused(e.to_string()))?;
    let mut lines = tokio::io::BufReader::new(socket).take(MAX_ANSWER);
    let mut answer = String::new();
    let conversation = async {
        lines.read_line(&mut answer).await?;
        if let Some(pid) = answer.strip_prefix("pid ").and_then(|pid| pid.trim().parse().ok()) {
            // A child of this daemon, which nobody else reaps: the number is good.
            *jailed = Some(Process::open(pid)?);
            answer.clear();
            lines.read_line(&mut answer).await?;
        }
        Ok::<_, std::io::Error>(())
    };
    let read = tokio::time::timeout(ORDER_TIMEOUT, conversation).await;
    match read {
        Ok(Ok(())) if answer.trim_end() == "ok" => Ok(()),
        Ok(Ok(())) if !answer.is_empty() => Err(refused(answer.trim_start_matches("error:").trim().to_owned())),
        Ok(_) => Err(refused(format!("it ended at once; its log says:\n{}", log_tail(plan)))),
        Err(_) => {
            Err(refused(format!("no answer within {} s; its log says:\n{}", ORDER_TIMEOUT.as_secs(), log_tail(plan))))
        }
    }
}

fn log_tail(plan: &Plan) -> String {
    MachinePaths::tail(&plan.paths.log(), 10)
}

fn orders<'a>(plan: &'a Plan, cgroup: Option<BorrowedFd<'a>>) -> (Launch, Vec<BorrowedFd<'a>>) {
    let mut descriptors: Vec<BorrowedFd<'a>> = Vec::new();
    descriptors.extend(plan.tap.iter().map(AsFd::as_fd));
    let taps = if plan.tap.is_empty() { Vec::new() } else { vec![(0..plan.tap.len()).collect()] };
    let mut scratch = None;
    if let Some(file) = &plan.scratch {
        scratch = Some(descriptors.len());
        descriptors.push(file.as_fd());
    }
    let cgroup = cgroup.map(|directory| {
        descriptors.push(directory);
        descriptors.len() - 1
    });
    let launch = Launch {
        protocol_version: PROTOCOL_VERSION,
        sandbox_id: plan.sandbox_id.clone(),
        control_socket: plan.paths.control(),
        descriptor_socket: plan.paths.descriptors(),
        vsock_socket: plan.paths.vsock(),
        exit_file: plan.paths.exit_file(),
        console_file: plan.paths.console(),
        monitor: plan.monitor.clone(),
        kernel: plan.kernel.clone(),
        initramfs: plan.initramfs.clone(),
        kernel_arguments: plan.kernel_arguments.clone(),
        vcpus: plan.vcpus,
        memory_mib: plan.memory_mib,
        balloon_mib: plan.balloon_mib,
        deflate_on_oom: plan.deflate_on_oom,
        taps,
        scratch_drive: scratch,
        file_server: plan.file_server.clone(),
        cgroup,
        debug_console: plan.debug_console,
        jail: plan.user.map(|id| JailUser { uid: id, gid: id }),
        limits: plan.limits,
    };
    (launch, descriptors)
}
