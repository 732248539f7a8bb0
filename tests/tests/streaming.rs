//! Exec, attach and port-forward by crictl (SPDY and WebSocket) and by a client of our own; ExecSync; logs under stress.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bulkhead_proto::cri;
use bulkhead_tests::crictl::Crictl;
use bulkhead_tests::fixture::Fixture;
use bulkhead_tests::pod::{Container, Pod};
use bulkhead_tests::streaming::{Session, attach_url, exec_url, parts};
use bulkhead_tests::{http, wait};
use tonic::Code;

bulkhead_tests::suite!(
    Fixture;
    exec_gives_output_and_exit_code,
    exec_input_is_half_closed,
    ten_thousand_lines_come_in_order,
    a_command_that_cannot_run_says_why,
    a_terminal_follows_the_clients_size,
    a_client_that_vanishes_ends_the_input,
    a_client_that_vanishes_hangs_up_its_terminal,
    a_process_outlives_its_client,
    two_hundred_sessions_at_once,
    attach_joins_the_containers_streams,
    several_clients_attach_at_once,
    stdin_once_ends_with_its_client,
    ports_are_forwarded,
    a_forwarded_connection_is_half_closed,
    a_port_that_nobody_listens_on_is_told,
    a_url_works_once,
    what_makes_no_sense_is_refused,
    exec_sync_kills_the_session_at_its_timeout,
    exec_sync_ends_with_its_caller,
    exec_sync_does_not_wait_for_background_children,
    exec_sync_output_is_bounded,
    a_full_log_disk_hangs_nobody,
);

const LIMIT: Duration = Duration::from_secs(180);
const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];

fn sleeper(f: &Fixture, name: &str) -> Result<(Pod, Container)> {
    let pod = f.pod(name)?;
    let container = pod.start(&f.shell("sleep 100000")?)?;
    Ok((pod, container))
}

fn exec_gives_output_and_exit_code(f: &mut Fixture) -> Result<()> {
    let (_pod, container) = sleeper(f, "exec")?;
    let crictl = f.crictl()?;
    for transport in TRANSPORTS {
        let exec = ["exec", "--transport", transport, &container.id];
        let output = crictl.run(&[&exec[..], &["sh", "-c", "echo out; echo err >&2"]].concat())?.success()?;
        ensure!(output.stdout == "out\n" && output.stderr == "err\n", "{transport}: {output}");
        let failed = crictl.run(&[&exec[..], &["sh", "-c", "echo out; exit 3"]].concat())?;
        ensure!(failed.stdout == "out\n", "{transport}: {failed}");
        let told = failed.failure()?;
        ensure!(told.contains("exit code 3") || told.contains("exit status 3"), "{transport}: {told}");
    }
    Ok(())
}

fn exec_input_is_half_closed(f: &mut Fixture) -> Result<()> {
    let (_pod, container) = sleeper(f, "input")?;
    let crictl = f.crictl()?;
    let input: String = (0..2000).map(|n| format!("line {n} of the input\n")).collect();
    for transport in TRANSPORTS {
        let exec = ["exec", "-i", "--transport", transport, &container.id, "sh", "-c", "cat; echo end"];
        let output = crictl.run_with_input(&exec, input.as_bytes())?.success()?;
        ensure!(output.stdout == format!("{input}end\n"), "{transport}: {} bytes came back", output.stdout.len());
    }
    Ok(())
}

fn ten_thousand_lines_come_in_order(f: &mut Fixture) -> Result<()> {
    let (_pod, container) = sleeper(f, "lines")?;
    let crictl = f.crictl()?;
    let wanted: String = (1..=10_000).map(|n| format!("{n}\n")).collect();
    for transport in TRANSPORTS {
        let output = crictl.run(&["exec", "--transport", transport, &container.id, "seq", "10000"])?.success()?;
        ensure!(output.stdout == wanted, "{transport}: lines are lost or reordered");
    }
    Ok(())
}

fn a_command_that_cannot_run_says_why(f: &mut Fixture) -> Result<()> {
    let (_pod, container) = sleeper(f, "absent")?;
    for transport in TRANSPORTS {
        let failed = f.crictl()?.run(&["exec", "--transport", transport, &container.id, "/no/such/program"])?;
        let told = failed.failure()?;
        ensure!(told.contains("/no/such/program"), "{transport}: {told}");
    }
    Ok(())
}

