//! What only PID 1 of a guest does.
//!
//! As little as possible happens before the host is told that the pod is ready; the rest waits for its first use.

mod cmdline;
mod cpus;
mod drives;
mod machine;
mod mounts;
mod network;
mod shell;
mod shutdown;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use bulkhead_proto::{AGENT_READY_PORT, AGENT_RPC_PORT, AGENT_STDIO_PORT};
use rustix::process::{Resource, Rlimit, setrlimit};
use tokio::sync::Notify;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};

use crate::container::cgroups::PodCgroup;
use crate::container::volumes::Share;
use crate::log::info;
use crate::reaper::{self, Reaper};
use crate::rpc::Service;
use crate::sandbox::{Parts, Sandbox};
use crate::server;

/// Descriptors that the agent and, unless told otherwise, its containers may open.
const OPEN_FILES: u64 = 1 << 20;

/// virtio-fs tag of the pod's volumes.
const VOLUMES_TAG: &str = "volumes";

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Runs the guest until it is shut down; never returns while the kernel obeys.
#[must_use]
pub fn main() -> ExitCode {
    shutdown::power_off_on_panic();
    match start() {
        Ok(()) => shutdown::power_off(),
        Err(error) => shutdown::give_up(&error.to_string()),
    }
}

fn start() -> Result<(), Failure> {
    mounts::root()?;
    mounts::early()?;
    // The kernel drops all but ten lines in five seconds otherwise.
    fs::write("/proc/sys/kernel/printk_devkmsg", "on\n")?;
    crate::log::to_kernel_log();
    // Every start and end of a container waits for grace periods; the pod's vCPUs are few and its own.
    fs::write("/sys/kernel/rcu_expedited", "1")?;
    let limit = Rlimit { current: Some(OPEN_FILES), maximum: Some(OPEN_FILES) };
    setrlimit(Resource::Nofile, limit)?;
    let cgroup = mounts::cgroups()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(run(cgroup));
    // A worker that hangs in a mount must not keep the guest from ending.
    runtime.shutdown_background();
    result
}

async fn run(cgroup: PodCgroup) -> Result<(), Failure> {
    let reaper = Arc::new(Reaper::default());
    tokio::spawn(Arc::clone(&reaper).run(reaper::child_signal()?));
    let sandbox = Arc::new(Sandbox::new(Parts {
        state: PathBuf::from("/run/agent"),
        volumes: (PathBuf::from("/run/volumes"), Share::Tag(VOLUMES_TAG.into())),
        helper: PathBuf::from("/proc/self/exe"),
        cgroup,
        reaper,
        platform: Box::new(machine::Machine::default()),
    })?);
    let bind = |port| VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port));
    let (rpc, stdio) = (bind(AGENT_RPC_PORT)?, bind(AGENT_STDIO_PORT)?);
    let shutdown = Arc::new(Notify::new());
    let service =
        Service { sandbox: Arc::clone(&sandbox), shutdown: Arc::clone(&shutdown), boot_us: server::since_boot_us() };
    let _server = server::serve_rpc(rpc.into(), service).await?;
    let stdio = Arc::new(stdio);
    tokio::spawn(server::serve_stdio(Arc::clone(&sandbox), move || {
        let stdio = Arc::clone(&stdio);
        async move { Ok(stdio.accept().await?.0) }
    }));
    // Kept open: its end tells the host that the agent is gone.
    let _ready = VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, AGENT_READY_PORT))
        .await
        .map_err(|error| format!("cannot tell the host that the pod is ready: {error}"))?;
    let options = cmdline::read();
    if options.debug {
        info!("ready after {} us", server::since_boot_us());
    }
    if options.debug_shell
        && let Err(error) = shell::start()
    {
        crate::log::warning!("cannot answer on the console: {error}");
    }
    server::until_shutdown(shutdown).await?;
    tokio::task::spawn_blocking(move || {
        sandbox.tear_down();
        sandbox.platform.shut_down();
    })
    .await?;
    Ok(())
}
