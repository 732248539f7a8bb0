//! Callers that go away in the middle: streaming clients whose input nobody reads, creations that outlive their deadline,
//! removals that do not get through.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bulkhead_tests::command;
use bulkhead_tests::cri::Cri;
use bulkhead_tests::environment::Handler;
use bulkhead_tests::fixture::Fixture;
use bulkhead_tests::pod::{Container, Pod};
use bulkhead_tests::streaming::{Session, exec_url};
use bulkhead_tests::wait;
use rustix::process::{Pid, Signal, kill_process};
use tonic::Code;

bulkhead_tests::suite!(
    Fixture;
    a_client_with_unread_input_is_seen_to_go,
    crictl_with_unread_input_is_seen_to_go,
    a_forwarded_port_that_takes_nothing_is_let_go,
    a_creation_that_outlived_its_caller_is_found_by_the_retry,
    a_removal_that_failed_does_not_keep_the_name,
);

/// Longer than a probe of a silent client and a close that a guest does not confirm take on a slow machine.
const LIMIT: Duration = Duration::from_secs(120);

fn sleeper(f: &Fixture, name: &str) -> Result<(Pod, Container)> {
    let pod = f.pod(name)?;
    let container = pod.start(&f.shell("sleep 100000")?)?;
    // What the first command leaves open for good is open from here on.
    container.exec(&["true"])?;
    Ok((pod, container))
}

