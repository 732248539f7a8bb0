//! A pod's process from its orders to its last word.
//!
//! ```text
//! orders -> devices served -> file server, QEMU spawned -> "ok" -> agent reports: Ready -> QEMU ends: exit record
//! ```
//!
//! Children are spawned by the main thread, before the runtime starts: they die with it (PR_SET_PDEATHSIG).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bulkhead_proto::launch::Launch;
use bulkhead_proto::vmm_ttrpc::create_vmm;
use bulkhead_proto::{AGENT_READY_PORT, GUEST_CID};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::net::UnixListener;
use tokio::sync::{Notify, watch};

use crate::console::Console;
use crate::control::{Control, Service, State};
use crate::descriptors::Descriptors;
use crate::devices::block::{BlockConfig, BlockDevice, FlushPolicy, ImageDrive, RawFile};
use crate::devices::vsock::{VsockConfig, VsockDevice, VsockHandle};
use crate::launch::{LaunchError, Orders};
use crate::logs::Logs;
use crate::monitor::{self, Machine};
use crate::vhost_user::{ServeError, ServerHandle, serve_block, serve_vsock};
use crate::volumes::{FileServer, VolumeError};
use crate::{exit, sys};

/// How long a booted guest may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long logs may take to drain after the guest's end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the machine does not run.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum PodError {
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error("cannot {step}")]
    Setup { step: &'static str, source: io::Error },
    #[error("cannot listen on {}", path.display())]
    Listen { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    Volumes(#[from] VolumeError),
    #[error("cannot start the monitor {}", binary.display())]
    Monitor { binary: PathBuf, source: io::Error },
    #[error("the control socket: {0}")]
    Control(#[from] ttrpc::Error),
}

impl PodError {
    fn setup<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Setup { step, source: source.into() }
    }
}

/// Runs the pod that standard input orders.
pub fn main() -> ExitCode {
    let mut orders = match Orders::receive() {
        Ok(orders) => orders,
        Err(error) => {
            tracing::error!("{}", crate::error_text(&error));
            return ExitCode::FAILURE;
        }
    };
    // The daemon's terminal and session are not ours; EPERM means that we lead a session already.
    let _ = rustix::process::setsid();
    let pod = match Pod::start(&mut orders) {
        Ok(pod) => pod,
        Err(error) => {
            let text = crate::error_text(&error);
            tracing::error!("{text}");
            orders.answer(Err(text));
            return ExitCode::FAILURE;
        }
    };
    match pod.run(orders) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", crate::error_text(&error));
            ExitCode::FAILURE
        }
    }
}

/// A machine whose monitor runs.
struct Pod {
    launch: Launch,
    control: Control,
    monitor: Child,
    console: Console,
    console_thread: std::thread::JoinHandle<()>,
    servers: Vec<ServerHandle>,
    started: Instant,
}

/// Devices that wait for the monitor to connect.
struct Devices {
    vsock: VsockHandle,
    images: Arc<ImageDrive>,
    drives: Vec<Arc<BlockDevice>>,
    servers: Vec<ServerHandle>,
    sockets: Vec<PathBuf>,
}

impl Pod {
    fn start(orders: &mut Orders) -> Result<Self, PodError> {
        let launch = orders.launch.clone();
        let dir = launch.control_socket.parent().unwrap_or(Path::new("/")).to_owned();
        let devices = serve_devices(orders, &launch, &dir)?;
        let mut volumes = None;
        let mut file_server = None;
        if let Some(binary) = &launch.file_server {
            let path = dir.join("volumes.vu");
            file_server = Some(FileServer::start(binary, listen(&path)?)?);
            volumes = Some(path);
        }
        let taps = launch.taps.iter().map(|index| orders.take(*index)).collect::<Result<Vec<_>, _>>()?;
        let machine =
            Machine { vsock: devices.sockets[0].clone(), drives: devices.sockets[1..].to_vec(), volumes, taps: &taps };
        let started = Instant::now();
        let (monitor, output) = spawn(&launch, &machine)?;
        let console = Console::default();
        let console_thread = console
            .follow(std::fs::File::from(output), &launch.console_file)
            .map_err(PodError::setup("follow the console"))?;
        let control = Control {
            state: watch::Sender::new(State::Booting),
            images: devices.images,
            counters: devices.drives.iter().map(|drive| drive.counters()).collect(),
            vsock: devices.vsock,
            logs: Logs::default(),
            descriptors: Descriptors::default(),
            file_server,
            monitor_pid: monitor.id(),
            asked_to_end: AtomicBool::new(false),
            end: Notify::new(),
        };
        Ok(Self { launch, control, monitor, console, console_thread, servers: devices.servers, started })
    }

