//! What an inmate tries.
#![allow(unsafe_code)]

use std::io;

/// What lies outside the jail.
#[derive(Clone)]
pub struct Surroundings {
    /// A process of another user, by its number outside.
    pub neighbour: i32,
    /// A socket's path outside.
    pub socket: String,
    /// A TCP port of the host's loopback.
    pub port: u16,
}

/// One attempt.
pub struct Probe {
    pub name: &'static str,
    /// Whether seccomp answers with the process's end; else with an error.
    pub kills: bool,
    pub attempt: fn(&Surroundings) -> io::Result<()>,
}

const fn kills(name: &'static str, attempt: fn(&Surroundings) -> io::Result<()>) -> Probe {
    Probe { name, kills: true, attempt }
}

pub const PROBES: &[Probe] = &[
    kills("open_a_file", |_| std::fs::File::open("/etc/passwd").map(drop)),
    kills("list_the_root", |_| match std::fs::read_dir("/")?.next() {
        Some(entry) => entry.map(drop),
        None => Err(io::ErrorKind::NotFound.into()),
    }),
    kills("make_a_file", |_| std::fs::File::create("/x").map(drop)),
    kills("make_a_directory", |_| std::fs::create_dir("/x")),
    Probe { name: "remove_a_socket", kills: false, attempt: |s| std::fs::remove_file(&s.socket) },
    kills("open_own_memory", |_| std::fs::File::open("/proc/self/mem").map(drop)),
    kills("connect_a_unix_socket", |s| connect_unix(&s.socket)),
    kills("connect_to_the_hosts_loopback", |s| connect_tcp(s.port)),
    kills("trace_a_neighbour", |s| ptrace(libc::PTRACE_ATTACH, s.neighbour)),
    kills("read_a_neighbours_memory", |s| {
        let mut byte = 0_u8;
        let ours = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let theirs = libc::iovec { iov_base: std::ptr::without_provenance_mut(0x40_0000), iov_len: 1 };
        // SAFETY: both vectors have one element, and `byte` has room for what `ours` says.
        check(unsafe { libc::process_vm_readv(s.neighbour, &raw const ours, 1, &raw const theirs, 1, 0) })
    }),
    kills("kill_a_neighbour", |s| check_int(call(libc::SYS_kill, [s.neighbour.into(), libc::SIGKILL.into(), 0]))),
    kills("kill_everybody", |_| check_int(call(libc::SYS_kill, [-1, libc::SIGKILL.into(), 0]))),
    kills("open_a_neighbours_pidfd", |s| check_int(call(libc::SYS_pidfd_open, [s.neighbour.into(), 0, 0]))),
    kills("execute_a_program", |_| std::process::Command::new("/bin/true").spawn().map(drop)),
    kills("become_root", |_| check_int(call(libc::SYS_setuid, [0, 0, 0]))),
    kills("mount", |_| {
        let none = None::<&str>;
        Ok(nix::mount::mount(Some("x"), "/", Some("tmpfs"), nix::mount::MsFlags::empty(), none)?)
    }),
    kills("change_the_root", |_| {
        Ok(rustix::process::chroot("/..")?).and_then(|()| std::fs::metadata("/etc").map(drop))
    }),
    kills("load_a_bpf_program", |_| check_int(call(libc::SYS_bpf, [0, 0, 0]))),
    kills("change_the_host_name", |_| Ok(rustix::system::sethostname(b"x")?)),
    kills("join_the_hosts_network", |s| {
        let path = format!("/proc/{}/ns/net", s.neighbour);
        let namespace = std::fs::File::open(path)?;
        Ok(nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET)?)
    }),
];

/// Runs one probe by name, or all.
pub fn run(name: &str, surroundings: &Surroundings) {
    for probe in PROBES.iter().filter(|probe| name == "all" || probe.name == name) {
        match (probe.attempt)(surroundings) {
            Ok(()) => println!("{}: done", probe.name),
            Err(error) => println!("{}: refused: {error}", probe.name),
        }
    }
}

// Raw, because in the lists socket(2) fails softly: connect(2) is what must end the process.
fn connect_unix(path: &str) -> io::Result<()> {
    let socket = match rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None) {
        Ok(socket) => socket,
        Err(_) => return check_int(call(libc::SYS_connect, [0, 0, 0])),
    };
    Ok(rustix::net::connect(&socket, &rustix::net::SocketAddrUnix::new(path)?)?)
}

fn connect_tcp(port: u16) -> io::Result<()> {
    match std::net::TcpStream::connect(("127.0.0.1", port)) {
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => check_int(call(libc::SYS_connect, [0, 0, 0])),
        Err(error) => Err(error),
    }
}

fn ptrace(request: libc::c_uint, pid: i32) -> io::Result<()> {
    // SAFETY: attaching takes no addresses.
    check_int(unsafe { libc::ptrace(request, pid, 0, 0) })
}

fn call(number: libc::c_long, arguments: [libc::c_long; 3]) -> libc::c_long {
    let [a, b, c] = arguments;
    // SAFETY: callers pass numbers only, and null where the kernel would take an address.
    unsafe { libc::syscall(number, a, b, c) }
}

fn check(result: isize) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn check_int(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
