//! Plugins that connect to the socket, and those that the daemon starts itself.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use bulkhead_proto::nri;
use bulkhead_proto::nri_ttrpc::{PluginClient, create_runtime};
use futures_util::future;
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use ttrpc::r#async::transport::{Listener, Socket};
use ttrpc::r#async::{Client, Server};

use super::plugin::{Plugin, PluginId};
use super::runtime::RuntimeService;
use super::{Inner, mux};
use crate::sys;

/// The version of NRI that is served.
const NRI_VERSION: &str = "v0.12.5";
/// Connections at one time; further ones wait.
const MAX_CONNECTIONS: usize = 64;
/// Largest configuration of a plugin, in bytes.
const MAX_CONFIGURATION: u64 = 1 << 20;
/// The number under which a plugin that was started finds its connection.
const DESCRIPTOR: i32 = 3;

/// Why plugins cannot connect.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ListenError {
    #[error("cannot listen for NRI plugins on {}", path.display())]
    Listen { path: PathBuf, source: io::Error },
    #[error("{} is no socket; set nri.socket to another path", path.display())]
    NoSocket { path: PathBuf },
    #[error(
        "another runtime serves NRI plugins on {}; stop it, set nri.socket to another path, or nri.enabled = false",
        path.display()
    )]
    Served { path: PathBuf },
}

/// A plugin's process, if the daemon started it.
struct Started {
    id: PluginId,
    configuration: String,
    child: Child,
}

/// Binds the socket, for root only.
pub(super) fn bind(path: &Path) -> Result<UnixListener, ListenError> {
    let fail = |source| ListenError::Listen { path: path.to_owned(), source };
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(fail)?;
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(ListenError::NoSocket { path: path.to_owned() }),
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            return Err(ListenError::Served { path: path.to_owned() });
        }
        Ok(_) => fs::remove_file(path).map_err(fail)?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(fail)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(fail)?;
    Ok(listener)
}

/// Takes connections until the daemon stops.
pub(super) async fn accept(inner: Arc<Inner>, listener: UnixListener) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let stream = tokio::select! {
            () = inner.stopping.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::error!(%error, "cannot accept an NRI plugin");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let (inner, closed) = (inner.clone(), inner.stopping.child_token());
        tokio::spawn(async move {
            if let Err(why) = admit(&inner, stream, closed.clone(), None).await {
                tracing::error!(why, "an NRI plugin that connected is not taken");
                closed.cancel();
            }
            closed.cancelled().await;
            drop(permit);
        });
    }
}

/// Starts the programs of the plugin directory and waits until each is served or has failed.
pub(super) async fn start_installed(inner: &Arc<Inner>) {
    let found = match programs(&inner.config.plugin_path) {
        Ok(found) => found,
        Err(error) => {
            let path = inner.config.plugin_path.display();
            return tracing::error!(%error, %path, "cannot look for NRI plugins");
        }
    };
    future::join_all(found.into_iter().map(|(id, program)| async move {
        let closed = inner.stopping.child_token();
        if let Err(why) = start_one(inner, &id, &program, closed.clone()).await {
            tracing::error!(plugin = %id, why, "an installed NRI plugin is not served");
            closed.cancel();
        }
    }))
    .await;
}

/// Executable files by name; what is not named as a plugin is told and left out.
fn programs(directory: &Path) -> io::Result<Vec<(PluginId, PathBuf)>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let is_program = fs::metadata(&path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
        if !is_program {
            continue;
        }
        match PluginId::of_file(&path.file_name().unwrap_or_default().to_string_lossy()) {
            Ok(id) => found.push((id, path)),
            Err(why) => tracing::error!(path = %path.display(), why, "not started as an NRI plugin"),
        }
    }
    found.sort();
    Ok(found)
}

async fn start_one(inner: &Arc<Inner>, id: &PluginId, program: &Path, closed: CancellationToken) -> Result<(), String> {
    let configuration = configuration(&inner.config.plugin_config_path, id)?;
    let (ours, theirs) = UnixStream::pair().map_err(|error| format!("no socket for it: {error}"))?;
    let theirs: OwnedFd = theirs.into_std().map_err(|error| error.to_string())?.into();
    let child = spawn(program, id, theirs).map_err(|error| format!("cannot start {}: {error}", program.display()))?;
    tracing::info!(plugin = %id, pid = child.id(), "NRI plugin started");
    admit(inner, ours, closed, Some(Started { id: id.clone(), configuration, child })).await
}