fn a_terminal_follows_the_clients_size(f: &mut Fixture) -> Result<()> {
    let (_pod, container) = sleeper(f, "size")?;
    let mut session = Session::open(&exec_url(f.cri(), &container.id, &["sh"], true)?)?;
    for (rows, columns) in [(40, 100), (50, 132)] {
        session.resize(rows, columns)?;
        let wanted = format!("{rows} {columns}");
        session.input(&format!(
            "until [ \"$(stty size)\" = '{wanted}' ]; do sleep 0.1; done; echo it is $(stty size)\n"
        ))?;
        session.until(&format!("it is {wanted}"))?;
    }
    session.input("exit 5\n")?;
    let finished = session.finish()?;
    ensure!(finished.code()? == 5, "{finished:?}");
    Ok(())
}

/// Waits until a file is in the container.
fn appears(container: &Container, file: &str) -> Result<()> {
    wait::until(&format!("{file} in the container"), LIMIT, || {
        Ok((container.exec(&["test", "-e", file])?.code == 0).then_some(()))
    })
}

fn a_client_that_vanishes_ends_the_input(f: &mut Fixture) -> Result<()> {
    let (_pod, container) = sleeper(f, "vanish")?;
    let mut session =
        Session::open(&exec_url(f.cri(), &container.id, &["sh", "-c", "echo on; cat; touch /tmp/ended"], false)?)?;
    session.until("on")?;
    drop(session);
    appears(&container, "/tmp/ended")?;
    let mut crictl = f.crictl()?.command(&["exec", "-i", &container.id, "sh", "-c", "echo on; cat; touch /tmp/too"]);
    let mut client = crictl.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut first = [0; 3];
    client.stdout.take().context("no output")?.read_exact(&mut first)?;
    client.kill()?;
    client.wait()?;
    appears(&container, "/tmp/too")
}

fn a_client_that_vanishes_hangs_up_its_terminal(f: &mut Fixture) -> Result<()> {
    let (_pod, container) = sleeper(f, "hangup")?;
    let script = "trap 'touch /tmp/hup; exit' HUP; echo ready; while :; do sleep 0.1; done";
    let mut session = Session::open(&exec_url(f.cri(), &container.id, &["sh", "-c", script], true)?)?;
    session.until("ready")?;
    drop(session);
    appears(&container, "/tmp/hup")
}

fn a_process_outlives_its_client(f: &mut Fixture) -> Result<()> {
    let (_pod, container) = sleeper(f, "outlive")?;
    // More than pipes hold, so that it can only end if its output is still taken.
    let script = "echo ready; head -c 1000000 /dev/zero; until [ -e /tmp/go ]; do sleep 0.1; done; \
                  head -c 1000000 /dev/zero; touch /tmp/done";
    let mut session = Session::open(&exec_url(f.cri(), &container.id, &["sh", "-c", script], false)?)?;
    session.until("ready")?;
    drop(session);
    container.exec(&["touch", "/tmp/go"])?;
    appears(&container, "/tmp/done")
}

fn two_hundred_sessions_at_once(f: &mut Fixture) -> Result<()> {
    const SESSIONS: usize = 200;
    let (_pod, container) = sleeper(f, "many")?;
    let mut sessions = Vec::new();
    for number in 0..SESSIONS {
        let url = exec_url(f.cri(), &container.id, &["cat"], false)?;
        let mut session = Session::open(&url).with_context(|| format!("session {number}"))?;
        session.input(&format!("I am {number}\n"))?;
        sessions.push(session);
    }
    for (number, session) in sessions.iter_mut().enumerate() {
        session.until(&format!("I am {number}\n"))?;
    }
    for (number, mut session) in sessions.into_iter().enumerate() {
        session.close_input()?;
        let finished = session.finish()?;
        ensure!(finished.code()? == 0 && finished.text() == format!("I am {number}\n"), "{number}: {finished:?}");
    }
    Ok(())
}

fn attach_joins_the_containers_streams(f: &mut Fixture) -> Result<()> {
    let pod = f.pod("attach")?;
    for transport in TRANSPORTS {
        let script = "while read line; do echo got $line; [ \"$line\" = quit ] && exit 4; done";
        let spec = f.shell(script)?.named(transport).with(|c| c.stdin = true);
        let container = pod.start(&spec)?;
        let attach = ["attach", "-i", "--transport", transport, &container.id];
        let output = f.crictl()?.run_with_input(&attach, b"hello\nquit\n")?;
        ensure!(output.stdout == "got hello\ngot quit\n", "{transport}: {output}");
        let outcome = container.finish()?;
        ensure!(outcome.code == 4 && outcome.stdout == output.stdout, "{transport}: {outcome:?}");
    }
    Ok(())
}

