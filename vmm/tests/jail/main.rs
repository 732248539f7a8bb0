//! What a process in the jail can still reach, tried from inside: of every role, and without seccomp to see the other walls.
//!
//! This binary is its own inmate: `jail inmate ROLE PROBE NEIGHBOUR` enters the jail and tries one thing. Nothing of this is
//! in the product. Runs as root, in one process with one thread.
#![allow(clippy::unwrap_used)]

mod inmate;
mod probes;

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, ExitCode, Stdio};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use probes::Surroundings;

/// What became of an inmate.
struct End {
    status: WaitStatus,
    words: String,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("inmate") => return inmate::run(&arguments[1..]),
        // What test runners ask of a suite.
        Some("--list") => return ExitCode::SUCCESS,
        _ => {}
    }
    if let Some(why) = missing() {
        println!("skipped: jail: {why}");
        return ExitCode::SUCCESS;
    }
    let neighbour = Neighbour::start();
    let mut failed = 0;
    for (name, test) in TESTS {
        let wanted = arguments.iter().filter(|word| !word.starts_with('-')).all(|word| name.contains(word.as_str()));
        if !wanted {
            continue;
        }
        match test(&neighbour) {
            Ok(()) => println!("test {name} ... ok"),
            Err(what) => {
                failed += 1;
                println!("test {name} ... FAILED\n    {what}");
            }
        }
    }
    println!("test result: {}. {failed} failed", if failed == 0 { "ok" } else { "FAILED" });
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

type Test = fn(&Neighbour) -> Result<(), String>;
const TESTS: [(&str, Test); 5] = [
    ("walls_without_seccomp_refuse_everything", walls_refuse),
    ("what_is_left_is_nothing", nothing_is_left),
    ("every_role_dies_of_what_it_may_not_do", roles_die),
    ("every_role_can_do_its_work", roles_work),
    ("a_root_user_is_no_jail", root_is_refused),
];

fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root".into());
    }
    let made = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS | nix::sched::CloneFlags::CLONE_NEWCGROUP);
    made.err().map(|error| format!("cannot make namespaces here: {error}"))
}

/// Somebody who must not be touched, and what he listens on.
struct Neighbour {
    process: Child,
    surroundings: Surroundings,
    _listeners: (UnixListener, TcpListener),
    _directory: tempfile::TempDir,
}

impl Neighbour {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let unix = UnixListener::bind(&path).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let process = Command::new("sleep").arg("600").spawn().unwrap();
        let surroundings = Surroundings {
            neighbour: i32::try_from(process.id()).unwrap(),
            socket: path.to_str().unwrap().to_owned(),
            port: tcp.local_addr().unwrap().port(),
        };
        Self { process, surroundings, _listeners: (unix, tcp), _directory: directory }
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs an inmate to its end. Its first line tells who it is: the process that was started ends at once.
fn inmate(uid: u32, role: &str, probe: &str, surroundings: &Surroundings) -> Result<End, String> {
    // Not by its path, which leads elsewhere in another mount namespace.
    let mut first = Command::new("/proc/self/exe")
        .args(["inmate", &uid.to_string(), role, probe])
        .args([surroundings.neighbour.to_string(), surroundings.socket.clone(), surroundings.port.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let mut output = BufReader::new(first.stdout.take().ok_or("no output")?);
    let mut line = String::new();
    output.read_line(&mut line).map_err(|error| error.to_string())?;
    first.wait().map_err(|error| error.to_string())?;
    let pid = line.trim().strip_prefix("pid ").and_then(|pid| pid.parse().ok());
    let pid = pid.ok_or_else(|| format!("the inmate said {line:?} instead of its pid"))?;
    let mut words = String::new();
    output.read_to_string(&mut words).map_err(|error| error.to_string())?;
    let status = waitpid(Pid::from_raw(pid), None).map_err(|error| format!("cannot await the inmate: {error}"))?;
    Ok(End { status, words })
}

const UID: u32 = 2_000_000_123;

fn walls_refuse(neighbour: &Neighbour) -> Result<(), String> {
    let end = inmate(UID, "none", "all", &neighbour.surroundings)?;
    if !matches!(end.status, WaitStatus::Exited(_, 0)) {
        return Err(format!("{:?} after {}", end.status, end.words));
    }
    let reached: Vec<_> = end.words.lines().filter(|line| line.ends_with(": done")).collect();
    if !reached.is_empty() {
        return Err(format!("from inside the jail: {reached:?}"));
    }
    let tried = end.words.lines().filter(|line| line.contains(": refused")).count();
    if tried != probes::PROBES.len() {
        return Err(format!("{tried} probes of {}: {}", probes::PROBES.len(), end.words));
    }
    Ok(())
}

fn nothing_is_left(neighbour: &Neighbour) -> Result<(), String> {
    let end = inmate(UID, "none", "state", &neighbour.surroundings)?;
    match end.status {
        WaitStatus::Exited(_, 0) => Ok(()),
        status => Err(format!("{status:?}: {}", end.words)),
    }
}

fn roles_die(neighbour: &Neighbour) -> Result<(), String> {
    for role in ["control", "vcpu", "device"] {
        for probe in probes::PROBES.iter().filter(|probe| probe.kills) {
            let end = inmate(UID, role, probe.name, &neighbour.surroundings)?;
            if !matches!(end.status, WaitStatus::Signaled(_, nix::sys::signal::Signal::SIGSYS, _)) {
                return Err(format!("{role} survived {}: {:?} {}", probe.name, end.status, end.words));
            }
        }
    }
    Ok(())
}

fn roles_work(neighbour: &Neighbour) -> Result<(), String> {
    for role in ["control", "vcpu", "device"] {
        let end = inmate(UID, role, "work", &neighbour.surroundings)?;
        if !matches!(end.status, WaitStatus::Exited(_, 0)) {
            return Err(format!("{role}: {:?} {}", end.status, end.words));
        }
    }
    Ok(())
}

fn root_is_refused(neighbour: &Neighbour) -> Result<(), String> {
    let end = inmate(0, "none", "state", &neighbour.surroundings)?;
    match end.status {
        WaitStatus::Exited(_, 3) if end.words.contains("no unprivileged user") => Ok(()),
        status => Err(format!("{status:?}: {}", end.words)),
    }
}