fn spawn(program: &Path, id: &PluginId, socket: OwnedFd) -> io::Result<Child> {
    let mut command = std::process::Command::new(program);
    // As the reference: nothing of the daemon's own environment.
    command.env_clear().env("NRI_PLUGIN_NAME", &id.name).env("NRI_PLUGIN_IDX", &id.index);
    command.env("NRI_PLUGIN_SOCKET", DESCRIPTOR.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null());
    sys::process::give_descriptor(&mut command, socket, DESCRIPTOR);
    Command::from(command).kill_on_drop(true).spawn()
}

fn configuration(directory: &Path, id: &PluginId) -> Result<String, String> {
    for name in [format!("{id}.conf"), format!("{}.conf", id.name)] {
        let path = directory.join(name);
        let length = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata.map_err(|error| format!("{}: {error}", path.display()))?.len(),
        };
        if length > MAX_CONFIGURATION {
            return Err(format!("{} has {length} bytes; {MAX_CONFIGURATION} is the most", path.display()));
        }
        return fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()));
    }
    Ok(String::new())
}

/// Serves one connection: the plugin registers, is configured, is told of all that there is, and asked from then on.
async fn admit(
    inner: &Arc<Inner>,
    stream: UnixStream,
    closed: CancellationToken,
    started: Option<Started>,
) -> Result<(), String> {
    let (given, configuration) = match started {
        None => (None, String::new()),
        Some(Started { id, configuration, child }) => {
            reap(id.clone(), child, closed.clone());
            (Some(id), configuration)
        }
    };
    let ends = mux::start(stream, closed.clone());
    let (service, registered) = RuntimeService::new(inner, given);
    let once = futures_util::stream::once(future::ready(Ok(ends.runtime)));
    let mut server =
        Server::new().add_listener(Listener::new(once)).register_service(create_runtime(Arc::new(service)));
    server.start().await.map_err(|error| error.to_string())?;
    let (until, keep) = (closed.clone(), server);
    tokio::spawn(async move {
        until.cancelled().await;
        drop(keep);
    });
    let client = PluginClient::new(Client::new(Socket::new(ends.plugin)));
    let seconds = inner.config.registration_timeout_s;
    let id = tokio::select! {
        () = closed.cancelled() => return Err("it closed its connection before it registered".into()),
        registered = tokio::time::timeout(inner.config.registration_timeout(), registered) => match registered {
            Err(_) => return Err(format!("it did not register in {seconds} s")),
            Ok(Err(_)) => return Err("it closed its connection before it registered".into()),
            Ok(Ok(id)) => id?,
        },
    };
    let milliseconds = |time: std::time::Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    let request = nri::ConfigureRequest {
        config: configuration,
        runtime_name: "bulkhead".into(),
        runtime_version: env!("CARGO_PKG_VERSION").into(),
        registration_timeout: milliseconds(inner.config.registration_timeout()),
        request_timeout: milliseconds(inner.config.request_timeout()),
        NRI_version: NRI_VERSION.into(),
        ..Default::default()
    };
    let limit = inner.config.request_timeout();
    let configured = Plugin::configure(id.clone(), client, closed, limit, &request).await;
    let plugin = configured.map_err(|why| format!("{id}: {why}"))?;
    inner.join(plugin).await.map_err(|why| format!("{id}: {why}"))
}

/// Ends a plugin's process with its connection, and the connection with the process.
fn reap(id: PluginId, mut child: Child, closed: CancellationToken) {
    tokio::spawn(async move {
        tokio::select! {
            ended = child.wait() => {
                let status = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
                tracing::warn!(plugin = %id, status, "NRI plugin ended");
                closed.cancel();
            }
            () = closed.cancelled() => {
                if let Err(error) = child.kill().await {
                    tracing::warn!(plugin = %id, %error, "cannot kill an NRI plugin");
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installed_plugins_are_executable_and_named_as_such() {
        let directory = tempfile::tempdir().unwrap();
        for (name, mode) in [("20-b", 0o755), ("10-a", 0o755), ("30-data", 0o644), ("README", 0o755)] {
            let path = directory.path().join(name);
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let found = programs(directory.path()).unwrap();
        let names: Vec<_> = found.iter().map(|(id, _)| id.to_string()).collect();
        assert_eq!(names, ["10-a", "20-b"]);
        assert!(programs(Path::new("/no/such/directory")).unwrap().is_empty());
    }

    #[test]
    fn the_more_exact_configuration_wins() {
        let directory = tempfile::tempdir().unwrap();
        let id = PluginId::of_file("10-a").unwrap();
        assert_eq!(configuration(directory.path(), &id).unwrap(), "");
        fs::write(directory.path().join("a.conf"), "common").unwrap();
        assert_eq!(configuration(directory.path(), &id).unwrap(), "common");
        fs::write(directory.path().join("10-a.conf"), "own").unwrap();
        assert_eq!(configuration(directory.path(), &id).unwrap(), "own");
    }
}
