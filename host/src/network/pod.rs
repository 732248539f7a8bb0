//! [`PodNetwork`]: set-up and removal of pods' networks, and whether the node has a network at all.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bulkhead_proto::cri;

use super::attachment::{Attacher, Attachment, AttachmentError};
use super::capability::{self, CapabilityError};
use super::config::{Directory, Loaded, Network};
use super::host_ports::{HostPortError, HostPorts, PodName};
use super::link::{self, LinkError, Observed};
use super::plugin::Runner;
use super::result::Answer;
use super::state::PodNetworkState;
use super::turns::Turns;
use crate::error_text;

/// The first interface's name, in every pod.
const INTERFACE: &str = "eth0";
/// How long an answer of plugins to STATUS holds.
const STATUS_AGE: Duration = Duration::from_secs(10);
/// STATUS is asked while kubelet waits.
const STATUS_LIMIT: Duration = Duration::from_secs(5);

/// Where everything is.
#[derive(Debug, Clone)]
pub struct Settings {
    /// CNI configuration files.
    pub config_directory: PathBuf,
    /// CNI plugin binaries.
    pub plugin_directories: Vec<PathBuf>,
    /// Records of attached pods, ours alone; must outlive a reboot.
    pub record_directory: PathBuf,
    /// The daemon's root directory: what tells its table of host ports from other daemons'.
    pub root: PathBuf,
    /// Longest run of one plugin.
    pub plugin_limit: Duration,
}

/// The pod to be attached.
#[derive(Debug, Clone, Default)]
pub struct NetworkRequest {
    /// CNI_CONTAINERID.
    pub sandbox_id: String,
    /// Kubernetes' name of the pod.
    pub pod_name: String,
    /// Its namespace.
    pub pod_namespace: String,
    /// Its uid.
    pub pod_uid: String,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Taps in the namespace, one per network device of the guest, in their order; none for a pod on the host's kernel, which
    /// uses the interfaces themselves.
    pub taps: Vec<String>,
    /// Those with a host port are mapped by the daemon; plugins are not told.
    pub port_mappings: Vec<cri::PortMapping>,
    /// Of the pod.
    pub annotations: HashMap<String, String>,
}

/// A pod's network could not be set up or removed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No usable configuration.
    #[error("{0}")]
    NotReady(String),
    /// Plugins and records.
    #[error(transparent)]
    Attachment(#[from] AttachmentError),
    /// Values for plugins.
    #[error(transparent)]
    Capability(#[from] CapabilityError),
    /// Netlink and tc.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Ports of the host.
    #[error(transparent)]
    HostPorts(#[from] HostPortError),
    /// The task ended without an answer.
    #[error("{action} of pod sandbox {id}'s network was interrupted: {why}")]
    Interrupted {
        /// The pod sandbox.
        id: String,
        /// What ran.
        action: &'static str,
        /// A panic, or the daemon's end.
        why: String,
    },
    /// The guest has too few network devices.
    #[error(
        "pod sandbox {id}: the CNI plugins of network {network} made interfaces {interfaces}, but the guest has {devices} network device(s)"
    )]
    Devices {
        /// The pod sandbox.
        id: String,
        /// The network.
        network: String,
        /// Their names.
        interfaces: String,
        /// Of the guest.
        devices: usize,
    },
}

/// The node's pod network.
///
/// Set-up and removal run to their end even when the caller stops waiting: a plugin that is killed halfway leaves what its
/// own DEL does not always find. Operations on one pod wait for each other.
#[derive(Debug)]
pub struct PodNetwork {
    directory: Directory,
    attacher: Arc<Attacher>,
    host_ports: Arc<HostPorts>,
    status: Attacher,
    asked: Mutex<Option<Asked>>,
    turns: Turns,
}

// What the plugins of a network said to STATUS, and when; nothing when they were ready.
#[derive(Debug, Clone)]
struct Asked {
    at: Instant,
    network: Arc<Network>,
    why_not: Option<String>,
}

