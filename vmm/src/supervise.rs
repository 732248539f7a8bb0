//! Looks after a machine from its start to its exit record.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bulkhead_proto::launch::Launch;
use bulkhead_proto::{AGENT_READY_PORT, vmm_ttrpc};
use rustix::process::{Pid, PidfdFlags};
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

use crate::console::Words;
use crate::control::Control;
use crate::descriptors::Tokens;
use crate::exit::{self, Cause, Evidence, Exit};
use crate::logs::Logs;
use crate::pod::{Pod, State};
use crate::start::{Started, remove_sockets};
use crate::sys;
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
            Err(_) => self.process.kill().await.map(drop),
        }
    }
}

/// One machine under supervision.
pub struct Supervisor {
    launch: Launch,
    pod: Arc<Pod>,
    monitor: Watched,
    started: Instant,
    file_server: Option<FileServer>,
    console: Words,
    monitor_words: Words,
    readers: [JoinHandle<()>; 2],
    server: ttrpc::r#async::Server,
    ready: mpsc::Receiver<std::os::unix::net::UnixStream>,
    devices: Vec<crate::vhost_user::ServerHandle>,
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
        let Started { mut monitor, file_server, control, descriptors, vsock, images, block_counters, servers, console } =
            started;
        let ready = vsock.listen(AGENT_READY_PORT)?;
        let file = Arc::new(Mutex::new(console));
        let (console, monitor_words) = (Words::default(), Words::default());
        let pipe = |end: Option<OwnedFd>| pipe::Receiver::from_owned_fd(end.ok_or(io::ErrorKind::BrokenPipe)?);
        let output = pipe(monitor.child.stdout.take().map(OwnedFd::from))?;
        let errors = pipe(monitor.child.stderr.take().map(OwnedFd::from))?;
        let readers = [
            tokio::spawn(console.clone().follow(output, file.clone())),
            tokio::spawn(monitor_words.clone().follow(errors, file)),
        ];
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
            monitor_pid: monitor.child.id(),
            state: watch::Sender::new(State::Booting),
            shutdown: Notify::new(),
            tokens: Tokens::default(),
            images,
            block_counters,
            logs: Logs::new(vsock.clone()),
            vsock,
            volumes,
        });
        descriptors.set_nonblocking(true)?;
        tokio::spawn(pod.tokens.clone().serve(UnixListener::from_std(descriptors)?));
        let server = serve(pod.clone(), control).await?;
        let started = monitor.started;
        let monitor = Watched::new(monitor.child)?;
        Ok(Self {
            launch,
            pod,
            monitor,
            started,
            file_server,
            console,
            monitor_words,
            readers,
            server,
            ready,
            devices: servers,
        })
    }

    /// To the machine's end: writes the exit record, tells everybody who waits, and leaves nothing behind.
    ///
    /// # Errors
    /// When the monitor cannot be waited for.
    pub async fn run(mut self) -> io::Result<()> {
        let (status, ended_for) = self.watch().await?;
        for reader in &mut self.readers {
            let _ = tokio::time::timeout(WORDS_LIMIT, reader).await;
        }
        let evidence = Evidence {
            ended_for,
            status,
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
    async fn watch(&mut self) -> io::Result<(ExitStatus, Option<Cause>)> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut is_ready = false;
        let cause = loop {
            tokio::select! {
                biased;
                status = self.monitor.ended() => return Ok((status?, None)),
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
                    if let Ok(status) = tokio::time::timeout(PANIC_GRACE, self.monitor.ended()).await {
                        return Ok((status?, None));
                    }
                    break Cause::Panic;
                }
            }
        };
        if let Cause::FileServer(_) = &cause {
            // It ends with the monitor's connection: then the monitor's end is the cause.
            if let Ok(status) = tokio::time::timeout(Duration::from_millis(200), self.monitor.ended()).await {
                return Ok((status?, None));
            }
        }
        let status = self.monitor.kill().await?;
        Ok((status, Some(cause)))
    }

    async fn finish(mut self, exit: Exit) {
        if let Err(error) = exit::write_record(&self.launch.exit_file, &exit, self.pod.logs.exits()) {
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
        for device in &self.devices {
            device.stop();
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
