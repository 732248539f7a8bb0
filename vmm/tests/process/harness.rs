//! Starts the real `bulkhead-vmm` as the daemon does, and talks to it and to its guest.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use bulkhead_proto::launch::{DeviceLimits, ExitRecord, Launch, Monitor, PROTOCOL_VERSION};
use bulkhead_proto::vmm_ttrpc::VmmClient;
use bulkhead_vmm::rights;
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

/// Emulated guests on a busy machine are slow.
const LIMIT: Duration = Duration::from_secs(60);
const QEMU: &str = "/usr/bin/qemu-system-x86_64";

/// What a test guest boots from.
#[derive(Debug)]
pub struct Guest {
    pub kernel: PathBuf,
    initramfs: Vec<u8>,
}

/// The guest, or why there is none.
pub fn guest() -> Option<&'static Guest> {
    static GUEST: OnceLock<Result<Guest, String>> = OnceLock::new();
    match GUEST.get_or_init(make_guest) {
        Ok(guest) => Some(guest),
        Err(why) => {
            eprintln!("skipped: {why}");
            None
        }
    }
}

fn make_guest() -> Result<Guest, String> {
    if !Path::new(QEMU).exists() {
        return Err(format!("{QEMU} is not installed"));
    }
    if !rustix::process::geteuid().is_root() {
        return Err("root is needed for mounts and user namespaces".into());
    }
    let kernel = kernel().ok_or("no guest kernel in BULKHEAD_TEST_KERNEL or the cache; make guest builds one")?;
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    let init = directory.path().join("init");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/agent.rs");
    let built = Command::new("rustc")
        .args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-o"])
        .args([&init, &source])
        .status()
        .map_err(|error| format!("rustc does not start: {error}"))?;
    assert!(built.success(), "the test guest's init does not build");
    Ok(Guest { kernel, initramfs: archive(&std::fs::read(&init).unwrap()) })
}

fn kernel() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("BULKHEAD_TEST_KERNEL") {
        return Some(path.into());
    }
    let home = PathBuf::from(std::env::var_os("HOME")?);
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or(home.join(".cache"), PathBuf::from).join("bulkhead");
    let kernels = std::fs::read_dir(cache).ok()?.flatten().map(|entry| entry.path().join("vmlinux"));
    kernels.filter(|path| path.is_file()).max_by_key(|path| path.metadata().and_then(|meta| meta.modified()).ok())
}

/// A cpio archive (newc) of /init and empty directories.
fn archive(init: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    let mut entry = |name: &str, mode: u32, device: (u32, u32), data: &[u8]| {
        let fields = [0, mode, 0, 0, 1, 0, data.len() as u32, 0, 0, device.0, device.1, name.len() as u32 + 1, 0];
        archive.extend(b"070701");
        fields.iter().for_each(|field| archive.extend(format!("{field:08x}").bytes()));
        archive.extend(name.bytes().chain([0]));
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(data);
        archive.resize(archive.len().next_multiple_of(4), 0);
    };
    for directory in ["dev", "proc", "volumes"] {
        entry(directory, 0o040755, (0, 0), &[]);
    }
    entry("dev/console", 0o020600, (5, 1), &[]);
    entry("init", 0o100755, (0, 0), init);
    entry("TRAILER!!!", 0, (0, 0), &[]);
    archive
}

/// A `bulkhead-vmm` that was told to start a machine.
pub struct Pod {
    pub directory: tempfile::TempDir,
    pub child: Child,
    pub answer: String,
    client: Option<VmmClient>,
}

