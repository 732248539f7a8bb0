//! `bulkhead run`: a client of the CRI socket like any other. One pod, one container, output and exit code.

use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use bulkhead_proto::cri;
use bulkhead_proto::cri::image_service_client::ImageServiceClient;
use bulkhead_proto::cri::runtime_service_client::RuntimeServiceClient;
use hyper_util::rt::TokioIo;
use tokio::signal::unix::{SignalKind, signal};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::config::Config;

/// Between two looks at the log and the container's state.
const POLL: Duration = Duration::from_millis(50);

#[derive(Debug, clap::Args)]
pub(super) struct RunArguments {
    /// Configuration file, for the socket's path.
    #[arg(long, value_name = "FILE", conflicts_with = "socket")]
    config: Option<PathBuf>,
    /// The CRI socket [default: the configuration's].
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Runtime handler [default: the daemon's].
    #[arg(long, default_value = "", value_name = "NAME")]
    handler: String,
    /// An environment variable, NAME=VALUE; may be repeated.
    #[arg(long = "env", value_name = "NAME=VALUE")]
    environment: Vec<String>,
    /// Pulled when the store has it not.
    image: String,
    /// Command and arguments in place of the image's.
    #[arg(last = true)]
    command: Vec<String>,
}

struct Client {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

pub(super) fn run(arguments: RunArguments) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let socket = match &arguments.socket {
            Some(socket) => socket.clone(),
            None => Config::load(arguments.config.as_deref())?.daemon.socket,
        };
        let client = connect(&socket).await?;
        run_pod(client, &arguments).await
    })
}

async fn connect(socket: &Path) -> anyhow::Result<Client> {
    let path = socket.to_owned();
    // The address is never used: the connector knows the socket.
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
        .with_context(|| format!("no daemon answers on {}; start `bulkhead serve`", socket.display()))?;
    Ok(Client { runtime: RuntimeServiceClient::new(channel.clone()), images: ImageServiceClient::new(channel) })
}

async fn run_pod(mut client: Client, arguments: &RunArguments) -> anyhow::Result<ExitCode> {
    pull(&mut client, &arguments.image).await?;
    let logs = tempfile::Builder::new().prefix("bulkhead-run-").tempdir()?;
    let config = pod_config(logs.path());
    let request =
        cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: arguments.handler.clone() };
    // From here on a signal is remembered, so that the pod, once it is known, is removed again.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let pod = client.runtime.run_pod_sandbox(request).await.map_err(words)?.into_inner().pod_sandbox_id;
    let ended = tokio::select! {
        biased;
        _ = interrupt.recv() => Ok(ExitCode::from(130)),
        _ = terminate.recv() => Ok(ExitCode::from(143)),
        ended = run_container(&mut client, arguments, &pod, config, logs.path()) => ended,
    };
    // Removes its container too, and stops both first.
    let removed = client.runtime.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: pod }).await;
    let code = ended?;
    removed.map_err(words)?;
    Ok(code)
}

async fn pull(client: &mut Client, image: &str) -> anyhow::Result<()> {
    let spec = Some(cri::ImageSpec { image: image.to_owned(), ..Default::default() });
    let status = cri::ImageStatusRequest { image: spec.clone(), verbose: false };
    if client.images.image_status(status).await.map_err(words)?.into_inner().image.is_none() {
        eprintln!("bulkhead: pulling {image}");
        client.images.pull_image(cri::PullImageRequest { image: spec, ..Default::default() }).await.map_err(words)?;
    }
    Ok(())
}

fn pod_config(logs: &Path) -> cri::PodSandboxConfig {
    let name = format!("run-{}", &crate::node::new_id()[..8]);
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata { uid: name.clone(), name, namespace: "default".into(), attempt: 0 }),
        log_directory: logs.display().to_string(),
        ..Default::default()
    }
}

