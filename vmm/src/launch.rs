//! The orders that the daemon sends over this process's standard input (`bulkhead_proto::launch`).

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bulkhead_proto::launch::{Launch, LaunchDescriptor, MAX_LAUNCH, Monitor, PROTOCOL_VERSION};

use crate::rights;

/// The daemon has its message ready before it starts this process.
const PATIENCE: Duration = Duration::from_secs(15);
/// Longest sandbox id in bytes; they are 64.
const MAX_SANDBOX_ID: usize = 128;
/// QEMU's microvm machine takes no more.
const MAX_VCPUS: u32 = 255;
/// As many descriptors as fit in the message, with room for the others.
const MAX_TAP_QUEUES: usize = 16;
/// Linux does not boot in less.
const MIN_MEMORY_MIB: u64 = 32;
/// 16 TiB; the guest kernel's own limit is beyond.
const MAX_MEMORY_MIB: u64 = 16 << 20;

/// Why the orders cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The socket failed.
    #[error("cannot receive the launch message: {0}")]
    Receive(#[from] io::Error),
    /// The daemon is gone, or standard input is something else.
    #[error("the launch message ended after {0} bytes; bulkhead-vmm is started by the daemon, not by hand")]
    Ended(usize),
    /// More than a launch message may have.
    #[error("the launch message is longer than {MAX_LAUNCH} bytes")]
    TooLong,
    /// Not a `Launch`.
    #[error("cannot understand the launch message: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Daemon and process are of different versions.
    #[error(
        "the daemon speaks version {theirs} of the launch protocol, this bulkhead-vmm version {PROTOCOL_VERSION}: install both from one release"
    )]
    Version {
        /// As the daemon says.
        theirs: u32,
    },
    /// A value that no machine can have.
    #[error("launch message: {0}")]
    Value(String),
}

/// A launch message whose descriptors have been sorted out.
#[derive(Debug)]
pub struct Orders {
    /// As it was sent.
    pub launch: Launch,
    /// The queues of each of the guest's network devices, in their order; each has at least one.
    pub taps: Vec<Vec<OwnedFd>>,
    /// The pod's scratch drive.
    pub scratch: Option<File>,
    /// The cgroup to go on in.
    pub cgroup: Option<OwnedFd>,
}

/// Reads the orders.
///
/// # Errors
/// When they do not come, cannot be understood, or name what cannot be.
pub fn receive(socket: &UnixStream) -> Result<Orders, LaunchError> {
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut message = Vec::new();
    let mut descriptors = Vec::new();
    let mut chunk = [0; 8192];
    loop {
        let (count, more) = rights::receive(socket, &mut chunk, rights::MAX - descriptors.len())?;
        descriptors.extend(more);
        message.extend_from_slice(&chunk[..count]);
        if message.len() > MAX_LAUNCH {
            return Err(LaunchError::TooLong);
        }
        match serde_json::from_slice(&message) {
            Ok(launch) => return sort_out(launch, descriptors),
            Err(error) if !error.is_eof() => return Err(error.into()),
            Err(_) if count == 0 => return Err(LaunchError::Ended(message.len())),
            Err(_) => {}
        }
    }
}

fn sort_out(launch: Launch, descriptors: Vec<OwnedFd>) -> Result<Orders, LaunchError> {
    check(&launch)?;
    let mut descriptors: Vec<Option<OwnedFd>> = descriptors.into_iter().map(Some).collect();
    let mut take = |what: &str, index: LaunchDescriptor| {
        let found = descriptors.get_mut(index).and_then(Option::take);
        found.ok_or_else(|| {
            LaunchError::Value(format!("{what} is descriptor {index}, which did not come or is in use already"))
        })
    };
    let mut queues = |tap: &Vec<_>| tap.iter().map(|index| take("a tap", *index)).collect();
    let taps = launch.taps.iter().map(&mut queues).collect::<Result<_, _>>()?;
    let scratch = launch.scratch_drive.map(|index| take("the scratch drive", index).map(File::from)).transpose()?;
    let cgroup = launch.cgroup.map(|index| take("the cgroup", index)).transpose()?;
    Ok(Orders { launch, taps, scratch, cgroup })
}

