//! From orders to a machine that can boot. Runs in a process with one thread until every child is spawned.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bulkhead_proto::GUEST_CID;
use bulkhead_proto::launch::{DeviceLimits, Launch, Monitor};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::agent_link::AgentLink;
use crate::console::{Console, ConsoleFile, Words};
use crate::devices::balloon::{Balloon, BalloonDevice, BalloonHandle, pages};
use crate::devices::block::{
    BlockBackend, BlockConfig, BlockCounters, BlockDevice, FlushPolicy, ImageDrive, RawFile, VirtioBlock,
};
use crate::devices::console::Keyboard;
use crate::devices::fs::{Fs, FsConfig, connected};
use crate::devices::net::{Net, NetBackend, NetConfig, NetCounters, NetDevice, Tap, TapError};
use crate::devices::rng::Rng;
use crate::devices::vsock::{VirtioVsock, VsockConfig, VsockDevice};
use crate::launch::Orders;
use crate::monitor::microvm::{self, Prepared};
use crate::monitor::{self, Backends, MonitorError, Running};
use crate::native;
use crate::state::Snapshot;
use crate::sys;
use crate::vhost_user::{ServeError, ServerHandle, serve_block, serve_vsock};

/// What the agent mounts; QEMU's command line says the same.
const VOLUMES_TAG: &str = "volumes";
/// Request queues of the scratch drive: one for each processor, but no more than this, because each has a thread and a ring in
/// every pod's process. As QEMU's command line says it, its drives have one.
const MAX_SCRATCH_QUEUES: u32 = 2;
/// Longest wait for the guest to answer a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a machine does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A socket, file or directory.
    #[error("cannot {step} {}: {source}", path.display())]
    Path {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The guest's sockets or scratch drive.
    #[error("cannot make the guest's {device}: {source}")]
    Device {
        /// Which.
        device: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A network device.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The jail.
    #[error(transparent)]
    Jail(#[from] crate::jail::JailError),
    /// A device's threads.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// QEMU, or our own machine.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
}

/// What runs the guest.
#[derive(Debug)]
pub enum Guest {
    /// QEMU boots, and the devices' threads serve it; or an agent on the host runs, without any.
    Process(Running, Vec<ServerHandle>),
    /// Complete; its processors have not started.
    Microvm(Box<Prepared>),
}

/// A machine before anybody looks after it.
#[derive(Debug)]
pub struct Started {
    /// What runs it.
    pub guest: Guest,
    /// The file server's process and the socket for its requests.
    pub file_server: Option<(Child, UnixStream)>,
    /// vmm.proto is served here.
    pub control: UnixListener,
    /// Descriptors come in here.
    pub descriptors: UnixListener,
    /// The way to the agent.
    pub agent: AgentLink,
    /// The drive that images appear on.
    pub images: Arc<ImageDrive>,
    /// Of both drives.
    pub block_counters: Vec<Arc<BlockCounters>>,
    /// Of the network devices; QEMU has its own.
    pub net_counters: Vec<Arc<NetCounters>>,
    /// Sets how much memory the guest gives up; QEMU's machine has no such device.
    pub balloon: Option<BalloonHandle>,
    /// Types on the console of our own machine, where that was asked for.
    pub keyboard: Option<Keyboard>,
    /// The guest's console.
    pub console: Words,
    /// Where it is kept.
    pub console_file: Arc<Mutex<ConsoleFile>>,
}

/// Starts everything. On an error nothing is left: children end with this process, files are removed.
///
/// # Errors
/// When anything that the machine needs cannot be had.
pub fn start(orders: Orders) -> Result<Started, StartError> {
    let Orders { launch, taps, scratch, .. } = orders;
    let result = match &launch.monitor {
        Monitor::Microvm {} => build(&launch, taps, scratch, prepare_microvm),
        Monitor::Qemu { binary, accelerator } => {
            build(&launch, taps, scratch, |launch, _, devices| start_qemu(launch, (binary, accelerator), devices))
        }
        Monitor::Native(pod) => native::start(&launch, pod),
    };
    if result.is_err() {
        remove_sockets(&launch);
    }
    result
}

/// Makes what every machine has, and hands it to `run`.
fn build(
    launch: &Launch,
    taps: Vec<Vec<OwnedFd>>,
    scratch: Option<File>,
    run: impl FnOnce(&Launch, Console, Devices) -> Result<Run, StartError>,
) -> Result<Started, StartError> {
    monitor::check_files(launch)?;
    let console_file = ConsoleFile::open(&launch.console_file);
    let console_file = console_file.map_err(at("open the console file", &launch.console_file))?;
    let (console, console_file) = (Words::default(), Arc::new(Mutex::new(console_file)));
    let control = listen(&launch.control_socket)?;
    let descriptors = listen(&launch.descriptor_socket)?;
    let device = |device| move |source| StartError::Device { device, source };
    let vsock_config = VsockConfig {
        guest_cid: GUEST_CID,
        listen_path: Some(launch.vsock_socket.clone()),
        connect_timeout: CONNECT_TIMEOUT,
    };
    let (vsock_device, vsock) = VsockDevice::new(vsock_config).map_err(device("sockets"))?;
    let scratch =
        scratch.map(|file| RawFile::new(file, FlushPolicy::Ephemeral)).transpose().map_err(device("scratch drive"))?;
    let images = Arc::new(ImageDrive::new());
    let image_device = block_device(launch, "images", 1, images.clone());
    let queues = scratch_queues(launch);
    let scratch_device = scratch.map(|scratch| block_device(launch, "scratch", queues, Arc::new(scratch)));
    let block_counters = [Some(&image_device), scratch_device.as_ref()];
    let block_counters = block_counters.into_iter().flatten().map(|device| device.counters()).collect();
    let devices = Devices { vsock: vsock_device, images: image_device, scratch: scratch_device, taps };
    let Run { guest, file_server, net_counters, balloon, keyboard } =
        run(launch, Console::new(console.clone(), console_file.clone()), devices)?;
    let agent = AgentLink::Vsock(vsock);
    Ok(Started {
        guest,
        file_server,
        control,
        descriptors,
        agent,
        images,
        block_counters,
        net_counters,
        balloon,
        keyboard,
        console,
        console_file,
    })
}

/// What every machine has.
struct Devices {
    vsock: VsockDevice,
    images: Arc<BlockDevice>,
    scratch: Option<Arc<BlockDevice>>,
    taps: Vec<Vec<OwnedFd>>,
}

type FileServer = (Child, UnixStream);

/// What a monitor makes of them.
struct Run {
    guest: Guest,
    file_server: Option<FileServer>,
    net_counters: Vec<Arc<NetCounters>>,
    balloon: Option<BalloonHandle>,
    keyboard: Option<Keyboard>,
}

fn start_qemu(launch: &Launch, (binary, accelerator): (&Path, &str), devices: Devices) -> Result<Run, StartError> {
    let pairs = Pairs::make(launch, devices.scratch.is_some())?;
    let Pairs { vsock: vsock_pair, images: image_pair, scratch: scratch_pair, volumes: volume_pair } = pairs;
    let (file_server, volume_connection) = start_volumes(launch, volume_pair)?.unzip();
    let (scratch_listener, scratch_connection) = scratch_pair.unzip();
    let backends =
        Backends { vsock: vsock_pair.1, images: image_pair.1, scratch: scratch_connection, volumes: volume_connection };
    let running = match monitor::start_qemu(launch, binary, accelerator, devices.taps, backends) {
        Ok(running) => running,
        Err(error) => {
            end_file_server(file_server);
            return Err(error.into());
        }
    };
    // Threads from here on. QEMU waits for the first words of the devices.
    let mut servers =
        vec![serve_vsock(devices.vsock, vsock_pair.0, "vsock")?, serve_block(devices.images, image_pair.0, "images")?];
    if let (Some(scratch), Some(listener)) = (devices.scratch, scratch_listener) {
        servers.push(serve_block(scratch, listener, "scratch")?);
    }
    let guest = Guest::Process(running, servers);
    Ok(Run { guest, file_server, net_counters: Vec::new(), balloon: None, keyboard: None })
}

/// Opens all that the machine needs. KVM ties it to this process, so nothing may fork from here on.
fn prepare_microvm(launch: &Launch, console: Console, devices: Devices) -> Result<Run, StartError> {
    let volumes = launch.file_server.is_some().then(|| Pairs::one(launch)).transpose()?;
    let (file_server, connection) = start_volumes(launch, volumes)?.unzip();
    match prepare_devices(launch, console, devices, connection) {
        Ok(run) => Ok(Run { file_server, ..run }),
        Err(error) => {
            end_file_server(file_server);
            Err(error)
        }
    }
}

/// In the order in which the guest finds them, behind its console.
fn prepare_devices(
    launch: &Launch,
    console: Console,
    devices: Devices,
    volumes: Option<UnixStream>,
) -> Result<Run, StartError> {
    let device = |device| move |source| StartError::Device { device, source };
    let keyboard = launch.debug_console.then(Keyboard::new).transpose().map_err(device("console"))?;
    let balloon = BalloonDevice::new().map_err(device("balloon"))?;
    let balloon = Balloon::new(balloon.with_deflate_on_oom(launch.deflate_on_oom));
    let (mut net_counters, handle) = (Vec::new(), balloon.handle());
    // The driver looks at it when it starts.
    handle.set_target(pages(launch.balloon_mib << 20));
    let mut all: Vec<Box<dyn Snapshot>> =
        vec![Box::new(VirtioVsock::new(devices.vsock)), Box::new(VirtioBlock::new("images", devices.images))];
    if let Some(scratch) = devices.scratch {
        all.push(Box::new(VirtioBlock::new("scratch", scratch)));
    }
    for (index, queues) in devices.taps.into_iter().enumerate() {
        let device = network(index, queues, launch.limits)?;
        net_counters.push(device.counters());
        all.push(Box::new(Net::new(device)));
    }
    all.push(Box::new(Rng::default()));
    if let Some(connection) = volumes {
        let config = FsConfig { tag: VOLUMES_TAG.to_owned(), request_queues: 1 };
        all.push(Box::new(Fs::new(config, connected(connection))));
    }
    all.push(Box::new(balloon));
    let prepared = microvm::prepare(launch, console, keyboard.clone(), all)?;
    let guest = Guest::Microvm(Box::new(prepared));
    Ok(Run { guest, file_server: None, net_counters, balloon: Some(handle), keyboard })
}

/// The pod's agent gives it the address and MTU that CNI chose.
fn network(index: usize, queues: Vec<OwnedFd>, limits: DeviceLimits) -> Result<NetDevice, StartError> {
    let queues = queues.into_iter().map(|queue| Ok(Box::new(Tap::new(queue)?) as Box<dyn NetBackend>));
    let queues = queues.collect::<Result<_, TapError>>()?;
    let config = NetConfig {
        name: format!("net{index}"),
        mac: None,
        mtu: None,
        rx_limits: limits.ingress.into(),
        tx_limits: limits.egress.into(),
    };
    Ok(NetDevice::new(queues, config))
}

fn start_volumes(launch: &Launch, pair: Option<Pair>) -> Result<Option<(FileServer, UnixStream)>, StartError> {
    let (Some(binary), Some((listener, connection))) = (&launch.file_server, pair) else { return Ok(None) };
    Ok(Some((start_file_server(binary, listener)?, connection)))
}

fn end_file_server(server: Option<FileServer>) {
    if let Some((mut child, _)) = server {
        // Already gone is as good.
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn scratch_queues(launch: &Launch) -> u16 {
    match &launch.monitor {
        Monitor::Microvm {} => launch.vcpus.clamp(1, MAX_SCRATCH_QUEUES) as u16,
        Monitor::Qemu { .. } | Monitor::Native(_) => 1,
    }
}

fn block_device(launch: &Launch, serial: &str, queues: u16, backend: Arc<dyn BlockBackend>) -> Arc<BlockDevice> {
    let device = BlockDevice::new(backend, BlockConfig { serial: serial.into(), queues });
    device.set_limits(launch.limits.disk.into());
    Arc::new(device)
}

fn at<'a>(step: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> StartError + use<'a> {
    move |source| StartError::Path { step, path: path.to_owned(), source }
}

/// The umask makes it this user's alone.
pub(crate) fn listen(path: &Path) -> Result<UnixListener, StartError> {
    let listener = UnixListener::bind(path).map_err(at("listen on", path))?;
    rustix::fs::chmod(path, rustix::fs::Mode::from_raw_mode(0o600))
        .map_err(|error| at("protect", path)(error.into()))?;
    Ok(listener)
}

type Pair = (UnixListener, UnixStream);

/// A listener for each vhost-user backend, with QEMU's connection in its backlog already: so nobody else can connect, no
/// path is left, and neither side waits for the other to start.
struct Pairs {
    vsock: Pair,
    images: Pair,
    scratch: Option<Pair>,
    volumes: Option<Pair>,
}

impl Pairs {
    fn make(launch: &Launch, has_scratch: bool) -> Result<Self, StartError> {
        Self::within(launch, |path| {
            Ok(Self {
                vsock: Self::connect(path)?,
                images: Self::connect(path)?,
                scratch: has_scratch.then(|| Self::connect(path)).transpose()?,
                volumes: launch.file_server.is_some().then(|| Self::connect(path)).transpose()?,
            })
        })
    }

    /// A single pair.
    fn one(launch: &Launch) -> Result<Pair, StartError> {
        Self::within(launch, Self::connect)
    }

    /// Makes something at a path that nobody else reaches, and that is gone again afterwards.
    fn within<T>(launch: &Launch, make: impl FnOnce(&Path) -> Result<T, StartError>) -> Result<T, StartError> {
        let mut directory = launch.control_socket.clone().into_os_string();
        directory.push(".vhost");
        let directory = PathBuf::from(directory);
        std::fs::DirBuilder::new().mode(0o700).create(&directory).map_err(at("make the directory", &directory))?;
        let path = directory.join("s");
        let made = make(&path);
        let removed = std::fs::remove_dir(&directory).map_err(at("remove the directory", &directory));
        made.and_then(|made| removed.map(|()| made))
    }

    fn connect(path: &Path) -> Result<Pair, StartError> {
        let listener = UnixListener::bind(path).map_err(at("listen on", path))?;
        let connected = UnixStream::connect(path).map_err(at("connect to", path));
        std::fs::remove_file(path).map_err(at("remove", path))?;
        Ok((listener, connected?))
    }
}

fn start_file_server(binary: &Path, listener: UnixListener) -> Result<FileServer, StartError> {
    let failed = |source: io::Error| at("start the file server", binary)(source);
    let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (ours, theirs) = pair.map_err(|error| failed(error.into()))?;
    let mut command = Command::new(binary);
    command.arg(listener.as_raw_fd().to_string()).env_clear().current_dir("/");
    command.stdin(Stdio::from(theirs)).stdout(Stdio::null());
    sys::bind_child(&mut command, vec![OwnedFd::from(listener)]);
    let child = command.spawn().map_err(failed)?;
    Ok((child, UnixStream::from(ours)))
}

/// Removes the sockets that this process made; those that are gone already do not matter.
pub fn remove_sockets(launch: &Launch) {
    for path in [&launch.control_socket, &launch.descriptor_socket, &launch.vsock_socket] {
        let _ = std::fs::remove_file(path);
    }
}