fn several_clients_attach_at_once(f: &mut Fixture) -> Result<()> {
    let pod = f.pod("crowd")?;
    let script = "stty -echo; echo ready; while read line; do echo got $line; [ \"$line\" = quit ] && exit 0; done";
    let container = pod.start(&f.shell(script)?.with(|c| (c.stdin, c.tty) = (true, true)))?;
    container.says("ready")?;
    let open = || Session::open(&attach_url(f.cri(), &container.id, true)?);
    let (mut first, mut second) = (open()?, open()?);
    // Who gets an answer is attached.
    for (session, name) in [(&mut first, "one"), (&mut second, "two")] {
        session.input(&format!("this is {name}\n"))?;
        session.until(&format!("got this is {name}"))?;
    }
    first.input("from the first\n")?;
    for session in [&mut first, &mut second] {
        session.until("got from the first")?;
    }
    second.input("from the second\n")?;
    for session in [&mut first, &mut second] {
        session.until("got from the second")?;
    }
    drop(first);
    second.input("quit\n")?;
    let finished = second.finish()?;
    ensure!(finished.text().contains("got quit") && finished.code()? == 0, "{finished:?}");
    Ok(())
}

fn stdin_once_ends_with_its_client(f: &mut Fixture) -> Result<()> {
    let pod = f.pod("once")?;
    let container = pod.start(&f.shell("cat; echo end")?.with(|c| (c.stdin, c.stdin_once) = (true, true)))?;
    let mut session = Session::open(&attach_url(f.cri(), &container.id, false)?)?;
    session.input("all of it\n")?;
    session.close_input()?;
    let finished = session.finish()?;
    ensure!(finished.text() == "all of it\nend\n", "{finished:?}");
    ensure!(container.finish()?.code == 0, "{:?}", container.status()?);
    let script = "read a; echo \"got $a\"; read b; echo \"got $b\"";
    let kept = pod.start(&f.shell(script)?.named("kept").with(|c| c.stdin = true))?;
    for word in ["one", "two"] {
        let mut session = Session::open(&attach_url(f.cri(), &kept.id, false)?)?;
        session.input(&format!("{word}\n"))?;
        session.close_input()?;
        if word == "two" {
            session.finish()?;
        } else {
            // Sessions do not wait for one another.
            kept.says("got one")?;
        }
    }
    let finished = kept.finish()?;
    ensure!(finished.stdout == "got one\ngot two\n", "stdin without stdin_once ends with a client: {finished:?}");
    Ok(())
}

/// crictl port-forward while it runs.
struct Forwarder {
    child: Child,
    port: u16,
}