impl PodNetwork {
    /// Reads and runs nothing yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let Settings { config_directory, plugin_directories, record_directory, root, plugin_limit } = settings;
        let runner = |limit| Runner { directories: plugin_directories.clone(), limit };
        Self {
            directory: Directory::new(&config_directory),
            attacher: Arc::new(Attacher::new(runner(plugin_limit), &record_directory)),
            host_ports: Arc::new(HostPorts::new(&root, &root.join("host-ports"))),
            status: Attacher::new(runner(plugin_limit.min(STATUS_LIMIT)), &record_directory),
            asked: Mutex::new(None),
            turns: Turns::default(),
        }
    }

    /// Whether pods can get a network now: CRI's condition NetworkReady. Plugins are asked where they know STATUS, at most
    /// every 10 s.
    ///
    /// # Errors
    /// [`NetworkError::NotReady`] with the reason for people.
    pub async fn ready(&self) -> Result<(), NetworkError> {
        let network = self.network()?;
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let why_not = match asked {
            Some(asked) if asked.at.elapsed() < STATUS_AGE && asked.network == network => asked.why_not,
            _ => {
                let why_not = self.status.status(&network).await.err().map(|e| error_text(&e));
                let asked = Asked { at: Instant::now(), network, why_not: why_not.clone() };
                *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(asked);
                why_not
            }
        };
        why_not.map_or(Ok(()), |why| Err(NetworkError::NotReady(why)))
    }

    /// Takes the pod's host ports, attaches it, cross-connects its interfaces with its taps, reads what came of it and
    /// leads the ports there. What an earlier, unfinished set-up of the same pod left is removed first; what a failed one
    /// did is undone.
    ///
    /// # Errors
    /// See [`NetworkError`].
    pub async fn setup(&self, request: NetworkRequest) -> Result<PodNetworkState, NetworkError> {
        let network = self.network()?;
        let arguments = capability::arguments(&request)?;
        let capabilities = capability::values(&request)?;
        let turn = self.turns.take(&request.sandbox_id).await;
        let (attacher, host_ports) = (self.attacher.clone(), self.host_ports.clone());
        let id = request.sandbox_id.clone();
        let attachment =
            Attachment::new(&request.sandbox_id, &network, &request.netns, INTERFACE, arguments, capabilities);
        let work = tokio::spawn(async move {
            let _turn = turn;
            let id = request.sandbox_id.as_str();
            host_ports.release(id).await?;
            host_ports.claim(owner_of(&request), &request.port_mappings).await?;
            let done = match attach(&attacher, &network, attachment, &request).await {
                Ok(state) => open(&host_ports, &attacher, id, state).await,
                Err(error) => Err(error),
            };
            if done.is_err()
                && let Err(undo) = host_ports.release(id).await
            {
                tracing::warn!(sandbox = %id, error = %error_text(&undo), "giving back host ports failed too");
            }
            done
        });
        work.await.map_err(|e| NetworkError::Interrupted { id, action: "set-up", why: e.to_string() })?
    }

    /// CNI CHECK: whether the plugins find the pod's network as they left it.
    ///
    /// # Errors
    /// What the first plugin misses.
    pub async fn check(&self, sandbox_id: &str) -> Result<(), NetworkError> {
        let _turn = self.turns.take(sandbox_id).await;
        Ok(self.attacher.check(sandbox_id).await?)
    }

    /// Detaches the pod, from the records of its set-up; `_state` is what set-up returned, if it did. Idempotent, and
    /// indifferent to whether the network namespace still exists. The namespace itself is the caller's.
    ///
    /// # Errors
    /// The first plugin that could not clean up; the call can be repeated.
    pub async fn teardown(
        &self,
        request: NetworkRequest,
        _state: Option<&PodNetworkState>,
    ) -> Result<(), NetworkError> {
        let turn = self.turns.take(&request.sandbox_id).await;
        let (attacher, host_ports) = (self.attacher.clone(), self.host_ports.clone());
        let id = request.sandbox_id.clone();
        let work = tokio::spawn(async move {
            let _turn = turn;
            // Rules go before the address that they lead to is given to another pod.
            host_ports.release(&request.sandbox_id).await?;
            Ok(attacher.delete(&request.sandbox_id).await?)
        });
        work.await.map_err(|e| NetworkError::Interrupted { id, action: "removal", why: e.to_string() })?
    }

    /// Takes up the host ports of pods that `runs` names, after a restart; those of others are given back.
    ///
    /// # Errors
    /// When rules cannot be changed.
    pub async fn recover(&self, runs: impl Fn(&str) -> bool) -> Result<(), NetworkError> {
        Ok(self.host_ports.recover(runs).await?)
    }

    /// Ids of pods that have a record here, for finding those that the daemon no longer knows.
    ///
    /// # Errors
    /// When the records cannot be listed.
    pub fn attached(&self) -> Result<Vec<String>, NetworkError> {
        Ok(self.attacher.attached()?)
    }

    fn network(&self) -> Result<Arc<Network>, NetworkError> {
        let loaded = self.directory.current();
        loaded.network.clone().ok_or_else(|| NetworkError::NotReady(nothing(&self.directory, &loaded)))
    }
}