    /// Answers the orders, serves until the monitor has ended, leaves the exit record.
    fn run(self, orders: Orders) -> Result<(), PodError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(PodError::setup("start the runtime"))?;
        let Self { launch, control, mut monitor, console, console_thread, servers, started } = self;
        let control = Arc::new(control);
        runtime.block_on(async {
            // Lives past the exit record: whoever loses the connection finds the record.
            let _server = serve(&launch, &control, started).await.inspect_err(|_| drop(monitor.kill()))?;
            orders.answer(Ok(()));
            monitor_ended(&control, &monitor).await.inspect_err(|_| drop(monitor.kill()))?;
            let status = monitor.wait().map_err(PodError::setup("reap the monitor"))?;
            // The pipe's last writer is gone, so this ends.
            let _ = console_thread.join();
            for server in servers {
                server.stop();
                server.join();
            }
            drain_logs(&control).await;
            leave_record(&launch, &control, status, &console.lines())
        })
    }
}

/// Writes down how the machine ended, and tells those who wait.
fn leave_record(launch: &Launch, control: &Control, status: ExitStatus, lines: &[String]) -> Result<(), PodError> {
    let evidence = exit::Evidence {
        status,
        asked: control.asked_to_end.load(Ordering::SeqCst),
        was_ready: matches!(*control.state.borrow(), State::Ready { .. }),
        lines,
    };
    let (reason, message) = exit::classify(&evidence);
    tracing::info!("{message}");
    let record = exit::write_record(&launch.exit_file, reason, &message, control.logs.exits())
        .map_err(PodError::setup("write the exit record"))?;
    control.state.send_replace(State::Exited(record));
    Ok(())
}

fn serve_devices(orders: &mut Orders, launch: &Launch, dir: &Path) -> Result<Devices, PodError> {
    let vsock = VsockConfig {
        guest_cid: GUEST_CID,
        listen_path: Some(launch.vsock_socket.clone()),
        connect_timeout: CONNECT_TIMEOUT,
    };
    let (vsock, handle) =
        VsockDevice::new(vsock).map_err(|source| PodError::Listen { path: launch.vsock_socket.clone(), source })?;
    let images = Arc::new(ImageDrive::new());
    let drive = |serial: &str| BlockConfig { serial: serial.to_owned(), queues: 1 };
    let mut drives = vec![Arc::new(BlockDevice::new(images.clone(), drive("images")))];
    if let Some(index) = launch.scratch_drive {
        let scratch = RawFile::new(orders.take(index)?.into(), FlushPolicy::Ephemeral)
            .map_err(PodError::setup("open the scratch drive"))?;
        drives.push(Arc::new(BlockDevice::new(Arc::new(scratch), drive("scratch"))));
    }
    let mut sockets = vec![dir.join("vsock.vu")];
    let mut servers = vec![serve_vsock(vsock, listen(&sockets[0])?, "vsock")?];
    for (name, device) in ["images", "scratch"].iter().zip(&drives) {
        let socket = dir.join(format!("{name}.vu"));
        servers.push(serve_block(device.clone(), listen(&socket)?, name)?);
        sockets.push(socket);
    }
    Ok(Devices { vsock: handle, images, drives, servers, sockets })
}

fn listen(path: &Path) -> Result<StdUnixListener, PodError> {
    StdUnixListener::bind(path).map_err(|source| PodError::Listen { path: path.to_owned(), source })
}