fn check(launch: &Launch) -> Result<(), LaunchError> {
    let refuse = |what: String| Err(LaunchError::Value(what));
    if launch.protocol_version != PROTOCOL_VERSION {
        return Err(LaunchError::Version { theirs: launch.protocol_version });
    }
    let id = &launch.sandbox_id;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if id.is_empty() || id.len() > MAX_SANDBOX_ID || !id.chars().all(plain) {
        return refuse(format!("sandbox_id {id:?} is not 1 to {MAX_SANDBOX_ID} letters, digits, '-', '_' and '.'"));
    }
    if !(1..=MAX_VCPUS).contains(&launch.vcpus) {
        return refuse(format!("vcpus is {}, not 1 to {MAX_VCPUS}", launch.vcpus));
    }
    if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&launch.memory_mib) {
        return refuse(format!("memory_mib is {}, not {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB}", launch.memory_mib));
    }
    if launch.memory_mib.checked_sub(launch.balloon_mib).is_none_or(|left| left < MIN_MEMORY_MIB) {
        let (balloon, all) = (launch.balloon_mib, launch.memory_mib);
        return refuse(format!("balloon_mib is {balloon} of {all}, which leaves less than {MIN_MEMORY_MIB}"));
    }
    for (device, queues) in launch.taps.iter().map(Vec::len).enumerate() {
        if !(1..=MAX_TAP_QUEUES).contains(&queues) {
            return refuse(format!("tap {device} has {queues} queues, not 1 to {MAX_TAP_QUEUES}"));
        }
        if queues > 1 && matches!(launch.monitor, Monitor::Qemu { .. }) {
            return refuse(format!("tap {device} has {queues} queues; QEMU is given one"));
        }
    }
    if launch.kernel_arguments.contains(|c: char| c.is_control()) {
        return refuse("kernel_arguments has a control character".into());
    }
    let of_monitor: Vec<(&str, &Path)> = match &launch.monitor {
        Monitor::Microvm {} => Vec::new(),
        Monitor::Qemu { accelerator, .. } if !matches!(accelerator.as_str(), "kvm" | "tcg") => {
            return refuse(format!("accelerator is {accelerator:?}, neither \"kvm\" nor \"tcg\""));
        }
        Monitor::Qemu { binary, .. } => vec![("monitor's binary", binary)],
        Monitor::Native(pod) => {
            let netns = pod.netns.as_deref().map(|path| ("network namespace", path));
            let own: [(&str, &Path); 4] =
                [("agent", &pod.agent), ("state", &pod.state), ("layers", &pod.layers), ("cgroup", &pod.cgroup)];
            own.into_iter().chain(netns).collect()
        }
    };
    let paths: [(&str, &Path); 7] = [
        ("control_socket", &launch.control_socket),
        ("descriptor_socket", &launch.descriptor_socket),
        ("vsock_socket", &launch.vsock_socket),
        ("exit_file", &launch.exit_file),
        ("console_file", &launch.console_file),
        ("kernel", &launch.kernel),
        ("initramfs", &launch.initramfs),
    ];
    let file_server = launch.file_server.as_ref().map(|path: &PathBuf| ("file_server", path.as_path()));
    for (what, path) in paths.into_iter().chain(file_server).chain(of_monitor) {
        if !path.is_absolute() {
            return refuse(format!("{what} is {}, not an absolute path", path.display()));
        }
    }
    Ok(())
}

/// Tells the daemon which process goes on. A daemon that is gone by now does not need to know.
pub fn announce(mut socket: &UnixStream, process: rustix::process::Pid) {
    let _ = socket.write_all(format!("pid {}\n", process.as_raw_nonzero()).as_bytes());
}

