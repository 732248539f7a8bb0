//! Looks after a machine from its start to its exit record.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bulkhead_proto::launch::{JailUser, Launch, Monitor};
use bulkhead_proto::vmm_ttrpc;
use rustix::process::{Pid, PidfdFlags};
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

use crate::console::{Input, Words};
use crate::control::Control;
use crate::descriptors::Tokens;
use crate::exit::{self, Cause, Evidence, Exit, How};
use crate::jail::{self, Plan, Role};
use crate::kvm::{End, Machine};
use crate::logs::Logs;
use crate::monitor::microvm::Prepared;
use crate::native;
use crate::pod::{Pod, State};
use crate::start::{self, StartError, Started, remove_sockets};
use crate::statistics;
use crate::sys;
use crate::vhost_user::ServerHandle;
use crate::volumes::Volumes;

/// A kernel that panicked resets the machine at once; one that cannot is ended after this time.
const PANIC_GRACE: Duration = Duration::from_secs(5);
/// The last output of a dead guest has this long to be written.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// The file server ends when its socket does.
const FILE_SERVER_GRACE: Duration = Duration::from_secs(2);
/// Pipes of a process that has ended are at their end, too, unless somebody else holds them.
const WORDS_LIMIT: Duration = Duration::from_secs(2);

/// A child process whose end can be awaited.
struct Watched {
    child: Child,
    pidfd: AsyncFd<OwnedFd>,
}

impl Watched {
    fn new(child: Child) -> io::Result<Self> {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
        let pidfd = sys::watch_readable(rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)?)?;
        Ok(Self { child, pidfd })
    }

    async fn ended(&mut self) -> io::Result<ExitStatus> {
        let _ready = self.pidfd.readable().await?;
        self.child.wait()
    }

    /// Ends it, whatever it does.
    async fn kill(&mut self) -> io::Result<ExitStatus> {
        self.child.kill()?;
        self.ended().await
    }
}

/// The file server's process, and the socket whose end is its end.
struct FileServer {
    process: Watched,
    requests: std::os::unix::net::UnixStream,
}

impl FileServer {
    /// Lets it end its own child first.
    async fn end(&mut self) -> io::Result<()> {
        let _ = self.requests.shutdown(std::net::Shutdown::Both);
        match tokio::time::timeout(FILE_SERVER_GRACE, self.process.ended()).await {
            Ok(ended) => ended.map(drop),
            // It is not this user's to kill, and ends with this process.
            Err(_) if jail::is_jailed() => Ok(()),
            Err(_) => self.process.kill().await.map(drop),
        }
    }
}

/// What runs the guest.
enum Guest {
    /// A child, with the readers of its output and the threads of its devices.
    Process { process: Watched, readers: [JoinHandle<()>; 2], devices: Vec<ServerHandle> },
    /// Not yet.
    Prepared(Option<Box<Prepared>>),
    /// This process.
    Microvm { machine: Arc<Machine>, ends: mpsc::UnboundedReceiver<End>, end: Option<End> },
}

impl Guest {
    /// Waits until it ends by itself.
    async fn ended(&mut self) -> io::Result<How> {
        match self {
            Self::Process { process, .. } => process.ended().await.map(How::Process),
            Self::Microvm { machine, ends, end } => {
                // Kept: whoever waits may be interrupted by something else, and come back.
                if end.is_none() {
                    *end = ends.recv().await;
                }
                let end = end.clone().unwrap_or(End::Failed("all processors ended".into()));
                let machine = machine.clone();
                tokio::task::spawn_blocking(move || machine.stop()).await.map_err(io::Error::other)?;
                Ok(How::Machine(end))
            }
            Self::Prepared(_) => std::future::pending().await,
        }
    }

    /// Ends it, whatever it does.
    async fn kill(&mut self) -> io::Result<How> {
        match self {
            Self::Process { process, .. } => process.kill().await.map(How::Process),
            Self::Microvm { machine, ends, end } => {
                let machine = machine.clone();
                tokio::task::spawn_blocking(move || machine.stop()).await.map_err(io::Error::other)?;
                // It may have been faster.
                let end = end.take().or_else(|| ends.try_recv().ok());
                Ok(end.map_or(How::Stopped, How::Machine))
            }
            Self::Prepared(_) => Ok(How::Stopped),
        }
    }

    /// After its end: reads its last words, and lets go of what delivers the guest's last bytes.
    async fn settle(&mut self) {
        match self {
            Self::Process { readers, .. } => {
                for reader in readers {
                    let _ = tokio::time::timeout(WORDS_LIMIT, reader).await;
                }
            }
            Self::Microvm { machine, .. } => {
                let machine = machine.clone();
                // As long as readers take; the process does not wait for it.
                drop(tokio::task::spawn_blocking(move || machine.release()));
            }
            Self::Prepared(_) => {}
        }
    }
}

