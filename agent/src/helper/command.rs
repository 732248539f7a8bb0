//! From a prepared process to the container's command.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::mount::OpenTreeFlags;
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::{Gid, Uid};

use super::mounts::Attach;
use super::paths::Root;
use super::spec::{CapabilitySpec, ProcessSpec, Reply, Stdio};
use super::terminal::{self, Terminal};
use super::users::{self, Identity};
use super::{Descriptors, HelperError, at, capabilities, wait_for_start, wire};
use crate::sys;

const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const SYS_ADMIN: u64 = 1 << 21;

/// What is looked up and opened before the start.
#[derive(Debug)]
pub(super) struct Prepared {
    identity: Identity,
    capabilities: CapabilitySpec,
    streams: Streams,
}

#[derive(Debug)]
enum Streams {
    Pipes([OwnedFd; 3]),
    Terminal(Terminal),
}

impl Prepared {
    /// The user that the process will have.
    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(super) fn has_terminal(&self) -> bool {
        matches!(self.streams, Streams::Terminal(_))
    }

    /// Makes the process's terminal /dev/console too.
    pub(super) fn bind_console(&self, root: &Root, attach: Attach) -> Result<(), HelperError> {
        let Streams::Terminal(terminal) = &self.streams else { return Ok(()) };
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let tree = rustix::mount::open_tree(&terminal.terminal, "", flags).map_err(at("clone the terminal"))?;
        root.ensure_file(Path::new("/dev/console"))
            .and_then(|target| attach(tree.as_fd(), target.as_fd()))
            .map_err(at("mount /dev/console"))
    }
}

/// Looks the user up and opens the streams; the current root is the container's.
pub(super) fn prepare(
    process: &ProcessSpec,
    fds: &Descriptors,
    warnings: &mut Vec<String>,
) -> Result<Prepared, HelperError> {
    let identity = users::look_up(&process.user).map_err(|error| HelperError::Refused(error.to_string()))?;
    check_ids(process.ids, &identity)?;
    let own = |fd| -> Result<OwnedFd, HelperError> { fds.get(fd)?.try_clone_to_owned().map_err(at("keep a stream")) };
    let streams = match process.stdio {
        Stdio::Pipes(input, output, error) => Streams::Pipes([own(input)?, own(output)?, own(error)?]),
        Stdio::Terminal(rows, columns) => Streams::Terminal(terminal::open(rows, columns)?),
    };
    let capabilities = capabilities::within_reach(&process.capabilities, warnings)?;
    Ok(Prepared { identity, capabilities, streams })
}

/// An id that the pod's user namespace lacks would be refused by the kernel without a name.
fn check_ids(ids: Option<(u32, u32)>, identity: &Identity) -> Result<(), HelperError> {
    let Some((uids, gids)) = ids else { return Ok(()) };
    let outside = |kind, id, count| {
        let last = u32::saturating_sub(count, 1);
        Err(HelperError::Refused(format!(
            "{kind} {id} is not in the pod's user namespace, which has 0 to {last}; map more of the host's or use one of these"
        )))
    };
    if identity.uid >= uids {
        return outside("user id", identity.uid, uids);
    }
    match identity.groups.iter().chain([&identity.gid]).find(|gid| **gid >= gids) {
        Some(gid) => outside("group id", *gid, gids),
        None => Ok(()),
    }
}

/// Tells the agent that all is built, waits for its word and becomes the command.
pub(super) fn report_and_start(
    control: &UnixStream,
    process: &ProcessSpec,
    prepared: Prepared,
    warnings: Vec<String>,
) -> Result<(), HelperError> {
    let terminal = match &prepared.streams {
        Streams::Terminal(terminal) => vec![terminal.controller.as_fd()],
        Streams::Pipes(_) => Vec::new(),
    };
    let identity = Some(prepared.identity.clone());
    wire::send(control, &Reply::Ready { warnings, identity }, &terminal).map_err(at("report"))?;
    if wait_for_start(control)? { start(process, &prepared) } else { Ok(()) }
}

fn start(process: &ProcessSpec, prepared: &Prepared) -> Result<(), HelperError> {
    set_rlimits(process)?;
    let Prepared { identity, capabilities, streams } = prepared;
    take_streams(streams, identity.uid)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let directory = process.working_directory.as_str();
    let entered = enter(directory);
    become_user(identity, &until_exec(process, capabilities))?;
    if entered.is_err() {
        enter(directory).map_err(at(format!("enter the working directory {directory:?}")))?;
    }
    sys::close_on_exec_from_3().map_err(at("close inherited descriptors"))?;
    sys::reset_signals();
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).map_err(at("set no_new_privs"))?;
    }
    let command = Command::find(process, &identity.home)?;
    if let Some(program) = &process.seccomp {
        // Last: the container's own filter need not allow what the steps before it take.
        sys::set_seccomp_filter(program).map_err(at("install the seccomp filter"))?;
    }
    Err(command.exec())
}

