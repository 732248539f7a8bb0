//! What the requests and the supervision of one pod's machine share.

use std::sync::{Arc, Mutex, OnceLock};

use tokio::sync::{Notify, watch};

use crate::agent_link::AgentLink;
use crate::console::{ConsoleFile, Input};
use crate::descriptors::Tokens;
use crate::devices::balloon::BalloonHandle;
use crate::devices::block::{BlockCounters, ImageDrive};
use crate::devices::net::NetCounters;
use crate::exit::Exit;
use crate::kvm::Machine;
use crate::logs::Logs;
use crate::volumes::Volumes;

/// The life of a machine.
///
/// ```text
/// Booting --agent connects--> Ready --monitor ends--> Exited
///    `------------monitor ends-----------------------'
/// ```
#[derive(Debug, Clone)]
pub enum State {
    /// The monitor runs.
    Booting,
    /// The agent listens.
    Ready {
        /// From the monitor's start, in microseconds.
        boot_us: u64,
    },
    /// The monitor has ended, logs are written, the exit record too.
    Exited(Exit),
}

/// One pod's machine.
#[derive(Debug)]
pub struct Pod {
    /// For messages.
    pub sandbox_id: String,
    /// Of QEMU, or of an agent on the host; none when this process runs the guest.
    pub monitor_pid: Option<u32>,
    /// The guest that this process runs, once it does.
    pub machine: OnceLock<Arc<Machine>>,
    /// Where it stands.
    pub state: watch::Sender<State>,
    /// Somebody asked for the machine's end.
    pub shutdown: Notify,
    /// What the daemon handed over.
    pub tokens: Tokens,
    /// The drive that images appear on.
    pub images: Arc<ImageDrive>,
    /// Of both drives.
    pub block_counters: Vec<Arc<BlockCounters>>,
    /// Of the network devices that this process serves.
    pub net_counters: Vec<Arc<NetCounters>>,
    /// Where the console is kept.
    pub console_file: Arc<Mutex<ConsoleFile>>,
    /// Where is typed, on a machine that takes it.
    pub keyboard: Option<Input>,
    /// The way to the agent.
    pub agent: AgentLink,
    /// The containers' output.
    pub logs: Logs,
    /// Guest memory in MiB, as the machine was made.
    pub memory_mib: u64,
    /// Takes memory from the guest, where the machine has a balloon.
    pub balloon: Option<BalloonHandle>,
    /// Whoever holds processors up or lets them go on has it: one does not undo what another did.
    pub holding: Arc<tokio::sync::Mutex<()>>,
    /// The file server, when there is one.
    pub volumes: Option<Volumes>,
}

impl Pod {
    /// Waits until the agent listens.
    ///
    /// # Errors
    /// The machine's end, when that came first or later.
    pub async fn ready(&self) -> Result<u64, Exit> {
        let mut state = self.state.subscribe();
        loop {
            match &*state.borrow_and_update() {
                State::Ready { boot_us } => return Ok(*boot_us),
                State::Exited(exit) => return Err(exit.clone()),
                State::Booting => {}
            }
            // The sender lives in this very pod.
            let _ = state.changed().await;
        }
    }

    /// Waits for the machine's end.
    pub async fn exit(&self) -> Exit {
        let mut state = self.state.subscribe();
        loop {
            if let State::Exited(exit) = &*state.borrow_and_update() {
                return exit.clone();
            }
            let _ = state.changed().await;
        }
    }
}
