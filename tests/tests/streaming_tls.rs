//! Exec and port-forward over TLS by crictl, and WebSocket's base64 protocols by a client of our own.

use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use bulkhead_tests::certificates;
use bulkhead_tests::environment::Environment;
use bulkhead_tests::fixture::Fixture;
use bulkhead_tests::images::busybox;
use bulkhead_tests::images::catalogue::Catalogue;
use bulkhead_tests::pod::{Container, Pod};
use bulkhead_tests::streaming::{Session, exec_url};
use bulkhead_tests::suite::SuiteFixture;

/// A daemon whose streaming server has a certificate.
struct Tls {
    f: Fixture,
    certificate: PathBuf,
    key: PathBuf,
}

bulkhead_tests::suite!(
    Tls;
    crictl_executes_over_tls,
    a_client_that_speaks_plain_http_is_not_served,
    base64_channels_carry_a_command,
);

impl SuiteFixture for Tls {
    fn start(environment: &Environment) -> Result<Self> {
        let busybox = busybox::find()?;
        let (mut certificate, mut key) = (PathBuf::new(), PathBuf::new());
        let f = Fixture::start_with(environment, |registry, settings| {
            (certificate, key) = certificates::self_signed(&settings.directory, "streaming")?;
            settings.more = format!("[streaming]\ntls_cert = {certificate:?}\ntls_key = {key:?}\n");
            Catalogue::new(&busybox)?.push(&registry.target())
        })?;
        Ok(Self { f, certificate, key })
    }

    fn after_case(&mut self, failed: bool) -> Result<()> {
        self.f.after_case(failed)
    }

    fn finish(self) -> Result<()> {
        self.f.finish()
    }
}

fn sleeper(f: &Fixture, name: &str) -> Result<(Pod, Container)> {
    let pod = f.pod(name)?;
    let container = pod.start(&f.shell("sleep 100000")?)?;
    Ok((pod, container))
}

fn crictl_executes_over_tls(tls: &mut Tls) -> Result<()> {
    let (_pod, container) = sleeper(&tls.f, "tls")?;
    let crictl = tls.f.crictl()?;
    let (certificate, key) = (tls.certificate.to_string_lossy(), tls.key.to_string_lossy());
    let url = exec_url(tls.f.cri(), &container.id, &["true"], false)?;
    ensure!(url.starts_with("https://127.0.0.1:"), "{url}");
    for transport in ["spdy", "websocket"] {
        let trust = ["--tls-ca", &certificate, "--tls-cert", &certificate, "--tls-key", &key];
        let exec = ["exec", "-i", "--transport", transport];
        let command = [container.id.as_str(), "sh", "-c", "cat; echo err >&2; exit 4"];
        let output = crictl.run_with_input(&[&exec[..], &trust[..], &command[..]].concat(), b"over TLS\n")?;
        ensure!(output.stdout == "over TLS\n" && output.stderr.contains("err\n"), "{transport}: {output}");
        let told = output.failure()?;
        ensure!(told.contains("exit code 4") || told.contains("exit status 4"), "{transport}: {told}");
    }
    Ok(())
}

fn a_client_that_speaks_plain_http_is_not_served(tls: &mut Tls) -> Result<()> {
    use std::io::{Read, Write};
    let (_pod, container) = sleeper(&tls.f, "plain")?;
    let url = exec_url(tls.f.cri(), &container.id, &["true"], false)?;
    let rest = url.trim_start_matches("https://");
    let (address, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    // A reset says as much as an end.
    let _ = stream.read_to_end(&mut answer);
    ensure!(!answer.starts_with(b"HTTP"), "{:?}", String::from_utf8_lossy(&answer));
    Ok(())
}

fn base64_channels_carry_a_command(tls: &mut Tls) -> Result<()> {
    // Our client does not speak TLS: the same daemon without it.
    tls.f.daemon.stop()?;
    tls.f.daemon.settings.more.clear();
    tls.f.daemon.settings.write()?;
    tls.f.daemon.start_again()?;
    let (_pod, container) = sleeper(&tls.f, "base64")?;
    // The older protocol has words for a failure, and nothing for success.
    for (protocol, code) in [("v4.base64.channel.k8s.io", 3), ("base64.channel.k8s.io", 0)] {
        let script = format!("read line; echo \"got $line\"; printf '\\000\\377'; echo err >&2; exit {code}");
        let url = exec_url(tls.f.cri(), &container.id, &["sh", "-c", &script], false)?;
        let mut session = Session::open_as(&url, protocol)?;
        session.input("a line\n")?;
        let finished = session.finish()?;
        ensure!(finished.stdout == b"got a line\n\0\xff" && finished.stderr == b"err\n", "{protocol}: {finished:?}");
        ensure!(
            if code == 0 { finished.status.is_null() } else { finished.code()? == code },
            "{protocol}: {finished:?}"
        );
    }
    Ok(())
}
