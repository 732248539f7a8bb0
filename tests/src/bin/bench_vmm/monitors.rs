//! How each monitor is told to run the same guest with the devices of a pod: sockets, two drives, a network card, entropy
//! and a balloon.

use std::fs::{self, File};
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bulkhead_proto::launch::{DeviceLimits, JailUser, Launch, Monitor, PROTOCOL_VERSION};
use bulkhead_tests::wait;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::cgroup::Cgroup;
use super::tap::{self, Tap};

/// Of guest memory.
pub const MEMORY_MIB: u64 = 256;
/// What makes a kernel boot fast and quiet under the others; bulkhead-vmm says much the same by itself. The kernel's first
/// words leave through the serial port's register, which nobody probes.
const ARGUMENTS: &str = "quiet loglevel=4 earlyprintk=ttyS0 8250.nr_uarts=0 panic=-1 reboot=k random.trust_cpu=on \
                         tsc=reliable no_timer_check nomodule noreplace-smp";
/// An id that nobody has.
const JAIL: JailUser = JailUser { uid: 1_900_000_000, gid: 1_900_000_000 };
/// The jail's own limit is shorter; emulated hosts are slow.
const START_LIMIT: Duration = Duration::from_secs(60);

/// What is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// bulkhead-vmm, jailed.
    Bulkhead(PathBuf),
    /// QEMU's microvm machine, and vhost-device-vsock where there is one.
    Qemu(Option<PathBuf>),
    /// Firecracker, without its jailer.
    Firecracker(PathBuf),
}

/// The same for all.
#[derive(Debug)]
pub struct Guest<'a> {
    /// ELF with a PVH entry.
    pub kernel: &'a Path,
    /// cpio.
    pub initramfs: &'a Path,
    /// Names the first program.
    pub arguments: &'a str,
    /// An empty drive that can only be read.
    pub images: &'a Path,
    /// A drive that can be written.
    pub scratch: &'a Path,
    /// Its network card's other end.
    pub tap: &'a Tap,
}

/// A monitor that has been started.
#[derive(Debug)]
pub struct Started {
    /// When.
    pub at: Instant,
    /// Processor time that its helpers had taken by then.
    pub used_before: Duration,
    /// What the guest writes to its serial port.
    pub output: File,
    /// Host side of the guest's sockets: "CONNECT port".
    pub vsock: Option<PathBuf>,
}

impl Kind {
    /// Whether the guest has a socket device.
    pub fn has_vsock(&self) -> bool {
        !matches!(self, Self::Qemu(None))
    }

    /// Starts it in a cgroup; its files are in `directory`, which is new.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(&self, guest: &Guest<'_>, directory: &Path, cgroup: &Cgroup) -> Result<Started> {
        let output = directory.join("output");
        mknodat(CWD, &output, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
        let words = File::create(directory.join("words"))?;
        // Both ways, so that opening does not wait for the other side.
        let reader = File::options().read(true).write(true).open(&output)?;
        let vsock = directory.join("vsock");
        let (at, used_before) = match self {
            Self::Bulkhead(binary) => bulkhead(binary, guest, directory, (cgroup, words))?,
            Self::Qemu(helper) => qemu(helper.as_deref(), guest, directory, (cgroup, words))?,
            Self::Firecracker(binary) => firecracker(binary, guest, directory, (cgroup, words))?,
        };
        Ok(Started { at, used_before, output: reader, vsock: self.has_vsock().then_some(vsock) })
    }
}

type Begin = (Instant, Duration);

fn bulkhead(binary: &Path, guest: &Guest<'_>, directory: &Path, (cgroup, words): (&Cgroup, File)) -> Result<Begin> {
    let at = |name: &str| directory.join(name);
    let launch = Launch {
        protocol_version: PROTOCOL_VERSION,
        sandbox_id: "bench".into(),
        control_socket: at("control"),
        descriptor_socket: at("descriptors"),
        vsock_socket: at("vsock"),
        exit_file: at("exit"),
        console_file: at("output"),
        monitor: Monitor::Microvm {},
        kernel: guest.kernel.to_owned(),
        initramfs: guest.initramfs.to_owned(),
        kernel_arguments: guest.arguments.to_owned(),
        vcpus: 1,
        memory_mib: MEMORY_MIB,
        balloon_mib: 0,
        deflate_on_oom: true,
        taps: vec![vec![0]],
        scratch_drive: Some(1),
        file_server: None,
        cgroup: None,
        debug_console: false,
        jail: Some(JAIL),
        limits: DeviceLimits::default(),
    };
    let message = serde_json::to_vec(&launch)?;
    let (ours, theirs) = UnixStream::pair()?;
    let scratch = File::options().read(true).write(true).open(guest.scratch)?;
    let descriptors = [guest.tap.open()?, scratch];
    let descriptors = descriptors.each_ref().map(AsFd::as_fd);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    ensure!(control.push(SendAncillaryMessage::ScmRights(&descriptors)), "two descriptors do not fit");
    sendmsg(&ours, &[IoSlice::new(&message)], &mut control, SendFlags::empty())?;
    let mut command = Command::new(binary);
    command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(words);
    // The first process ends once the machine's own has its namespace; both are in the cgroup.
    let at = cgroup.spawn(&mut command)?;
    drop(command);
    ours.set_read_timeout(Some(START_LIMIT))?;
    let mut answer = String::new();
    (&ours).read_to_string(&mut answer)?;
    ensure!(answer.ends_with("ok\n"), "bulkhead-vmm says: {answer}");
    Ok((at, Duration::ZERO))
}