async fn run_container(
    client: &mut Client,
    arguments: &RunArguments,
    pod: &str,
    sandbox_config: cri::PodSandboxConfig,
    logs: &Path,
) -> anyhow::Result<ExitCode> {
    let mut envs = Vec::new();
    for pair in &arguments.environment {
        let (key, value) = pair.split_once('=').with_context(|| format!("--env {pair:?}: NAME=VALUE is needed"))?;
        envs.push(cri::KeyValue { key: key.to_owned(), value: value.as_bytes().to_vec() });
    }
    let config = cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: "main".into(), attempt: 0 }),
        image: Some(cri::ImageSpec { image: arguments.image.clone(), ..Default::default() }),
        command: arguments.command.clone(),
        envs,
        log_path: "main.log".into(),
        ..Default::default()
    };
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: pod.to_owned(),
        config: Some(config),
        sandbox_config: Some(sandbox_config),
    };
    let id = client.runtime.create_container(request).await.map_err(words)?.into_inner().container_id;
    client.runtime.start_container(cri::StartContainerRequest { container_id: id.clone() }).await.map_err(words)?;
    let mut log = std::fs::File::open(logs.join("main.log"))?;
    let mut printer = Printer::default();
    loop {
        let request = cri::ContainerStatusRequest { container_id: id.clone(), verbose: false };
        let status = client.runtime.container_status(request).await.map_err(words)?.into_inner().status;
        let status = status.unwrap_or_default();
        let ended = status.state == cri::ContainerState::ContainerExited as i32;
        // The state is asked first: once it says exited, the log is complete.
        printer.copy(&mut log)?;
        if ended {
            if !status.message.is_empty() {
                eprintln!("bulkhead: {}", status.message);
            }
            return Ok(ExitCode::from(u8::try_from(status.exit_code).unwrap_or(255)));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Turns CRI log lines back into what the container wrote.
#[derive(Debug, Default)]
struct Printer {
    unread: Vec<u8>,
    offset: u64,
}

impl Printer {
    fn copy(&mut self, log: &mut std::fs::File) -> anyhow::Result<()> {
        log.seek(SeekFrom::Start(self.offset))?;
        self.offset += std::io::copy(log, &mut self.unread)?;
        let (mut out, mut err) = (std::io::stdout().lock(), std::io::stderr().lock());
        let mut done = 0;
        while let Some(end) = self.unread[done..].iter().position(|byte| *byte == b'\n') {
            let line = &self.unread[done..done + end];
            match parse_line(line) {
                Some(("stderr", text, full)) => write_piece(&mut err, text, full)?,
                Some((_, text, full)) => write_piece(&mut out, text, full)?,
                None => anyhow::bail!("the container's log has a line that is not in CRI format"),
            }
            done += end + 1;
        }
        self.unread.drain(..done);
        out.flush()?;
        Ok(())
    }
}

fn write_piece(to: &mut impl Write, text: &[u8], full: bool) -> std::io::Result<()> {
    to.write_all(text)?;
    if full { to.write_all(b"\n") } else { Ok(()) }
}

/// `TIME stdout|stderr F|P TEXT`: stream, text, whether the line is complete.
fn parse_line(line: &[u8]) -> Option<(&str, &[u8], bool)> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let _time = parts.next()?;
    let stream = std::str::from_utf8(parts.next()?).ok()?;
    let tag = parts.next()?;
    Some((stream, parts.next().unwrap_or_default(), tag.starts_with(b"F")))
}

/// The daemon's words without gRPC's.
fn words(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{}", status.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines_are_taken_apart() {
        let line = b"2026-01-01T00:00:00Z stderr P a  b";
        assert_eq!(parse_line(line), Some(("stderr", &b"a  b"[..], false)));
        assert_eq!(parse_line(b"2026-01-01T00:00:00Z stdout F "), Some(("stdout", &b""[..], true)));
        assert_eq!(parse_line(b"nonsense"), None);
    }
}