fn nothing(directory: &Directory, loaded: &Loaded) -> String {
    let path = directory.path().display();
    if loaded.problems.is_empty() {
        return format!("no CNI configuration in {path} (*.conflist, *.conf, *.json); install a network plugin");
    }
    let problems: Vec<String> = loaded.problems.iter().map(ToString::to_string).collect();
    format!("no valid CNI configuration in {path}: {}", problems.join("; "))
}

async fn attach(
    attacher: &Attacher,
    network: &Network,
    attachment: Attachment,
    request: &NetworkRequest,
) -> Result<PodNetworkState, NetworkError> {
    let id = &request.sandbox_id;
    attacher.delete(id).await?;
    link::loopback_up(&request.netns).await?;
    let (result, answer) = attacher.add(attachment).await?;
    match connect(request, network, &answer).await {
        Ok(observed) => Ok(state(network, result.to_string(), answer, observed)),
        Err(error) => {
            if let Err(undo) = attacher.delete(id).await {
                tracing::warn!(sandbox = %id, error = %error_text(&undo), "undoing a failed network set-up failed too");
            }
            Err(error)
        }
    }
}

fn owner_of(request: &NetworkRequest) -> PodName {
    PodName { id: request.sandbox_id.clone(), namespace: request.pod_namespace.clone(), name: request.pod_name.clone() }
}

async fn open(
    host_ports: &HostPorts,
    attacher: &Attacher,
    id: &str,
    state: PodNetworkState,
) -> Result<PodNetworkState, NetworkError> {
    match host_ports.open(id, &state.networks()).await {
        Ok(()) => Ok(state),
        Err(error) => {
            if let Err(undo) = attacher.delete(id).await {
                tracing::warn!(sandbox = %id, error = %error_text(&undo), "undoing a failed network set-up failed too");
            }
            Err(error.into())
        }
    }
}

async fn connect(request: &NetworkRequest, network: &Network, answer: &Answer) -> Result<Observed, NetworkError> {
    let interfaces = answer.pod_interfaces(INTERFACE);
    if request.taps.is_empty() {
        return Ok(link::observe(&request.netns, interfaces).await?);
    }
    if interfaces.len() > request.taps.len() {
        return Err(NetworkError::Devices {
            id: request.sandbox_id.clone(),
            network: network.name.clone(),
            interfaces: interfaces.join(", "),
            devices: request.taps.len(),
        });
    }
    let pairs = interfaces.into_iter().zip(request.taps.iter().cloned()).collect();
    Ok(link::cross_connect(&request.netns, pairs).await?)
}

fn state(network: &Network, cni_result: String, answer: Answer, observed: Observed) -> PodNetworkState {
    let bare = |address: &String| address.split('/').next().unwrap_or_default().to_owned();
    let present: Vec<String> = observed.interfaces.iter().flat_map(|i| &i.addresses).map(bare).collect();
    // The plugins' order says which is primary; the kernel says which exist.
    let mut ips: Vec<String> =
        answer.addresses().iter().map(ToString::to_string).filter(|ip| present.contains(ip)).collect();
    for ip in present {
        if !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    PodNetworkState {
        network: network.name.clone(),
        interfaces: observed.interfaces,
        routes: observed.routes,
        neighbours: observed.neighbours,
        ips,
        dns: answer.dns,
        cni_result,
    }
}