/// Tells the daemon how it went, and closes the socket. A daemon that is gone by now does not need to know.
pub fn answer(mut socket: UnixStream, result: Result<(), &str>) {
    let line = match result {
        Ok(()) => "ok\n".to_owned(),
        Err(text) => format!("error: {}\n", text.replace('\n', "; ")),
    };
    let _ = socket.write_all(line.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{IoSlice, Read, Seek};
    use std::mem::MaybeUninit;
    use std::os::fd::AsFd;

    use bulkhead_proto::launch::DeviceLimits;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    fn sample() -> Launch {
        Launch {
            protocol_version: PROTOCOL_VERSION,
            sandbox_id: "pod-1".into(),
            control_socket: "/run/c".into(),
            descriptor_socket: "/run/d".into(),
            vsock_socket: "/run/v".into(),
            exit_file: "/run/e".into(),
            console_file: "/run/o".into(),
            monitor: Monitor::Qemu { binary: "/usr/bin/qemu".into(), accelerator: "tcg".into() },
            kernel: "/k".into(),
            initramfs: "/i".into(),
            kernel_arguments: String::new(),
            vcpus: 1,
            memory_mib: 128,
            balloon_mib: 0,
            deflate_on_oom: false,
            taps: vec![vec![1]],
            scratch_drive: Some(0),
            file_server: None,
            cgroup: None,
            debug_console: false,
            jail: None,
            limits: DeviceLimits::default(),
        }
    }

    fn sent(bytes: &[u8], files: &[File]) -> Result<Orders, LaunchError> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        let bytes = bytes.to_vec();
        let half = bytes.len() / 2;
        let writer = ours.try_clone().unwrap();
        sendmsg(&ours, &[IoSlice::new(&bytes[..half])], &mut control, SendFlags::empty()).unwrap();
        let rest = std::thread::spawn(move || {
            let _ = (&writer).write_all(&bytes[half..]);
            let _ = writer.shutdown(std::net::Shutdown::Write);
        });
        let result = receive(&theirs);
        drop(theirs);
        rest.join().unwrap();
        result
    }

    fn files(count: usize) -> Vec<File> {
        (0..count)
            .map(|n| {
                let mut file = tempfile::tempfile().unwrap();
                write!(file, "{n}").unwrap();
                file.rewind().unwrap();
                file
            })
            .collect()
    }

    fn json(launch: &Launch) -> Vec<u8> {
        serde_json::to_vec(launch).unwrap()
    }

    #[test]
    fn orders_arrive_in_pieces_with_their_descriptors() {
        let orders = sent(&json(&sample()), &files(2)).unwrap();
        let mut text = String::new();
        orders.scratch.unwrap().read_to_string(&mut text).unwrap();
        assert_eq!((orders.taps.len(), text.as_str()), (1, "0"));
    }

    #[test]
    fn bad_orders_are_refused() {
        let mut cases: Vec<(Launch, usize, &str)> = Vec::new();
        let mut case = |change: fn(&mut Launch), count, text| {
            let mut launch = sample();
            change(&mut launch);
            cases.push((launch, count, text));
        };
        case(|_| {}, 1, "a tap is descriptor 1");
        case(|l| l.taps = vec![vec![]], 2, "tap 0 has 0 queues");
        case(|l| l.taps = vec![vec![1], (2..19).collect()], 20, "tap 1 has 17 queues");
        case(|l| l.taps = vec![vec![1, 2]], 3, "QEMU is given one");
        case(|l| l.taps = vec![vec![0]], 2, "the scratch drive is descriptor 0, which did not come or is in use");
        case(|l| l.protocol_version = 99, 2, "version 99");
        case(|l| l.vcpus = 0, 2, "vcpus is 0");
        case(|l| l.memory_mib = 1, 2, "memory_mib is 1");
        case(|l| l.balloon_mib = 100, 2, "balloon_mib is 100 of 128");
        case(|l| l.sandbox_id = "a,b".into(), 2, "sandbox_id");
        case(|l| l.kernel = "k".into(), 2, "kernel is k, not an absolute path");
        case(|l| l.kernel_arguments = "a\nb".into(), 2, "control character");
        case(|_| {}, rights::MAX + 1, "more than");
        for (launch, count, text) in cases {
            let error = sent(&json(&launch), &files(count)).unwrap_err().to_string();
            assert!(error.contains(text), "{error} does not contain {text}");
        }
        assert!(matches!(sent(b"{\"protocol", &[]), Err(LaunchError::Ended(10))));
        assert!(matches!(sent(b"nonsense", &[]), Err(LaunchError::Malformed(_))));
        assert!(matches!(sent(&[b' '; 70_000], &[]), Err(LaunchError::TooLong)));
    }

    #[test]
    fn answers_are_one_line() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        answer(theirs, Err("first\nsecond"));
        let mut text = String::new();
        ours.read_to_string(&mut text).unwrap();
        assert_eq!(text, "error: first; second\n");
    }
}