impl Forwarder {
    fn start(crictl: &Crictl, pod: &str, port: u16, transport: &str) -> Result<Self> {
        let ports = format!("0:{port}");
        let mut command = crictl.command(&["port-forward", "--transport", transport, pod, &ports]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().context("no output")?).read_line(&mut line)?;
        // "Forwarding from 127.0.0.1:40000 -> 80"
        let port = line.split(" -> ").next().and_then(|left| left.rsplit(':').next()?.parse().ok());
        let mut forwarder = Self { child, port: 0 };
        let Some(port) = port else { anyhow::bail!("crictl says {line:?} and {:?}", forwarder.end()?) };
        forwarder.port = port;
        Ok(forwarder)
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// What it said on standard error.
    fn end(&mut self) -> Result<String> {
        self.child.kill()?;
        let mut said = String::new();
        self.child.stderr.take().context("no standard error")?.read_to_string(&mut said)?;
        self.child.wait()?;
        Ok(said)
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        // It has ended already when this fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ports_are_forwarded(f: &mut Fixture) -> Result<()> {
    let pod = f.pod("ports")?;
    let script = "mkdir /www; seq 20000 > /www/index.html; httpd -p 127.0.0.1:8080 -h /www; echo ready; sleep 100000";
    pod.start(&f.shell(script)?)?.says("ready")?;
    let wanted: String = (1..=20_000).map(|n| format!("{n}\n")).collect();
    for transport in TRANSPORTS {
        let forwarder = Forwarder::start(&f.crictl()?, &pod.id, 8080, transport)?;
        let answers: Vec<_> = (0..4)
            .map(|_| {
                let address = forwarder.address();
                std::thread::spawn(move || http::get(&address, "/index.html"))
            })
            .collect();
        for answer in answers {
            let answer = answer.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
            ensure!(answer.status == 200 && answer.text() == wanted, "{transport}: {} bytes", answer.body.len());
        }
    }
    Ok(())
}

fn a_forwarded_connection_is_half_closed(f: &mut Fixture) -> Result<()> {
    let pod = f.pod("half")?;
    // Answers only once its input has ended.
    pod.start(&f.shell("echo ready; exec nc -ll -p 7000 -e wc -c")?)?.says("ready")?;
    for transport in TRANSPORTS {
        let forwarder = Forwarder::start(&f.crictl()?, &pod.id, 7000, transport)?;
        let ask = || {
            let mut stream = TcpStream::connect(forwarder.address())?;
            stream.set_read_timeout(Some(LIMIT))?;
            stream.write_all(&[b'x'; 100_000])?;
            stream.shutdown(Shutdown::Write)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        };
        // Nothing comes, or a reset, as long as nc does not listen yet.
        let answer =
            wait::until("an answer of nc", LIMIT, || Ok(ask().ok().filter(|answer: &String| !answer.is_empty())))?;
        ensure!(answer.trim() == "100000", "{transport}: {answer:?}");
    }
    Ok(())
}

fn a_port_that_nobody_listens_on_is_told(f: &mut Fixture) -> Result<()> {
    let (pod, _container) = sleeper(f, "deaf")?;
    let mut forwarder = Forwarder::start(&f.crictl()?, &pod.id, 9, "spdy")?;
    let mut stream = TcpStream::connect(forwarder.address())?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut answer = Vec::new();
    // A reset says as much as an end.
    let _ = stream.read_to_end(&mut answer);
    ensure!(answer.is_empty(), "{answer:?}");
    let said = wait_for_error(&mut forwarder)?;
    ensure!(said.contains("port 9") && said.contains("refused"), "{said}");
    Ok(())
}

/// The client ends when its connection was lost; its words come before.
fn wait_for_error(forwarder: &mut Forwarder) -> Result<String> {
    let mut line = String::new();
    let mut said = String::new();
    let mut stderr = BufReader::new(forwarder.child.stderr.take().context("no standard error")?);
    while !line.contains("port 9") && stderr.read_line(&mut line)? > 0 {
        said.push_str(&line);
        if !line.contains("port 9") {
            line.clear();
        }
    }
    Ok(said)
}

fn a_url_works_once(f: &mut Fixture) -> Result<()> {
    let (_pod, container) = sleeper(f, "token")?;
    let url = exec_url(f.cri(), &container.id, &["true"], false)?;
    ensure!(Session::open(&url)?.finish()?.code()? == 0, "the first use");
    let (address, path) = parts(&url)?;
    ensure!(http::get(address, path)?.status == 404, "the second use of a URL");
    let url = exec_url(f.cri(), &container.id, &["true"], false)?;
    let (address, path) = parts(&url)?;
    let other_verb = path.replace("/exec/", "/attach/");
    ensure!(http::get(address, &other_verb)?.status == 404, "a URL of another verb");
    ensure!(http::get(address, "/exec/00000000000000000000000000000000")?.status == 404, "a guessed URL");
    let url = exec_url(f.cri(), &container.id, &["true"], false)?;
    let (address, path) = parts(&url)?;
    ensure!(http::get(address, path)?.status == 400, "a client that does not upgrade");
    Ok(())
}

fn what_makes_no_sense_is_refused(f: &mut Fixture) -> Result<()> {
    let (pod, container) = sleeper(f, "nonsense")?;
    let exec = cri::ExecRequest { container_id: container.id.clone(), cmd: vec!["true".into()], ..Default::default() };
    let attach = cri::AttachRequest { container_id: container.id.clone(), ..Default::default() };
    let terminal = cri::ExecRequest { tty: true, stdout: true, stderr: true, ..exec.clone() };
    let empty = cri::ExecRequest { cmd: vec![], stdout: true, ..exec.clone() };
    let ports = cri::PortForwardRequest { pod_sandbox_id: pod.id, port: vec![70_000] };
    let refusals = [
        f.cri().exec(exec.clone()).err(),
        f.cri().exec(terminal).err(),
        f.cri().exec(empty).err(),
        f.cri().attach(attach).err(),
        f.cri().port_forward(ports).err(),
    ];
    for refusal in refusals {
        let refusal = refusal.context("nonsense is taken")?;
        ensure!(refusal.code == Code::InvalidArgument, "{refusal}");
    }
    container.stop(0)?;
    let late = f.cri().exec(cri::ExecRequest { stdout: true, ..exec }).err().context("exec in an ended container")?;
    ensure!(late.code == Code::FailedPrecondition, "{late}");
    Ok(())
}

fn sync(container: &Container, script: &str, timeout: i64) -> cri::ExecSyncRequest {
    let cmd = ["sh", "-c", script].map(str::to_owned).to_vec();
    cri::ExecSyncRequest { container_id: container.id.clone(), cmd, timeout }
}

/// Waits until no process of the container's has `mark` in its command line.
fn gone(container: &Container, mark: &str) -> Result<()> {
    wait::until(&format!("the end of {mark}"), LIMIT, || {
        let listed = container.exec(&["ps", "-o", "args"])?.stdout;
        Ok((!listed.lines().any(|line| line.starts_with(mark))).then_some(()))
    })
}

fn exec_sync_kills_the_session_at_its_timeout(f: &mut Fixture) -> Result<()> {
    let (_pod, container) = sleeper(f, "timeout")?;
    // With job control the background job has a process group of its own.
    let script = "set -m; sleep 5001 & sleep 5002";
    let error = f.cri().exec_sync(sync(&container, script, 1)).err().context("no timeout")?;
    ensure!(error.code == Code::DeadlineExceeded, "{error}");
    gone(&container, "sleep 500")
}

fn exec_sync_ends_with_its_caller(f: &mut Fixture) -> Result<()> {
    let (_pod, container) = sleeper(f, "caller")?;
    let exec = ["exec", "--sync", "--timeout", "1000", &container.id, "sh", "-c", "touch /tmp/on; sleep 6001"];
    let mut caller = f.crictl()?.command(&exec).spawn()?;
    let started = appears(&container, "/tmp/on");
    caller.kill()?;
    caller.wait()?;
    started?;
    gone(&container, "sleep 6001")
}

fn exec_sync_does_not_wait_for_background_children(f: &mut Fixture) -> Result<()> {
    let (_pod, container) = sleeper(f, "background")?;
    let answer = f.cri().exec_sync(sync(&container, "sleep 7001 & echo started", 30))?;
    ensure!(answer.stdout == b"started\n" && answer.exit_code == 0, "{answer:?}");
    Ok(())
}

fn exec_sync_output_is_bounded(f: &mut Fixture) -> Result<()> {
    let (_pod, container) = sleeper(f, "flood")?;
    let script = "dd if=/dev/zero bs=65536 count=272 2>/dev/null; echo to the end >&2";
    let answer = f.cri().exec_sync(sync(&container, script, 100))?;
    ensure!(answer.stdout.len() == 16 << 20, "{} bytes of standard output", answer.stdout.len());
    ensure!(answer.stderr == b"to the end\n" && answer.exit_code == 0, "{:?}", answer.stderr);
    Ok(())
}

/// A small file system for logs, gone with the value.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(path: std::path::PathBuf) -> Result<Self> {
        use rustix::mount::{MountFlags, mount};
        std::fs::create_dir_all(&path)?;
        mount("tmpfs", &path, "tmpfs", MountFlags::NOSUID, Some(c"size=262144"))?;
        Ok(Self(path))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // What still holds a log open lets go of it with its pod.
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

fn a_full_log_disk_hangs_nobody(f: &mut Fixture) -> Result<()> {
    let mut config = f.pod_config("full");
    let disk = SmallDisk::mount(f.path("small-disk"))?;
    config.log_directory = disk.0.join("logs").to_string_lossy().into_owned();
    let pod = Pod::run(f.cri(), config, "")?;
    let script = "seq 100000; touch /tmp/written; until [ -e /tmp/go ]; do sleep 0.1; done; echo after";
    let container = pod.start(&f.shell(script)?)?;
    appears(&container, "/tmp/written")?;
    let full = std::fs::read(&container.log)?;
    ensure!(full.len() > 100_000, "the log has {} bytes only", full.len());
    // As a log rotation would: the old file leaves the disk.
    std::fs::remove_file(&container.log)?;
    f.cri().reopen_container_log(cri::ReopenContainerLogRequest { container_id: container.id.clone() })?;
    container.exec(&["touch", "/tmp/go"])?;
    let outcome = container.finish()?;
    ensure!(outcome.code == 0 && outcome.stdout.ends_with("after\n"), "{outcome:?}");
    f.cri().remove_pod(&pod.id)?;
    Ok(())
}