fn qemu(helper: Option<&Path>, guest: &Guest<'_>, directory: &Path, (cgroup, words): (&Cgroup, File)) -> Result<Begin> {
    let output = directory.join("output");
    let mut command = Command::new("qemu-system-x86_64");
    let mut machine = "microvm,acpi=off,rtc=on,pit=off,pic=off".to_owned();
    let memory = format!("{MEMORY_MIB}M");
    if let Some(helper) = helper {
        let socket = directory.join("vhost");
        let mut server = Command::new(helper);
        server.args(["--guest-cid", "3"]).arg("--socket").arg(&socket).arg("--uds-path").arg(directory.join("vsock"));
        cgroup.spawn(server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(words.try_clone()?))?;
        wait::until("the socket of vhost-device-vsock", START_LIMIT, || Ok(socket.exists().then_some(())))?;
        machine.push_str(",memory-backend=ram");
        command.arg("-object").arg(format!("memory-backend-memfd,id=ram,size={memory},share=on"));
        command.arg("-chardev").arg(format!("socket,id=vsock,path={}", socket.display()));
        command.args(["-device", "vhost-user-vsock-device,chardev=vsock"]);
    }
    command.args(["-machine", &machine, "-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", &memory]);
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    command.args(["-global", "virtio-mmio.force-legacy=false", "-object", "iothread,id=io"]);
    command
        .arg("-chardev")
        .arg(format!("file,id=serial,path={}", output.display()))
        .args(["-serial", "chardev:serial"]);
    for (id, path, read_only) in [("images", guest.images, "on"), ("scratch", guest.scratch, "off")] {
        let file = path.display();
        command
            .arg("-drive")
            .arg(format!("if=none,id={id},file={file},format=raw,read-only={read_only},cache=unsafe,aio=io_uring"));
        command.arg("-device").arg(format!("virtio-blk-device,drive={id},iothread=io"));
    }
    command.arg("-netdev").arg(format!("tap,id=net,ifname={},script=no,downscript=no,vhost=off", tap::NAME));
    command.args(["-device", "virtio-net-device,netdev=net", "-device", "virtio-rng-device"]);
    command.args(["-device", "virtio-balloon-device,free-page-reporting=on,deflate-on-oom=on"]);
    command.arg("-kernel").arg(guest.kernel).arg("-initrd").arg(guest.initramfs);
    command.arg("-append").arg(format!("{ARGUMENTS} {}", guest.arguments));
    command.stdin(Stdio::null()).stdout(words.try_clone()?).stderr(words);
    let used_before = cgroup.used()?;
    Ok((cgroup.spawn(&mut command)?, used_before))
}

fn firecracker(binary: &Path, guest: &Guest<'_>, directory: &Path, (cgroup, words): (&Cgroup, File)) -> Result<Begin> {
    let drive = |id, path: &Path, is_read_only| {
        serde_json::json!({
            "drive_id": id, "path_on_host": path, "is_root_device": false, "is_read_only": is_read_only,
            "cache_type": "Unsafe", "io_engine": "Sync",
        })
    };
    let configuration = serde_json::json!({
        "boot-source": {
            "kernel_image_path": guest.kernel,
            "initrd_path": guest.initramfs,
            "boot_args": format!("{ARGUMENTS} pci=off {}", guest.arguments),
        },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": MEMORY_MIB },
        "drives": [drive("images", guest.images, true), drive("scratch", guest.scratch, false)],
        "network-interfaces": [{ "iface_id": "eth0", "host_dev_name": tap::NAME }],
        "vsock": { "guest_cid": 3, "uds_path": directory.join("vsock") },
        "entropy": {},
        "balloon": { "amount_mib": 0, "deflate_on_oom": true, "stats_polling_interval_s": 0 },
    });
    let file = directory.join("firecracker.json");
    fs::write(&file, serde_json::to_vec(&configuration)?).context("cannot write Firecracker's configuration")?;
    let output = File::options().write(true).open(directory.join("output"))?;
    let mut command = Command::new(binary);
    command.args(["--no-api", "--config-file"]).arg(&file);
    command.stdin(Stdio::null()).stdout(output).stderr(words);
    Ok((cgroup.spawn(&mut command)?, Duration::ZERO))
}