/// The agent of a pod without a machine.
fn agent_of(pod: &Pod) -> Result<Option<Pid>> {
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let command = fs::read(path.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).into_owned();
        let number = path.file_name().and_then(|name| name.to_str()?.parse().ok()).and_then(Pid::from_raw);
        if let Some(pid) = number
            && command.contains("\0--listen\0")
            && command.contains(&pod.id)
        {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

fn descriptors(pid: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// Descriptors of the daemon, and of the agent where it is a process of this host.
struct Open {
    daemon: (u32, usize),
    agent: Option<(u32, usize)>,
}

impl Open {
    /// As they are when nothing changes any more.
    fn now(f: &Fixture, pod: &Pod) -> Result<Self> {
        let settled = |pid: u32| -> Result<(u32, usize)> {
            let (mut before, mut since) = (0, Instant::now());
            wait::until("the descriptors to settle", LIMIT, || {
                let now = descriptors(pid)?;
                if now != before {
                    (before, since) = (now, Instant::now());
                }
                Ok((since.elapsed() > Duration::from_secs(1)).then_some((pid, now)))
            })
        };
        let daemon = settled(f.daemon.pid().context("no daemon")?)?;
        let agent = agent_of(pod)?.map(|pid| settled(pid.as_raw_nonzero().get().cast_unsigned())).transpose()?;
        Ok(Self { daemon, agent })
    }

    /// Waits until the daemon has no more than then, and the agent no more than `of_process` for a process that runs on.
    fn again(&self, of_process: usize) -> Result<()> {
        let (pid, before) = self.daemon;
        wait::until("the end of the client's session", LIMIT, || Ok((descriptors(pid)? <= before).then_some(())))?;
        let Some((pid, before)) = self.agent else { return Ok(()) };
        wait::until("the end of the agent's connection", LIMIT, || {
            Ok((descriptors(pid)? <= before + of_process).then_some(()))
        })
    }
}

/// Two pipes of output and a pidfd.
const OF_PROCESS: usize = 3;

fn runs(container: &Container, command: &str) -> Result<bool> {
    Ok(container.exec(&["ps", "-o", "args"])?.stdout.lines().any(|line| line == command))
}

fn a_client_with_unread_input_is_seen_to_go(f: &mut Fixture) -> Result<()> {
    let (pod, container) = sleeper(f, "flood")?;
    let before = Open::now(f, &pod)?;
    let mut session = Session::open(&exec_url(f.cri(), &container.id, &["sleep", "4001"], false)?)?;
    session.flood()?;
    ensure!(descriptors(before.daemon.0)? > before.daemon.1, "the session takes descriptors");
    drop(session);
    before.again(OF_PROCESS)?;
    // It does not read, so that the end of its input does not end it.
    ensure!(runs(&container, "sleep 4001")?, "the command was killed");
    Ok(())
}

/// Writes to a program, or a connection, until nobody takes anything for a second.
fn flood(mut to: impl Write + Send + 'static) -> Result<()> {
    let written = Arc::new(AtomicUsize::new(0));
    let count = written.clone();
    // Ends when the other side has gone.
    std::thread::spawn(move || {
        while let Ok(more) = to.write(&[b'x'; 64 * 1024]) {
            count.fetch_add(more, Ordering::Relaxed);
        }
    });
    let (mut before, mut since) = (0, Instant::now());
    wait::until("full buffers", LIMIT, || {
        let now = written.load(Ordering::Relaxed);
        if now != before {
            (before, since) = (now, Instant::now());
        }
        Ok((now > 0 && since.elapsed() > Duration::from_secs(2)).then_some(()))
    })
}

/// Killed with the value.
struct Client(Child);

impl Drop for Client {
    fn drop(&mut self) {
        // It has ended already when this fails.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn crictl_with_unread_input_is_seen_to_go(f: &mut Fixture) -> Result<()> {
    let (pod, container) = sleeper(f, "client")?;
    for (transport, command) in [("spdy", "4002"), ("websocket", "4003")] {
        let before = Open::now(f, &pod)?;
        let exec = ["exec", "-i", "--transport", transport, &container.id, "sleep", command];
        let mut client = Client(f.crictl()?.command(&exec).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?);
        flood(client.0.stdin.take().context("no input")?)?;
        ensure!(runs(&container, &format!("sleep {command}"))?, "{transport}: no command");
        drop(client);
        before.again(OF_PROCESS).context(transport)?;
    }
    Ok(())
}

fn a_forwarded_port_that_takes_nothing_is_let_go(f: &mut Fixture) -> Result<()> {
    let pod = f.pod("stuck")?;
    let container = pod.start(&f.shell("echo ready; exec nc -ll -p 7000 -e sleep 4004")?)?;
    container.says("ready")?;
    container.exec(&["true"])?;
    let before = Open::now(f, &pod)?;
    let forward = ["port-forward", "--transport", "spdy", &pod.id, "0:7000"];
    let mut client = Client(f.crictl()?.command(&forward).stdout(Stdio::piped()).spawn()?);
    let mut line = String::new();
    // Kept: crictl ends when nobody reads what it says.
    let mut output = BufReader::new(client.0.stdout.take().context("no output")?);
    output.read_line(&mut line)?;
    // "Forwarding from 127.0.0.1:40000 -> 7000"
    let address = line.split_whitespace().find(|word| word.contains("127.0.0.1:")).context(line.clone())?;
    flood(TcpStream::connect(address)?)?;
    ensure!(descriptors(before.daemon.0)? > before.daemon.1, "the session takes descriptors");
    drop(client);
    before.again(0)
}

fn only_native(f: &Fixture, why: &str) -> Result<()> {
    if f.environment.handler == Handler::Native {
        return Ok(());
    }
    bulkhead_tests::skip!("{why}")
}

fn a_creation_that_outlived_its_caller_is_found_by_the_retry(f: &mut Fixture) -> Result<()> {
    only_native(f, "the agent of a machine cannot be stopped from the host")?;
    let pod = f.pod("late")?;
    let spec = f.shell("echo here; sleep 1000")?;
    let agent = agent_of(&pod)?.context("no agent")?;
    let caller = Cri::new(&f.daemon.settings.socket())?;
    kill_process(agent, Signal::STOP)?;
    let refused = caller.create_container_within(pod.creation(&spec), Duration::from_secs(3));
    kill_process(agent, Signal::CONT)?;
    let refused = refused.err().context("the caller waited")?;
    ensure!([Code::DeadlineExceeded, Code::Cancelled].contains(&refused.code), "{refused}");
    let made = wait::until("the container", LIMIT, || Ok(f.cri().containers()?.pop()))?;
    let retried = pod.create(&spec)?;
    ensure!(retried.id == made.id, "{} and {}", retried.id, made.id);
    // Once it was told, another one of its name is a twin.
    let twin = pod.create(&spec).err().context("a twin was made")?;
    ensure!(twin.code == Code::AlreadyExists, "{twin}");
    retried.start()?;
    retried.says("here")
}

/// A file that nobody can remove.
struct Immutable(PathBuf);

impl Immutable {
    fn make(path: PathBuf) -> Result<Self> {
        fs::write(&path, "")?;
        let made = Self(path);
        if let Err(error) = made.set("+i")? {
            bulkhead_tests::skip!("this file system has no immutable files: {error:#}");
        }
        Ok(made)
    }

    fn set(&self, flag: &str) -> Result<Result<()>> {
        let output = command::run("chattr", &[flag.as_ref(), self.0.as_os_str()], Duration::from_secs(10))?;
        Ok(output.success().map(drop))
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        // It is gone with its container when this fails.
        let _ = self.set("-i");
    }
}

/// The upper directory of the only container.
fn upper(root: &Path, pod: &Pod, container: &Container) -> PathBuf {
    root.join("layers").join(&pod.id).join(&container.id).join("upper")
}

fn a_removal_that_failed_does_not_keep_the_name(f: &mut Fixture) -> Result<()> {
    only_native(f, "the writable layers of a machine are not on this host")?;
    let pod = f.pod("kept")?;
    let spec = f.shell("echo made; sleep 1000")?;
    let first = pod.start(&spec)?;
    first.says("made")?;
    let stays = Immutable::make(upper(&f.daemon.settings.root, &pod, &first).join("stays"))?;
    first.remove().err().context("it was removed whole")?;
    ensure!(f.cri().containers()?.is_empty(), "half a container is listed");
    let second = pod.start(&spec)?;
    ensure!(second.id != first.id, "half a container was found again");
    second.says("made")?;
    drop(stays);
    // The kubelet asks again for what it did not see go.
    first.remove()?;
    second.remove()?;
    Ok(())
}
