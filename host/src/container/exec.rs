//! Running one more command in a container, and holding on to it.

use std::sync::Arc;

use bulkhead_proto::agent;
use protobuf::Message;

use super::{Container, ContainerError, ContainerState};
use crate::guest::GuestError;
use crate::guest::stdio::Streams;
use crate::node::{Node, new_id};
use crate::sandbox::Live;

const SIGKILL: u32 = 9;

/// What to run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments.
    pub words: Vec<String>,
    /// It gets a terminal.
    pub terminal: bool,
    /// Its stdin is not /dev/null.
    pub stdin: bool,
}

/// A command that is about to be started in a running container.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) handle: ProcessHandle,
    process: agent::Process,
}

/// A process in a pod, to be told things beside its streams.
#[derive(Debug, Clone)]
pub struct ProcessHandle {
    pub(super) live: Live,
    container: String,
    /// Empty: the container's first process.
    exec: String,
    /// It has one.
    pub terminal: bool,
}

/// Checks a request and builds the process from the container's first one.
pub(super) fn prepare(node: &Arc<Node>, container: &Container, command: Command) -> Result<Prepared, ContainerError> {
    const REQUEST: &str = "executing a command";
    let record = container.record.get();
    if !matches!(record.state, ContainerState::Running { .. }) {
        let (id, state) = (record.id.clone(), record.state.name());
        return Err(ContainerError::WrongState { id, state, request: REQUEST });
    }
    let refused = |why: String| ContainerError::Request { id: record.id.clone(), request: REQUEST, why };
    if command.words.is_empty() {
        return Err(refused("the command is empty".into()));
    }
    let mut process = agent::Process::parse_from_bytes(&record.process)
        .map_err(|e| refused(format!("the container's record is damaged: {e}")))?;
    process.args = command.words.into_iter().map(String::into_bytes).collect();
    process.terminal = command.terminal;
    process.stdin = command.stdin;
    if command.terminal && !process.env.iter().any(|line| line.starts_with(b"TERM=")) {
        process.env.push(b"TERM=xterm".to_vec());
    }
    let live = node.sandboxes.find("sandbox", &record.sandbox_id)?.live(REQUEST)?;
    let handle = ProcessHandle { live, container: record.id.clone(), exec: new_id(), terminal: command.terminal };
    Ok(Prepared { handle, process })
}

/// Starts a command in a running container; gives its streams.
pub async fn exec(
    node: &Arc<Node>,
    container: &Container,
    command: Command,
) -> Result<(Streams, ProcessHandle), ContainerError> {
    let prepared = prepare(node, container, command)?;
    let handle = prepared.handle.clone();
    Ok((start(prepared).await?, handle))
}

pub(super) async fn start(prepared: Prepared) -> Result<Streams, ContainerError> {
    let Prepared { handle, process } = prepared;
    let stdin = process.stdin;
    let request = agent::ExecProcessRequest {
        container_id: handle.container.clone(),
        exec_id: handle.exec.clone(),
        process: Some(process).into(),
        ..Default::default()
    };
    handle.live.agent.exec_process(request).await.map_err(ContainerError::guest(&handle.container))?;
    let opened = handle.open(true, stdin).await;
    if opened.is_err() {
        handle.kill().await;
        handle.forget().await;
    }
    opened
}

impl ProcessHandle {
    /// The first process of a container.
    pub(super) fn first(live: Live, container: &str, terminal: bool) -> Self {
        Self { live, container: container.to_owned(), exec: String::new(), terminal }
    }

    /// Connects to its streams.
    pub(super) async fn open(&self, primary: bool, stdin: bool) -> Result<Streams, ContainerError> {
        let hello = agent::StdioHello {
            container_id: self.container.clone(),
            exec_id: self.exec.clone(),
            primary,
            stdin,
            ..Default::default()
        };
        Streams::open(self.live.agent.vsock(), &hello).await.map_err(ContainerError::guest(&self.container))
    }

    /// The container's id.
    #[must_use]
    pub fn container(&self) -> &str {
        &self.container
    }

    /// Tells its terminal how large the user's is. A failure is logged: the process may just have ended.
    pub async fn resize(&self, rows: u16, columns: u16) {
        let request = agent::ResizeTerminalRequest {
            container_id: self.container.clone(),
            exec_id: self.exec.clone(),
            rows: rows.into(),
            columns: columns.into(),
            ..Default::default()
        };
        if let Err(error) = self.live.agent.resize_terminal(request).await {
            tracing::debug!(container = self.container, %error, "cannot resize a terminal");
        }
    }

    /// Kills its session.
    pub(super) async fn kill(&self) {
        let request = agent::SignalProcessRequest {
            container_id: self.container.clone(),
            exec_id: self.exec.clone(),
            signal: SIGKILL,
            all: true,
            ..Default::default()
        };
        self.told("kill a command", self.live.agent.signal_process(request).await);
    }

    /// Forgets the process in the guest; an exec'd one that still runs is forgotten there when it ends.
    pub async fn forget(&self) {
        if self.exec.is_empty() {
            return;
        }
        let request = agent::RemoveProcessRequest {
            container_id: self.container.clone(),
            exec_id: self.exec.clone(),
            ..Default::default()
        };
        self.told("forget a command", self.live.agent.remove_process(request).await);
    }

    fn told<T>(&self, what: &str, result: Result<T, GuestError>) {
        match result {
            Err(error) if error.code() != Some(ttrpc::Code::NOT_FOUND) => {
                tracing::warn!(container = self.container, error = %crate::error_text(&error), "cannot {what}");
            }
            _ => {}
        }
    }
}
