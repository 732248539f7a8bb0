//! `bulkhead run`: one container in a pod of its own, its output and exit code passed through, both removed.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bulkhead_proto::cri;
use bulkhead_tests::command::Output;
use bulkhead_tests::fixture::Fixture;
use bulkhead_tests::pod::Pod;
use bulkhead_tests::wait;
use rustix::process::{Pid, Signal, kill_process};

/// A guest of an emulated machine takes its time to boot.
const LIMIT: Duration = Duration::from_secs(150);

bulkhead_tests::suite!(
    Fixture;
    output_and_exit_code_pass_through,
    the_image_is_pulled_and_its_own_command_runs,
    a_handler_and_variables_can_be_given,
    failures_are_told,
    an_interrupted_run_removes_its_pod,
    a_guests_console_is_shown_and_answers,
    the_other_commands_answer,
);

fn run(f: &Fixture, arguments: &[&str]) -> Result<Output> {
    let config = f.daemon.settings.file().display().to_string();
    let output = f.daemon.client(&[&["run", "--config", &config], arguments].concat())?;
    ensure!(f.cri().pods()?.is_empty() && f.cri().containers()?.is_empty(), "something is left of {output}");
    Ok(output)
}

fn output_and_exit_code_pass_through(f: &mut Fixture) -> Result<()> {
    let image = f.registry.image("busybox");
    let output = run(f, &[&image, "--", "sh", "-c", "echo to stdout; echo to stderr >&2; exit 23"])?;
    ensure!(output.status.code() == Some(23), "{output}");
    ensure!(output.stdout == "to stdout\n" && output.stderr.contains("to stderr\n"), "{output}");
    let many = run(f, &[&image, "--", "seq", "1", "20000"])?.success()?;
    let wanted: String = (1..=20000).map(|n| format!("{n}\n")).collect();
    ensure!(many.stdout == wanted, "{} of {} bytes", many.stdout.len(), wanted.len());
    Ok(())
}

fn the_image_is_pulled_and_its_own_command_runs(f: &mut Fixture) -> Result<()> {
    let image = f.registry.image("entrypoint");
    ensure!(f.cri().find_image(&image)?.is_none(), "it is there already");
    let output = run(f, &[&image])?.success()?;
    ensure!(output.stdout == "entry default words in /srv/made/on/start with hello\n", "{output}");
    Ok(())
}

fn a_handler_and_variables_can_be_given(f: &mut Fixture) -> Result<()> {
    let socket = f.daemon.settings.socket().display().to_string();
    let image = f.registry.image("busybox");
    let arguments = [
        "run",
        "--socket",
        &socket,
        "--handler",
        "qemu",
        "--env",
        "WORD=spoken",
        &image,
        "--",
        "sh",
        "-c",
        "echo $WORD",
    ];
    let output = f.daemon.client(&arguments)?.success()?;
    ensure!(output.stdout == "spoken\n", "{output}");
    Ok(())
}

fn failures_are_told(f: &mut Fixture) -> Result<()> {
    let absent = f.registry.image("absent");
    let said = run(f, &[&absent])?.failure()?;
    ensure!(said.contains(&absent), "{said}");
    let image = f.registry.image("busybox");
    let said = run(f, &["--handler", "nonsense", &image])?.failure()?;
    ensure!(said.contains("nonsense") && said.contains("qemu"), "{said}");
    let said = run(f, &[&image, "--", "no-such-program"])?.failure()?;
    ensure!(said.contains("no-such-program"), "{said}");
    Ok(())
}

fn an_interrupted_run_removes_its_pod(f: &mut Fixture) -> Result<()> {
    let config = f.daemon.settings.file();
    let mut child = Command::new(&f.environment.bulkhead)
        .args(["run".as_ref(), "--config".as_ref(), config.as_os_str()])
        .args([&f.registry.image("busybox"), "--", "sleep", "1000"])
        .spawn()?;
    let result = interrupt(f, &mut child);
    if result.is_err() {
        child.kill()?;
        child.wait()?;
    }
    result
}

fn interrupt(f: &Fixture, child: &mut Child) -> Result<()> {
    wait::until("the container to run", LIMIT, || {
        ensure!(child.try_wait()?.is_none(), "it ended by itself");
        let running = cri::ContainerState::ContainerRunning as i32;
        Ok(f.cri().containers()?.iter().any(|c| c.state == running).then_some(()))
    })?;
    kill_process(Pid::from_child(child), Signal::INT)?;
    let status = wait::until("its end", LIMIT, || Ok(child.try_wait()?))?;
    ensure!(!status.success(), "an interrupted run succeeded");
    ensure!(f.cri().pods()?.is_empty(), "its pod is left");
    Ok(())
}

fn a_guests_console_is_shown_and_answers(f: &mut Fixture) -> Result<()> {
    f.environment.needs_machine("pods of this handler have no guest, and so no console")?;
    let pod = Pod::run(f.cri(), f.pod_config("looked-at"), f.environment.handler.open())?;
    let mut child = Command::new(&f.environment.bulkhead)
        .args(["debug-console".as_ref(), "--config".as_ref(), f.daemon.settings.file().as_os_str()])
        .arg(&pod.id[..12])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let result = converse(&mut child);
    // It has ended by the escape, unless something failed.
    let _ = child.kill();
    let status = child.wait()?;
    result?;
    ensure!(status.success(), "{status}");
    let none =
        f.daemon.client(&["debug-console", "--config", &f.daemon.settings.file().display().to_string(), "zz"])?;
    ensure!(none.failure()?.contains("no pod sandbox whose id begins with \"zz\""), "an unknown pod");
    Ok(())
}

/// Asks for what only this guest knows, then types what ends the command.
fn converse(child: &mut Child) -> Result<()> {
    let mut keys = child.stdin.take().context("no input")?;
    let screen = child.stdout.take().context("no output")?;
    keys.write_all(b"cat /proc/sys/kernel/hostname\n")?;
    let (sender, lines) = mpsc::channel();
    // Ends with the command's output.
    std::thread::spawn(move || {
        BufReader::new(screen).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    let mut seen = String::new();
    while let Ok(line) = lines.recv_timeout(LIMIT) {
        seen.push_str(&line);
        seen.push('\n');
        // Not the echo of the question.
        if seen.lines().any(|line| line.trim() == "looked-at") {
            keys.write_all(b"\x1d")?;
            return wait::until("its end", LIMIT, || Ok(child.try_wait()?)).map(drop);
        }
    }
    anyhow::bail!("the console said only {seen:?}")
}

fn the_other_commands_answer(f: &mut Fixture) -> Result<()> {
    let version = f.daemon.client(&["version"])?.success()?;
    ensure!(version.stdout.contains(env!("CARGO_PKG_VERSION")), "{version}");
    let default = f.daemon.client(&["config", "default"])?.success()?;
    ensure!(default.stdout.contains("[daemon]") && default.stdout.contains('#'), "{default}");
    let config = f.daemon.settings.file().display().to_string();
    let shown = f.daemon.client(&["config", "show", "--config", &config])?.success()?;
    ensure!(shown.stdout.contains(&f.daemon.settings.root.display().to_string()), "{shown}");
    let check = f.daemon.client(&["check", "--config", &config])?;
    for word in ["/dev/kvm", "qemu", "/dev/net/tun", "cgroup", "CNI"] {
        ensure!(check.stdout.to_lowercase().contains(&word.to_lowercase()), "{word} is not in {check}");
    }
    Ok(())
}