/// Starts the monitor; its output is the console.
fn spawn(launch: &Launch, machine: &Machine<'_>) -> Result<(Child, OwnedFd), PodError> {
    let mut command = monitor::command(launch, machine);
    let failed = |source| PodError::Monitor { binary: command_path(launch), source };
    let (output, input) = io::pipe().map_err(failed)?;
    let errors = input.try_clone().map_err(failed)?;
    command.stdin(Stdio::null()).stdout(Stdio::from(input)).stderr(Stdio::from(errors));
    let inherited: Vec<_> = machine.taps.iter().map(AsFd::as_fd).collect();
    sys::inherit(&mut command, &inherited).map_err(failed)?;
    let child = command.spawn().map_err(failed)?;
    Ok((child, output.into()))
}

fn command_path(launch: &Launch) -> PathBuf {
    let bulkhead_proto::launch::Monitor::Qemu { binary, .. } = &launch.monitor;
    binary.clone()
}

/// Opens the sockets for the daemon and starts everything that runs beside the monitor.
async fn serve(launch: &Launch, control: &Arc<Control>, started: Instant) -> Result<ttrpc::r#async::Server, PodError> {
    let descriptors = UnixListener::bind(&launch.descriptor_socket)
        .map_err(|source| PodError::Listen { path: launch.descriptor_socket.clone(), source })?;
    tokio::spawn(control.descriptors.clone().serve(descriptors));
    let address = format!("unix://{}", launch.control_socket.display());
    let mut server =
        ttrpc::r#async::Server::new().bind(&address)?.register_service(create_vmm(Arc::new(Service(control.clone()))));
    server.start().await?;
    let ready = control.vsock.listen(AGENT_READY_PORT).map_err(PodError::setup("listen for the agent"))?;
    tokio::spawn(watch_agent(control.clone(), ready, started));
    spawn_signal_watch(control)?;
    Ok(server)
}

/// The agent's first connection to the ready port is its report; it keeps it for as long as it lives.
async fn watch_agent(
    control: Arc<Control>,
    mut ready: tokio::sync::mpsc::Receiver<std::os::unix::net::UnixStream>,
    started: Instant,
) {
    let Some(_lifeline) = ready.recv().await else { return };
    let boot_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
    tracing::info!(boot_us, "the agent listens");
    control.state.send_replace(State::Ready { boot_us });
    // Further connections are nobody's; the first stays open until the end.
    while ready.recv().await.is_some() {}
}

fn spawn_signal_watch(control: &Arc<Control>) -> Result<(), PodError> {
    use tokio::signal::unix::{SignalKind, signal};
    let setup = || PodError::setup::<io::Error>("watch for signals");
    let mut terminate = signal(SignalKind::terminate()).map_err(setup())?;
    // A hang-up of the daemon's terminal means nothing to a pod.
    let mut hang_up = signal(SignalKind::hangup()).map_err(setup())?;
    let control = control.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => control.shut_down(),
                _ = hang_up.recv() => {}
            }
        }
    });
    Ok(())
}

async fn monitor_ended(control: &Arc<Control>, monitor: &Child) -> Result<(), PodError> {
    let setup = || PodError::setup::<io::Error>("watch the monitor");
    let pid = i32::try_from(monitor.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| setup()(io::ErrorKind::InvalidInput.into()))?;
    let descriptor = pidfd_open(pid, PidfdFlags::NONBLOCK).map_err(|e| setup()(e.into()))?;
    let watched = sys::watch_readable(descriptor).map_err(setup())?;
    loop {
        tokio::select! {
            ended = watched.readable() => {
                ended.map_err(setup())?.retain_ready();
                return Ok(());
            }
            () = control.end.notified() => {
                pidfd_send_signal(watched.get_ref(), Signal::KILL).map_err(|e| setup()(e.into()))?;
            }
        }
    }
}

/// Lets log threads write what the guest had sent before it ended.
async fn drain_logs(control: &Control) {
    let all = control.logs.wait_all();
    if tokio::time::timeout(DRAIN_TIMEOUT, all).await.is_err() {
        tracing::warn!("logs are not drained {} s after the guest's end", DRAIN_TIMEOUT.as_secs());
    }
}
