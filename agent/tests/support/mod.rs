//! Runs the real agent as a process of this host, on a root file system made from busybox.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bulkhead_proto::agent::*;
use bulkhead_proto::agent_ttrpc::AgentClient;
use bulkhead_proto::stdio::{FrameKind, HEADER_LEN, Header};
use bulkhead_proto::{AGENT_RPC_PORT, AGENT_STDIO_PORT};
use protobuf::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const BUSYBOX: &str = "/bin/busybox";
const PATIENCE: Duration = Duration::from_secs(20);
static NEXT: AtomicU32 = AtomicU32::new(0);

pub const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:www:/var/www:/bin/false\n";
pub const GROUP: &str = "root:x:0:\nwww:x:34:\naudio:x:29:web\n";

/// Why these tests cannot run here.
pub fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("it takes root to make containers".into());
    }
    if !Path::new(BUSYBOX).exists() {
        return Some(format!("{BUSYBOX} is missing; install busybox-static"));
    }
    cgroup2().is_none().then(|| "no cgroup v2 hierarchy is mounted".into())
}

/// Returns from the test, saying that it was skipped.
#[macro_export]
macro_rules! agent_or_skip {
    () => {
        match support::obstacle() {
            Some(why) => {
                eprintln!("SKIPPED: {why}");
                return;
            }
            None => support::Agent::start().await,
        }
    };
}

fn cgroup2() -> Option<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.contains(" - cgroup2 "))?;
    line.split(' ').nth(4).map(PathBuf::from)
}

/// The text of a call that must fail.
pub trait Refused {
    fn refused(self) -> String;
}

impl Refused for ttrpc::Result<()> {
    fn refused(self) -> String {
        match self {
            Err(ttrpc::Error::RpcStatus(status)) => status.message,
            other => panic!("not refused: {other:?}"),
        }
    }
}

/// What a process wrote and how it ended.
#[derive(Debug, Default)]
pub struct Output {
    pub stdout: String,
    pub stderr: String,
    pub code: i32,
}

/// A connection to a port of the agent.
pub async fn connect(socket: &Path, port: u32) -> UnixStream {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await.unwrap();
    let expected = format!("OK {port}\n");
    let mut answer = vec![0; expected.len()];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), expected);
    stream
}

pub struct Agent {
    pub client: AgentClient,
    pub dir: tempfile::TempDir,
    /// The containers' parent.
    pub cgroup: PathBuf,
    process: Child,
}

pub fn context() -> ttrpc::context::Context {
    ttrpc::context::with_duration(Duration::from_secs(60))
}

impl Agent {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        make_rootfs(&dir.path().join("rootfs"));
        fs::create_dir(dir.path().join("run")).unwrap();
        fs::create_dir(dir.path().join("volumes")).unwrap();
        let name = format!("bulkhead-agent-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let cgroup = cgroup2().unwrap().join(name);
        let process = Command::new(env!("CARGO_BIN_EXE_bulkhead-agent"))
            .arg("--listen")
            .arg(format!("unix:{}", dir.path().join("run/agent.sock").display()))
            .arg("--state")
            .arg(dir.path().join("run/state"))
            .arg("--cgroup")
            .arg(&cgroup)
            .arg("--volumes")
            .arg(dir.path().join("volumes"))
            .spawn()
            .unwrap();
        let socket = dir.path().join("run/agent.sock");
        let deadline = Instant::now() + PATIENCE;
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(Instant::now() < deadline, "the agent does not listen");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let stream = connect(&socket, AGENT_RPC_PORT).await;
        let client = ttrpc::r#async::Client::new(ttrpc::r#async::transport::Socket::new(stream));
        Self { client: AgentClient::new(client), dir, cgroup, process }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A container that runs `script` with the shell.
    pub fn spec(&self, id: &str, script: &str) -> ContainerSpec {
        let mut spec = ContainerSpec::new();
        spec.id = id.into();
        let mut rootfs = Rootfs::new();
        rootfs.set_directory(self.path("rootfs").to_str().unwrap().into());
        spec.rootfs = Some(rootfs).into();
        spec.process = Some(process(&["/bin/sh", "-c", script])).into();
        spec
    }

    pub async fn create(&self, spec: &ContainerSpec) -> ttrpc::Result<CreateContainerResponse> {
        let mut request = CreateContainerRequest::new();
        request.spec = Some(spec.clone()).into();
        self.client.create_container(context(), &request).await
    }

    pub async fn start_container(&self, id: &str) -> ttrpc::Result<StartContainerResponse> {
        let mut request = StartContainerRequest::new();
        request.container_id = id.into();
        self.client.start_container(context(), &request).await
    }

    pub async fn wait(&self, id: &str, exec_id: &str) -> ExitStatus {
        let mut request = WaitProcessRequest::new();
        (request.container_id, request.exec_id) = (id.into(), exec_id.into());
        self.client.wait_process(context(), &request).await.unwrap().status.unwrap()
    }

    pub async fn remove(&self, id: &str) {
        let mut request = RemoveContainerRequest::new();
        request.container_id = id.into();
        self.client.remove_container(context(), &request).await.unwrap();
    }

    pub async fn signal(
        &self,
        id: &str,
        exec_id: &str,
        signal: i32,
        all: bool,
    ) -> ttrpc::Result<SignalProcessResponse> {
        let mut request = SignalProcessRequest::new();
        (request.container_id, request.exec_id) = (id.into(), exec_id.into());
        (request.signal, request.all) = (signal.cast_unsigned(), all);
        self.client.signal_process(context(), &request).await
    }

    pub async fn exec(&self, id: &str, exec_id: &str, process: Process) -> ttrpc::Result<ExecProcessResponse> {
        let mut request = ExecProcessRequest::new();
        (request.container_id, request.exec_id) = (id.into(), exec_id.into());
        request.process = Some(process).into();
        self.client.exec_process(context(), &request).await
    }

    pub async fn stdio(&self, id: &str, exec_id: &str, primary: bool, stdin: bool) -> Stdio {
        let mut stream = connect(&self.path("run/agent.sock"), AGENT_STDIO_PORT).await;
        let mut hello = StdioHello::new();
        (hello.container_id, hello.exec_id) = (id.into(), exec_id.into());
        (hello.primary, hello.stdin) = (primary, stdin);
        write_frame(&mut stream, FrameKind::Hello, &hello.write_to_bytes().unwrap()).await;
        Stdio(stream)
    }

    /// Creates, starts and follows a container to its end, and removes it.
    pub async fn run(&self, spec: &ContainerSpec) -> Output {
        self.create(spec).await.unwrap();
        let stdio = self.stdio(&spec.id, "", true, false).await;
        self.start_container(&spec.id).await.unwrap();
        let output = stdio.into_end().await;
        assert_eq!(self.wait(&spec.id, "").await.code, output.code);
        self.remove(&spec.id).await;
        output
    }

    /// Open descriptors of the agent.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.process.id())).unwrap().count()
    }