impl Pod {
    /// Starts a machine; `change` may spoil its orders.
    pub async fn start(guest: &Guest, change: impl FnOnce(&mut Launch)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("initramfs"), &guest.initramfs).unwrap();
        let mut launch = Launch {
            protocol_version: PROTOCOL_VERSION,
            sandbox_id: "test-pod".into(),
            control_socket: at("vmm.sock"),
            descriptor_socket: at("fd.sock"),
            vsock_socket: at("vsock.sock"),
            exit_file: at("exit.json"),
            console_file: at("console.log"),
            monitor: Monitor::Qemu { binary: QEMU.into(), accelerator: "tcg".into() },
            kernel: guest.kernel.clone(),
            initramfs: at("initramfs"),
            kernel_arguments: String::new(),
            vcpus: 1,
            memory_mib: 128,
            taps: Vec::new(),
            scratch_drive: None,
            file_server: Some(env!("CARGO_BIN_EXE_bulkhead-fs").into()),
            cgroup: None,
            balloon_mib: 0,
            deflate_on_oom: false,
            debug_console: false,
            jail: None,
            limits: DeviceLimits::default(),
        };
        change(&mut launch);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_bulkhead-vmm"))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stderr(File::create(at("vmm.log")).unwrap())
            .spawn()
            .unwrap();
        (&ours).write_all(&serde_json::to_vec(&launch).unwrap()).unwrap();
        ours.set_read_timeout(Some(LIMIT)).unwrap();
        let mut answer = String::new();
        (&ours).read_to_string(&mut answer).unwrap();
        let client = match answer.as_str() {
            "ok\n" => {
                let stream = tokio::net::UnixStream::connect(at("vmm.sock")).await.unwrap();
                Some(VmmClient::new(ttrpc::r#async::Client::new(ttrpc::r#async::transport::Socket::new(stream))))
            }
            _ => None,
        };
        Self { directory, child, answer, client }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    pub fn client(&self) -> &VmmClient {
        self.client.as_ref().unwrap_or_else(|| panic!("bulkhead-vmm said {}", self.answer))
    }

    /// Sends a descriptor; its token is good while the returned connection lives.
    pub fn send(&self, token: &str, descriptor: impl AsFd) -> UnixStream {
        let stream = UnixStream::connect(self.path("fd.sock")).unwrap();
        rights::send(&stream, token.as_bytes(), Some(descriptor.as_fd())).unwrap();
        let mut answer = [0; 3];
        (&stream).read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"ok\n");
        stream
    }

    /// What the guest answers to a command.
    pub fn guest(&self, command: &str) -> String {
        let mut stream = UnixStream::connect(self.path("vsock.sock")).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        writeln!(stream, "CONNECT 2000").unwrap();
        let mut byte = [0];
        while byte != *b"\n" {
            stream.read_exact(&mut byte).unwrap();
        }
        writeln!(stream, "{command}").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Waits for the process's end; proves that it and its children are gone and only the files that should be are left.
    pub fn ended(mut self) -> ExitRecord {
        let (session, end) = (self.child.id(), Instant::now() + LIMIT);
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None if Instant::now() > end => panic!("bulkhead-vmm does not end: {}", self.text("vmm.log")),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        assert!(status.success(), "{status}: {}", self.text("vmm.log"));
        let record = serde_json::from_str(&self.text("exit.json")).unwrap();
        assert_eq!(processes_of_session(session), Vec::<String>::new());
        let mut left: Vec<_> = std::fs::read_dir(self.directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.starts_with("test-"))
            .collect();
        left.sort();
        assert_eq!(left, ["console.log", "exit.json", "initramfs", "vmm.log"]);
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.directory.path().to_str().unwrap()), "mounts are left");
        record
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Command lines of the processes of a session, zombies left out: every child of `bulkhead-vmm` is in its session.
pub fn processes_of_session(session: u32) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let Some((_, fields)) = stat.rsplit_once(") ") else { continue };
        let fields: Vec<&str> = fields.split(' ').collect();
        if fields[0] != "Z" && fields[3] == session.to_string() {
            found.push(std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default());
        }
    }
    found
}

/// A detached copy of what is mounted at `path`.
pub fn detached(path: &Path, read_only: bool) -> OwnedFd {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, path, flags).unwrap();
    let set = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
    let attributes = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the path and the attributes live through the call, and the size is theirs.
    let result = unsafe {
        use std::os::fd::AsRawFd;
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &attributes,
            size_of_val(&attributes),
        )
    };
    assert_eq!(result, 0, "mount_setattr: {}", io::Error::last_os_error());
    tree
}

/// Calls `check` until it is true; panics when it is not within `limit`.
pub fn within(limit: Duration, what: &str, mut check: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !check() {
        assert!(Instant::now() < end, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