/// One machine under supervision.
pub struct Supervisor {
    launch: Launch,
    pod: Arc<Pod>,
    guest: Guest,
    started: Instant,
    file_server: Option<FileServer>,
    /// Where there will be no path to it.
    exit_file: Option<File>,
    console: Words,
    monitor_words: Words,
    server: ttrpc::r#async::Server,
    ready: mpsc::Receiver<std::os::unix::net::UnixStream>,
}

impl std::fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Supervisor").field("pod", &self.pod).finish_non_exhaustive()
    }
}

impl Supervisor {
    /// Answers requests from now on. Needs the runtime.
    ///
    /// # Errors
    /// When the runtime cannot watch a descriptor.
    pub async fn begin(launch: Launch, started: Started) -> io::Result<Self> {
        let Started {
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
        } = started;
        let ready = agent.ready()?;
        let monitor_words = Words::default();
        let mut keyboard = keyboard.map(Input::Device);
        let (started, monitor_pid, guest) = match guest {
            start::Guest::Microvm(prepared) => (Instant::now(), None, Guest::Prepared(Some(prepared))),
            start::Guest::Process(mut running, devices) => {
                let pipe = |end: Option<OwnedFd>| pipe::Receiver::from_owned_fd(end.ok_or(io::ErrorKind::BrokenPipe)?);
                let output = pipe(running.child.stdout.take().map(OwnedFd::from))?;
                let errors = pipe(running.child.stderr.take().map(OwnedFd::from))?;
                let readers = [
                    tokio::spawn(console.clone().follow(output, console_file.clone())),
                    tokio::spawn(monitor_words.clone().follow(errors, console_file.clone())),
                ];
                if let Some(pipe) = running.child.stdin.take() {
                    keyboard = Some(Input::pipe(pipe.into())?);
                }
                let pid = running.child.id();
                let process = Watched::new(running.child)?;
                (running.started, Some(pid), Guest::Process { process, readers, devices })
            }
        };
        let (file_server, volumes) = match file_server {
            Some((child, socket)) => {
                socket.set_nonblocking(true)?;
                let requests = socket.try_clone()?;
                let volumes = Volumes::connect(UnixStream::from_std(socket)?);
                (Some(FileServer { process: Watched::new(child)?, requests }), Some(volumes))
            }
            None => (None, None),
        };
        let pod = Arc::new(Pod {
            sandbox_id: launch.sandbox_id.clone(),
            monitor_pid,
            machine: OnceLock::new(),
            state: watch::Sender::new(State::Booting),
            shutdown: Notify::new(),
            tokens: Tokens::default(),
            images,
            block_counters,
            logs: Logs::new(agent.clone()),
            agent,
            volumes,
            memory_mib: launch.memory_mib,
            balloon,
            net_counters,
            console_file,
            keyboard,
            holding: Arc::default(),
        });
        descriptors.set_nonblocking(true)?;
        tokio::spawn(pod.tokens.clone().serve(UnixListener::from_std(descriptors)?));
        let server = serve(pod.clone(), control).await?;
        Ok(Self { launch, pod, guest, started, file_server, exit_file: None, console, monitor_words, server, ready })
    }

    /// Starts a machine that is to run in this process.
    ///
    /// # Errors
    /// When its processors cannot start.
    pub fn go(&mut self) -> Result<(), StartError> {
        if let Guest::Prepared(prepared) = &mut self.guest
            && let Some(prepared) = prepared.take()
        {
            self.started = Instant::now();
            self.close_walls()?;
            let (machine, ends) = prepared.start()?;
            let machine = self.pod.machine.get_or_init(|| Arc::new(machine)).clone();
            self.guest = Guest::Microvm { machine, ends, end: None };
            jail::enter_thread(Role::Control);
        }
        Ok(())
    }

    /// Opens what takes a path and is needed later, and enters the jail that was ordered.
    fn close_walls(&mut self) -> Result<(), StartError> {
        let Some(JailUser { uid, gid }) = self.launch.jail else { return Ok(()) };
        let path = &self.launch.exit_file;
        let failed = |step| move |source| StartError::Path { step, path: path.clone(), source };
        self.exit_file = Some(exit::create_record(path).map_err(failed("create the exit record"))?);
        statistics::keep_own().map_err(failed("keep /proc/self/smaps open beside"))?;
        let report = jail::enter(&Plan { uid, gid })?;
        tracing::info!(sandbox = self.pod.sandbox_id, uid, "jailed; Landlock: {}", report.landlock);
        Ok(())
    }