/// Makes it the current directory, unless a link of /proc leads there, which may lead out of the container.
fn enter(directory: &str) -> rustix::io::Result<()> {
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let directory = Root::new(root).open(Path::new(directory), OFlags::PATH | OFlags::DIRECTORY)?;
    rustix::process::fchdir(directory)
}

/// A filter without no_new_privs takes CAP_SYS_ADMIN until the exec, which computes the permitted set anew from the
/// bounding, inheritable and ambient ones.
fn until_exec(process: &ProcessSpec, wanted: &CapabilitySpec) -> CapabilitySpec {
    if process.seccomp.is_none() || process.no_new_privileges {
        return *wanted;
    }
    CapabilitySpec { permitted: wanted.permitted | SYS_ADMIN, effective: wanted.effective | SYS_ADMIN, ..*wanted }
}

fn become_user(identity: &Identity, wanted: &CapabilitySpec) -> Result<(), HelperError> {
    capabilities::limit_bounding(wanted.bounding)?;
    rustix::thread::set_keep_capabilities(true).map_err(at("keep capabilities"))?;
    let groups: Vec<Gid> = identity.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    rustix::thread::set_thread_groups(&groups).map_err(at("set the groups"))?;
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(at(format!("become group {}", identity.gid)))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(at(format!("become user {}", identity.uid)))?;
    // A change of user gives the setting that the host has for set-user-id programs.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(at("become non-dumpable"))?;
    rustix::thread::set_keep_capabilities(false).map_err(at("stop keeping capabilities"))?;
    capabilities::apply(wanted)
}

/// Puts the streams on 0, 1 and 2, so that the user may open /dev/stdout again.
fn take_streams(streams: &Streams, uid: u32) -> Result<(), HelperError> {
    let fds = match streams {
        Streams::Pipes([input, output, error]) => [input.as_fd(), output.as_fd(), error.as_fd()],
        Streams::Terminal(Terminal { terminal, .. }) => {
            sys::set_controlling_terminal(terminal.as_fd()).map_err(at("take the terminal"))?;
            [terminal.as_fd(); 3]
        }
    };
    for fd in fds {
        give_to(fd, uid).map_err(at("hand a stream to the user"))?;
    }
    rustix::stdio::dup2_stdin(fds[0])
        .and_then(|()| rustix::stdio::dup2_stdout(fds[1]))
        .and_then(|()| rustix::stdio::dup2_stderr(fds[2]))
        .map_err(at("set the standard streams"))
}

fn give_to(fd: BorrowedFd<'_>, uid: u32) -> rustix::io::Result<()> {
    let stat = rustix::fs::fstat(fd)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let shared_device = kind == FileType::CharacterDevice && rustix::fs::major(stat.st_rdev) == 1;
    if stat.st_uid == uid || shared_device {
        return Ok(());
    }
    rustix::fs::fchown(fd, Some(rustix::fs::Uid::from_raw(uid)), None)
}

/// The kernel's score for the OOM killer; below the agent's own it takes CAP_SYS_RESOURCE.
pub(super) fn set_oom_score(process: &ProcessSpec, warnings: &mut Vec<String>) -> Result<(), HelperError> {
    let Some(score) = process.oom_score_adj else { return Ok(()) };
    match super::write_setting("/proc/self/oom_score_adj", &score.to_string()) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            warnings.push(format!("oom_score_adj {score} takes CAP_SYS_RESOURCE, which the agent lacks"));
            Ok(())
        }
        other => other.map_err(at(format!("set oom_score_adj {score}"))),
    }
}

fn set_rlimits(process: &ProcessSpec) -> Result<(), HelperError> {
    for (name, soft, hard) in &process.rlimits {
        let resource = rlimit(name).ok_or_else(|| HelperError::Refused(format!("unknown rlimit {name:?}")))?;
        let number = |value: u64| Some(value).filter(|value| *value != u64::MAX);
        let limit = Rlimit { current: number(*soft), maximum: number(*hard) };
        rustix::process::setrlimit(resource, limit).map_err(at(format!("set {name} to {soft}:{hard}")))?;
    }
    Ok(())
}

fn rlimit(name: &str) -> Option<Resource> {
    Some(match name {
        "RLIMIT_CPU" => Resource::Cpu,
        "RLIMIT_FSIZE" => Resource::Fsize,
        "RLIMIT_DATA" => Resource::Data,
        "RLIMIT_STACK" => Resource::Stack,
        "RLIMIT_CORE" => Resource::Core,
        "RLIMIT_RSS" => Resource::Rss,
        "RLIMIT_NPROC" => Resource::Nproc,
        "RLIMIT_NOFILE" => Resource::Nofile,
        "RLIMIT_MEMLOCK" => Resource::Memlock,
        "RLIMIT_AS" => Resource::As,
        "RLIMIT_LOCKS" => Resource::Locks,
        "RLIMIT_SIGPENDING" => Resource::Sigpending,
        "RLIMIT_MSGQUEUE" => Resource::Msgqueue,
        "RLIMIT_NICE" => Resource::Nice,
        "RLIMIT_RTPRIO" => Resource::Rtprio,
        "RLIMIT_RTTIME" => Resource::Rttime,
        _ => return None,
    })
}

