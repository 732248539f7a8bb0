//! From orders to a machine that boots. Runs in a process with one thread until every child is spawned.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bulkhead_proto::GUEST_CID;
use bulkhead_proto::launch::Launch;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::console::ConsoleFile;
use crate::devices::block::{BlockConfig, BlockCounters, BlockDevice, FlushPolicy, ImageDrive, RawFile};
use crate::devices::vsock::{VsockConfig, VsockDevice, VsockHandle};
use crate::launch::Orders;
use crate::monitor::{self, Backends, MonitorError, Running};
use crate::sys;
use crate::vhost_user::{ServeError, ServerHandle, serve_block, serve_vsock};

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
    /// A device's threads.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// QEMU.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
}

/// A machine that boots, before anybody looks after it.
#[derive(Debug)]
pub struct Started {
    /// QEMU.
    pub monitor: Running,
    /// The file server's process and the socket for its requests.
    pub file_server: Option<(Child, UnixStream)>,
    /// vmm.proto is served here.
    pub control: UnixListener,
    /// Descriptors come in here.
    pub descriptors: UnixListener,
    /// The guest's sockets.
    pub vsock: VsockHandle,
    /// The drive that images appear on.
    pub images: Arc<ImageDrive>,
    /// Of both drives.
    pub block_counters: Vec<Arc<BlockCounters>>,
    /// The devices' threads.
    pub servers: Vec<ServerHandle>,
    /// For the guest's console.
    pub console: ConsoleFile,
}

/// Starts everything. On an error nothing is left: children end with this process, files are removed.
///
/// # Errors
/// When anything that the machine needs cannot be had.
pub fn start(orders: Orders) -> Result<Started, StartError> {
    let Orders { launch, taps, scratch } = orders;
    let result = build(&launch, taps, scratch);
    if result.is_err() {
        remove_sockets(&launch);
    }
    result
}

fn build(launch: &Launch, taps: Vec<OwnedFd>, scratch: Option<File>) -> Result<Started, StartError> {
    monitor::check_files(launch)?;
    let console = ConsoleFile::open(&launch.console_file).map_err(at("open the console file", &launch.console_file))?;
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

    let pairs = Pairs::make(launch, scratch.is_some())?;
    let Pairs { vsock: vsock_pair, images: image_pair, scratch: scratch_pair, volumes: volume_pair } = pairs;
    let mut file_server = None;
    let mut volume_connection = None;
    if let (Some(binary), Some((listener, connection))) = (&launch.file_server, volume_pair) {
        file_server = Some(start_file_server(binary, listener)?);
        volume_connection = Some(connection);
    }
    let (scratch_listener, scratch_connection) = scratch_pair.unzip();
    let backends =
        Backends { vsock: vsock_pair.1, images: image_pair.1, scratch: scratch_connection, volumes: volume_connection };
    let monitor = match monitor::start(launch, taps, backends) {
        Ok(monitor) => monitor,
        Err(error) => {
            if let Some((mut child, _)) = file_server {
                // Already gone is as good.
                let _ = child.kill();
                let _ = child.wait();
            }
            return Err(error.into());
        }
    };

    // Threads from here on. QEMU waits for the first words of the devices.
    let image_device = Arc::new(BlockDevice::new(images.clone(), block_config("images")));
    let mut block_counters = vec![image_device.counters()];
    let mut servers =
        vec![serve_vsock(vsock_device, vsock_pair.0, "vsock")?, serve_block(image_device, image_pair.0, "images")?];
    if let (Some(scratch), Some(listener)) = (scratch, scratch_listener) {
        let scratch_device = Arc::new(BlockDevice::new(Arc::new(scratch), block_config("scratch")));
        block_counters.push(scratch_device.counters());
        servers.push(serve_block(scratch_device, listener, "scratch")?);
    }
    Ok(Started { monitor, file_server, control, descriptors, vsock, images, block_counters, servers, console })
}

fn block_config(serial: &str) -> BlockConfig {
    BlockConfig { serial: serial.into(), queues: 1 }
}

fn at<'a>(step: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> StartError + use<'a> {
    move |source| StartError::Path { step, path: path.to_owned(), source }
}

/// The umask makes it this user's alone.
fn listen(path: &Path) -> Result<UnixListener, StartError> {
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
        let mut directory = launch.control_socket.clone().into_os_string();
        directory.push(".vhost");
        let directory = PathBuf::from(directory);
        std::fs::DirBuilder::new().mode(0o700).create(&directory).map_err(at("make the directory", &directory))?;
        let path = directory.join("s");
        let made = (|| {
            Ok(Self {
                vsock: Self::connect(&path)?,
                images: Self::connect(&path)?,
                scratch: has_scratch.then(|| Self::connect(&path)).transpose()?,
                volumes: launch.file_server.is_some().then(|| Self::connect(&path)).transpose()?,
            })
        })();
        let removed = std::fs::remove_dir(&directory).map_err(at("remove the directory", &directory));
        made.and_then(|pairs| removed.map(|()| pairs))
    }

    fn connect(path: &Path) -> Result<Pair, StartError> {
        let listener = UnixListener::bind(path).map_err(at("listen on", path))?;
        let connected = UnixStream::connect(path).map_err(at("connect to", path));
        std::fs::remove_file(path).map_err(at("remove", path))?;
        Ok((listener, connected?))
    }
}

fn start_file_server(binary: &Path, listener: UnixListener) -> Result<(Child, UnixStream), StartError> {
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