    /// To the machine's end: writes the exit record, tells everybody who waits, and leaves nothing behind.
    ///
    /// # Errors
    /// When the monitor cannot be waited for.
    pub async fn run(mut self) -> io::Result<()> {
        let (how, ended_for) = self.watch().await?;
        self.guest.settle().await;
        if let Monitor::Native(pod) = &self.launch.monitor {
            native::kill_containers(pod);
        }
        let evidence = Evidence {
            is_machine: !matches!(self.launch.monitor, Monitor::Native(_)),
            ended_for,
            how,
            was_ready: matches!(&*self.pod.state.borrow(), State::Ready { .. }),
            panic: self.console.panic(),
            console: self.console.last_lines(8),
            monitor_words: self.monitor_words.last_lines(4),
        };
        let exit = evidence.judge();
        tracing::info!(sandbox = self.pod.sandbox_id, "{}", exit.message);
        self.pod.logs.drain(DRAIN_LIMIT).await;
        self.finish(exit).await;
        Ok(())
    }

    /// Waits for the monitor's end, and brings it about when there is a cause.
    async fn watch(&mut self) -> io::Result<(How, Option<Cause>)> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut is_ready = false;
        let cause = loop {
            tokio::select! {
                biased;
                how = self.guest.ended() => return Ok((how?, None)),
                () = self.pod.shutdown.notified() => break Cause::Shutdown,
                _ = terminate.recv() => break Cause::Shutdown,
                Some(_) = self.ready.recv(), if !is_ready => {
                    is_ready = true;
                    let boot_us = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
                    tracing::info!(sandbox = self.pod.sandbox_id, boot_us, "the agent listens");
                    self.pod.state.send_replace(State::Ready { boot_us });
                }
                how = file_server_end(self.file_server.as_mut()) => break Cause::FileServer(how),
                () = self.console.panicked() => {
                    if let Ok(how) = tokio::time::timeout(PANIC_GRACE, self.guest.ended()).await {
                        return Ok((how?, None));
                    }
                    break Cause::Panic;
                }
            }
        };
        if let Cause::FileServer(_) = &cause {
            // It ends with the monitor's connection: then the monitor's end is the cause.
            if let Ok(how) = tokio::time::timeout(Duration::from_millis(200), self.guest.ended()).await {
                return Ok((how?, None));
            }
        }
        if let Guest::Process { process, .. } = &mut self.guest
            && let Monitor::Native(_) = &self.launch.monitor
        {
            native::ask_to_end(&process.child);
            if let Ok(status) = tokio::time::timeout(native::END_LIMIT, process.ended()).await {
                return Ok((How::Process(status?), Some(cause)));
            }
            tracing::warn!(sandbox = self.pod.sandbox_id, "the agent did not end when told; killing it");
        }
        let how = self.guest.kill().await?;
        Ok((how, Some(cause)))
    }

    async fn finish(mut self, exit: Exit) {
        let written = match &mut self.exit_file {
            Some(file) => exit::fill_record(file, &exit, self.pod.logs.exits()),
            None => exit::write_record(&self.launch.exit_file, &exit, self.pod.logs.exits()),
        };
        if let Err(error) = written {
            tracing::error!("cannot write the exit record {}: {error}", self.launch.exit_file.display());
        }
        if let Some(mut server) = self.file_server.take()
            && let Err(error) = server.end().await
        {
            tracing::warn!("cannot end the file server: {error}");
        }
        self.pod.state.send_replace(State::Exited(exit));
        // New connections find nobody; those that are open get their answers.
        remove_sockets(&self.launch);
        if let Err(error) = self.server.shutdown().await {
            tracing::warn!("cannot end the control server: {error}");
        }
        if let Guest::Process { devices, .. } = &self.guest {
            devices.iter().for_each(ServerHandle::stop);
        }
    }
}

async fn file_server_end(server: Option<&mut FileServer>) -> String {
    match server {
        Some(server) => match server.process.ended().await {
            Ok(status) => exit::status_text(status),
            Err(error) => format!("cannot be watched: {error}"),
        },
        None => std::future::pending().await,
    }
}

async fn serve(pod: Arc<Pod>, listener: std::os::unix::net::UnixListener) -> io::Result<ttrpc::r#async::Server> {
    let listener = ttrpc::r#async::transport::Listener::try_from(listener)?;
    let service = vmm_ttrpc::create_vmm(Arc::new(Control(pod)));
    let mut server = ttrpc::r#async::Server::new().add_listener(listener).register_service(service);
    server.start().await.map_err(io::Error::other)?;
    Ok(server)
}