/// Makes the working directory, as images rely on.
pub(super) fn make_working_directory(process: &ProcessSpec) -> Result<(), HelperError> {
    let directory = &process.working_directory;
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(at("open the root"))?;
    Root::new(root)
        .ensure_directory(Path::new(directory), Mode::from_raw_mode(0o755))
        .map(drop)
        .map_err(at(format!("make the working directory {directory:?}")))
}

/// A command that is found, with all that exec takes.
#[derive(Debug)]
struct Command {
    program: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Command {
    fn find(process: &ProcessSpec, home: &str) -> Result<Self, HelperError> {
        let refused = |text: String| HelperError::Refused(text);
        let strings = |list: &[Vec<u8>]| list.iter().cloned().map(CString::new).collect::<Result<Vec<_>, _>>();
        let (Ok(args), Ok(mut env)) = (strings(&process.args), strings(&process.env)) else {
            return Err(refused("an argument or environment variable holds a NUL byte".into()));
        };
        let Some(command) = args.first() else { return Err(refused("there is no command".into())) };
        let has = |name: &[u8]| process.env.iter().any(|e| e.starts_with(name));
        let mut default = |name: &str, value: &str| {
            if !has(name.as_bytes())
                && let Ok(variable) = CString::new(format!("{name}{value}"))
            {
                env.push(variable);
            }
        };
        default("HOME=", home);
        if matches!(process.stdio, Stdio::Terminal(..)) {
            default("TERM=", "xterm");
        }
        let path = process.env.iter().rev().find_map(|e| e.strip_prefix(b"PATH=")).unwrap_or(DEFAULT_PATH);
        let program = find(command, path).map_err(|why| refused(format!("exec {}: {why}", quoted(command))))?;
        Ok(Self { program, args, env })
    }

    fn exec(&self) -> HelperError {
        let args: Vec<&CStr> = self.args.iter().map(CString::as_c_str).collect();
        let env: Vec<&CStr> = self.env.iter().map(CString::as_c_str).collect();
        match sys::execve(&self.program, &args, &env) {
            Ok(never) => match never {},
            Err(error) => HelperError::Refused(format!("exec {}: {}", quoted(&self.program), exec_reason(&error))),
        }
    }
}

fn quoted(text: &CStr) -> String {
    format!("{:?}", text.to_string_lossy())
}

fn exec_reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => "no such file or directory".into(),
        Some(libc::EACCES) => "permission denied".into(),
        Some(libc::ENOEXEC) => "exec format error".into(),
        Some(libc::ENOTDIR) => "not a directory".into(),
        Some(libc::E2BIG) => "argument list too long".into(),
        _ => error.to_string(),
    }
}

/// Where `command` is, by the shell's rules.
fn find(command: &CStr, path: &[u8]) -> Result<CString, String> {
    let name = command.to_bytes();
    if name.contains(&b'/') {
        return Ok(command.to_owned());
    }
    let mut reason = "executable file not found in $PATH";
    for directory in path.split(|byte| *byte == b':').filter(|_| !name.is_empty()) {
        let directory = if directory.is_empty() { b"." } else { directory };
        let candidate = [directory, b"/", name].concat();
        let candidate_path = Path::new(std::ffi::OsStr::from_bytes(&candidate));
        if !candidate_path.metadata().is_ok_and(|m| m.is_file()) {
            continue;
        }
        match rustix::fs::access(candidate_path, rustix::fs::Access::EXEC_OK) {
            Ok(()) => return CString::new(candidate).map_err(|error| error.to_string()),
            Err(_) => reason = "permission denied",
        }
    }
    Err(reason.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_outside_of_the_user_namespace_are_named() {
        let identity = |uid, gid| Identity { uid, gid, groups: vec![gid, 7], home: "/".into() };
        check_ids(None, &identity(u32::MAX, u32::MAX)).unwrap();
        check_ids(Some((65536, 65536)), &identity(65535, 65535)).unwrap();
        for (identity, name) in [(identity(65536, 0), "user id 65536"), (identity(0, 70000), "group id 70000")] {
            let text = check_ids(Some((65536, 65536)), &identity).unwrap_err().to_string();
            assert!(text.contains(name) && text.contains("0 to 65535"), "{text}");
        }
        assert!(check_ids(Some((8, 7)), &identity(0, 0)).is_err(), "a further group");
    }

    #[test]
    fn commands_are_found_as_a_shell_would() {
        let path = b"/nonexistent:/usr/bin:/bin";
        assert!(find(c"sh", path).unwrap().to_string_lossy().ends_with("/sh"));
        assert_eq!(find(c"./x", path).unwrap().as_c_str(), c"./x");
        assert_eq!(find(c"no-such-command", path).unwrap_err(), "executable file not found in $PATH");
        assert!(find(c"", path).is_err());
    }

    #[test]
    fn a_file_without_execute_permission_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tool"), "x").unwrap();
        let path = dir.path().as_os_str().as_bytes();
        assert_eq!(find(c"tool", path).unwrap_err(), "permission denied");
    }
}
