//! Talking to the agent in a pod: its RPC connection and its process streams.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bulkhead_proto::agent_ttrpc::AgentClient;
use bulkhead_proto::{AGENT_RPC_PORT, agent};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

pub mod stdio;

use crate::version::{self, Speaker, VersionError};

/// Longest wait for the guest to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for an answer to an ordinary request; the kubelet gives up after two minutes.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(100);

/// Why the agent did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum GuestError {
    #[error("cannot reach port {port} of the guest through {}", socket.display())]
    Connect { socket: PathBuf, port: u32, source: std::io::Error },
    #[error("the guest refused a connection to port {port}: {answer:?}")]
    Refused { port: u32, answer: String },
    #[error("the agent could not {request}: {message}")]
    Agent { request: &'static str, code: ttrpc::Code, message: String },
    #[error("the connection to the agent broke during {request}")]
    Broken { request: &'static str, source: ttrpc::Error },
    #[error("the agent's answer to {request} makes no sense: {detail}")]
    Protocol { request: &'static str, detail: String },
    #[error("the agent says: {0}")]
    Stream(String),
    #[error(transparent)]
    Version(#[from] VersionError),
}

impl GuestError {
    /// The agent's own status code, if it answered with one.
    #[must_use]
    pub fn code(&self) -> Option<ttrpc::Code> {
        match self {
            Self::Agent { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Sorts a ttrpc failure into the agent's own words and everything else.
    pub(crate) fn from_ttrpc(request: &'static str, error: ttrpc::Error) -> Self {
        match error {
            ttrpc::Error::RpcStatus(status) => Self::Agent { request, code: status.code(), message: status.message },
            source => Self::Broken { request, source },
        }
    }
}

/// The agent of one pod. Cheap to clone; requests run side by side on one connection.
#[derive(Clone)]
pub struct Agent {
    client: AgentClient,
    vsock: PathBuf,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent").field("vsock", &self.vsock).finish_non_exhaustive()
    }
}

/// Opens a stream to a port of the guest through `bulkhead-vmm`'s vsock socket.
pub async fn connect(vsock: &Path, port: u32) -> Result<UnixStream, GuestError> {
    let fail = |source| GuestError::Connect { socket: vsock.to_owned(), port, source };
    let attempt = async {
        let mut stream = UnixStream::connect(vsock).await.map_err(fail)?;
        stream.write_all(format!("CONNECT {port}\n").as_bytes()).await.map_err(fail)?;
        let mut answer = Vec::new();
        // One byte at a time: what follows the line already belongs to the connection.
        while answer.last() != Some(&b'\n') && answer.len() < 256 {
            let mut byte = [0u8; 1];
            if stream.read(&mut byte).await.map_err(fail)? == 0 {
                break;
            }
            answer.push(byte[0]);
        }
        Ok::<_, GuestError>((stream, answer))
    };
    let (stream, answer) = tokio::time::timeout(CONNECT_TIMEOUT, attempt)
        .await
        .map_err(|_| fail(std::io::Error::from(std::io::ErrorKind::TimedOut)))??;
    if answer.starts_with(b"OK ") {
        return Ok(stream);
    }
    Err(GuestError::Refused { port, answer: String::from_utf8_lossy(&answer).trim().to_owned() })
}

macro_rules! requests {
    ($($(#[$doc:meta])* $name:ident($request:ty) -> $response:ty, $words:literal;)*) => {
        impl Agent {
            $(
                $(#[$doc])*
                pub async fn $name(&self, request: $request) -> Result<$response, GuestError> {
                    self.client
                        .$name(ttrpc::context::with_duration(REQUEST_TIMEOUT), &request)
                        .await
                        .map_err(|e| GuestError::from_ttrpc($words, e))
                }
            )*
        }
    };
}

requests! {
    /// Versions and capacity.
    info(agent::InfoRequest) -> agent::InfoResponse, "tell its version";
    /// Names, network, DNS, scratch drive.
    configure_sandbox(agent::ConfigureSandboxRequest) -> agent::ConfigureSandboxResponse, "configure the sandbox";
    /// Builds a container.
    create_container(agent::CreateContainerRequest) -> agent::CreateContainerResponse, "create the container";
    /// Executes its command.
    start_container(agent::StartContainerRequest) -> agent::StartContainerResponse, "start the container";
    /// Kills and forgets it.
    remove_container(agent::RemoveContainerRequest) -> agent::RemoveContainerResponse, "remove the container";
    /// Changes its limits.
    update_container(agent::UpdateContainerRequest) -> agent::UpdateContainerResponse, "update the container";
    /// Takes CPUs of the guest online or offline.
    set_cpus(agent::SetCpusRequest) -> agent::SetCpusResponse, "change its CPUs";
    /// Starts one more process.
    exec_process(agent::ExecProcessRequest) -> agent::ExecProcessResponse, "execute the command";
    /// Sends a signal.
    signal_process(agent::SignalProcessRequest) -> agent::SignalProcessResponse, "signal the process";
    /// Tells a process's terminal its size.
    resize_terminal(agent::ResizeTerminalRequest) -> agent::ResizeTerminalResponse, "resize the terminal";
    /// Forgets an exec'd process.
    remove_process(agent::RemoveProcessRequest) -> agent::RemoveProcessResponse, "forget the process";
    /// Resource use.
    stats(agent::StatsRequest) -> agent::StatsResponse, "report resource use";
}

impl Agent {
    /// Connects to the agent behind `vsock`.
    pub async fn connect(vsock: &Path) -> Result<Self, GuestError> {
        let stream = connect(vsock, AGENT_RPC_PORT).await?;
        let socket = ttrpc::r#async::transport::Socket::new(stream);
        let client = AgentClient::new(ttrpc::r#async::Client::new(socket));
        Ok(Self { client, vsock: vsock.to_owned() })
    }

    /// Whether this daemon can drive an agent that says it speaks this version.
    pub fn check_version(theirs: u32) -> Result<(), GuestError> {
        Ok(version::check(Speaker::Agent, theirs)?)
    }

    /// The socket that leads to the guest's ports.
    #[must_use]
    pub fn vsock(&self) -> &Path {
        &self.vsock
    }
}