    /// Waits until the agent has seen the end of connections that are closed here.
    pub async fn settle(&self) {
        let deadline = Instant::now() + PATIENCE;
        let mut before = usize::MAX;
        while self.descriptors() != before {
            assert!(Instant::now() < deadline, "the agent's descriptors do not settle");
            before = self.descriptors();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Shuts the agent down and proves that nothing of it is left.
    pub async fn finish(mut self) {
        self.client.shutdown(context(), &ShutdownRequest::new()).await.unwrap();
        let deadline = Instant::now() + PATIENCE;
        while self.process.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the agent does not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!self.cgroup.exists(), "a cgroup is left");
        let left: Vec<_> = fs::read_dir(self.path("run")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.is_empty(), "files are left: {left:?}");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.dir.path().to_str().unwrap()), "mounts are left");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Only when a test has failed: the agent takes its containers with it.
        if self.process.try_wait().is_ok_and(|status| status.is_none()) {
            if let Some(pid) = rustix::process::Pid::from_raw(self.process.id().cast_signed()) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
            let deadline = Instant::now() + PATIENCE;
            while self.process.try_wait().is_ok_and(|status| status.is_none()) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// A connection to the stdio port.
pub struct Stdio(UnixStream);

impl Stdio {
    pub async fn send(&mut self, text: &str) {
        write_frame(&mut self.0, FrameKind::Stdin, text.as_bytes()).await;
    }

    pub async fn close_input(&mut self) {
        write_frame(&mut self.0, FrameKind::StdinClosed, &[]).await;
    }

    pub async fn next(&mut self) -> (FrameKind, Vec<u8>) {
        let mut header = [0; HEADER_LEN];
        self.0.read_exact(&mut header).await.unwrap();
        let header = Header::decode(header).unwrap();
        let mut payload = vec![0; header.len];
        self.0.read_exact(&mut payload).await.unwrap();
        (header.kind, payload)
    }

    /// Reads output until `text` has come.
    pub async fn until(&mut self, text: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(text) {
            let (kind, payload) = tokio::time::timeout(PATIENCE, self.next()).await.expect(text);
            assert!(matches!(kind, FrameKind::Stdout | FrameKind::Stderr), "{kind:?} after {seen:?}");
            seen.push_str(&String::from_utf8_lossy(&payload));
        }
        seen
    }

    pub async fn into_end(mut self) -> Output {
        let mut output = Output::default();
        loop {
            let (kind, payload) = tokio::time::timeout(PATIENCE, self.next()).await.expect("no exit frame");
            let text = String::from_utf8_lossy(&payload).into_owned();
            match kind {
                FrameKind::Stdout => output.stdout.push_str(&text),
                FrameKind::Stderr => output.stderr.push_str(&text),
                FrameKind::Exit => {
                    output.code = ExitStatus::parse_from_bytes(&payload).unwrap().code;
                    return output;
                }
                other => panic!("{other:?}: {text}"),
            }
        }
    }
}

async fn write_frame(stream: &mut UnixStream, kind: FrameKind, payload: &[u8]) {
    stream.write_all(&Header { kind, len: payload.len() }.encode()).await.unwrap();
    stream.write_all(payload).await.unwrap();
}

pub fn process(args: &[&str]) -> Process {
    let mut process = Process::new();
    process.args = args.iter().map(|arg| arg.as_bytes().to_vec()).collect();
    process.env = vec![b"PATH=/bin".to_vec()];
    process
}

fn make_rootfs(root: &Path) {
    for directory in ["bin", "etc", "proc", "tmp", "var"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).unwrap();
    for applet in [
        "sh", "cat", "echo", "id", "ls", "sleep", "stat", "mount", "touch", "ps", "hostname", "tty", "stty", "kill",
        "head", "wc", "grep", "readlink", "dd", "env", "mkdir", "tr", "yes",
    ] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("etc/passwd"), PASSWD).unwrap();
    fs::write(root.join("etc/group"), GROUP).unwrap();
    // What a hostile image would try.
    symlink("/../../../../../../tmp", root.join("escape")).unwrap();
    symlink("/run", root.join("var/run")).unwrap();
}
