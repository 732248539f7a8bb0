//! Host ports: ports of the host that lead to a pod, by nftables in a table of our own.
//!
//! A port is first bound on the host, so that one in use is an error that names its owner, and stays bound while the pod
//! lives. docs/networking.md tells what packets meet; docs/decisions/0004-host-ports.md why.
//!
//! * [`mapping`]: one port. * `hold`: the bound socket. * `owner`: whose a port is. * `record`: the journal.
//! * `table`: the rules. * `loopback`: 127.0.0.1. * `watch`: changes by others.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};

use bulkhead_proto::cri;
use ipnet::IpNet;

use crate::error_text;

mod hold;
mod loopback;
pub mod mapping;
mod owner;
mod record;
mod table;
mod watch;

use hold::Absent;
use mapping::{HostPort, Protocol};
pub use record::PodName;
use record::{Record, Records};
use table::{Content, Table};

/// Host ports could not be taken, opened or given back.
#[derive(Debug, thiserror::Error)]
pub enum HostPortError {
    /// A mapping makes no sense.
    #[error("pod sandbox {id}: port mapping ({mapping}) is not valid: {why}")]
    Invalid {
        /// The pod sandbox.
        id: String,
        /// As it was asked for.
        mapping: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Somebody has the port.
    #[error("pod sandbox {id}: host port {port} is in use by {owner}; stop that or choose another hostPort")]
    Taken {
        /// The pod sandbox.
        id: String,
        /// The port.
        port: String,
        /// A pod or processes.
        owner: String,
    },
    /// The host has no such address.
    #[error("pod sandbox {id}: host port {port}: this host has no address {address}; correct hostIP or leave it out")]
    NoAddress {
        /// The pod sandbox.
        id: String,
        /// The port.
        port: String,
        /// Its host_ip.
        address: IpAddr,
    },
    /// The pod lacks an address of the family.
    #[error("pod sandbox {id}: host port {port} cannot lead to the pod, which has no address of that IP family")]
    NoTarget {
        /// The pod sandbox.
        id: String,
        /// The port.
        port: String,
    },
    /// The kernel refuses the port.
    #[error("pod sandbox {id}: cannot bind host port {port}")]
    Bind {
        /// The pod sandbox.
        id: String,
        /// The port.
        port: String,
        /// Why.
        source: io::Error,
    },
    /// The record on disk.
    #[error("cannot {action} the record of host ports {path}")]
    Record {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No `nft`.
    #[error("host ports need the program nft, which is neither in PATH nor in /usr/sbin; install the package nftables")]
    NoNft,
    /// `nft` failed.
    #[error("nft cannot {action} table inet {table}: {why}")]
    Nft {
        /// What was tried.
        action: &'static str,
        /// The table's name.
        table: String,
        /// Its words.
        why: String,
    },
    /// A setting of the host.
    #[error("cannot write {setting}")]
    Setting {
        /// The file in /proc.
        setting: String,
        /// Why.
        source: io::Error,
    },
}

/// Every pod's host ports.
#[derive(Debug)]
pub struct HostPorts {
    inner: Arc<Inner>,
    watched: Once,
}

#[derive(Debug)]
struct Inner {
    table: Table,
    records: Records,
    pods: Mutex<BTreeMap<String, Held>>,
    // Held while rules and settings are changed, so that they are changed in the order of what led to it.
    applied: tokio::sync::Mutex<Applied>,
}

#[derive(Debug)]
struct Held {
    record: Record,
    sockets: Vec<OwnedFd>,
    /// Taken from the rules before the sockets are closed.
    closing: bool,
    /// What could not be bound again after a restart.
    unbound: Vec<(Protocol, SocketAddr)>,
}

/// What the host was last told.
#[derive(Debug, Default)]
struct Applied {
    /// The kernel's listing after it; none without a table.
    listing: Option<String>,
    /// Opened for 127.0.0.1 by us.
    interfaces: BTreeSet<String>,
}

impl HostPorts {
    /// Of the daemon whose state is in `root`, with records in `directory`. Touches nothing yet.
    #[must_use]
    pub fn new(root: &Path, directory: &Path) -> Self {
        let inner = Inner {
            table: Table::of(root),
            records: Records(directory.to_owned()),
            pods: Mutex::default(),
            applied: tokio::sync::Mutex::default(),
        };
        Self { inner: Arc::new(inner), watched: Once::new() }
    }

    /// Takes the ports for the pod: from now on nobody else gets them. Without host ports nothing happens.
    ///
    /// # Errors
    /// What is wrong with a mapping, or who has a port; nothing is held then.
    pub async fn claim(&self, pod: PodName, mappings: &[cri::PortMapping]) -> Result<(), HostPortError> {
        let id = pod.id.clone();
        let invalid = |(mapping, why)| HostPortError::Invalid { id: id.clone(), mapping, why };
        let ports = HostPort::read(mappings).map_err(invalid)?;
        if ports.is_empty() {
            return Ok(());
        }
        let record = Record::new(pod, ports);
        self.inner.reserve(&record)?;
        let taken = async {
            self.inner.records.save(&record).await?;
            let sockets = tokio::task::spawn_blocking(move || bind_all(&record));
            sockets.await.map_err(|e| bind_failed(&id, e))?
        };
        match taken.await {
            Ok(sockets) => {
                if let Some(held) = self.inner.pods().get_mut(&id) {
                    held.sockets = sockets;
                }
                Ok(())
            }
            Err(error) => {
                self.inner.records.forget(&id).await?;
                self.inner.pods().remove(&id);
                Err(error)
            }
        }
    }

    /// Leads the pod's ports to its addresses (with their networks' prefix lengths, the primary ones first).
    ///
    /// # Errors
    /// When a port's family is not the pod's, or rules cannot be changed.
    pub async fn open(&self, id: &str, addresses: &[IpNet]) -> Result<(), HostPortError> {
        let Some(mut record) = self.inner.pods().get(id).map(|held| held.record.clone()) else { return Ok(()) };
        let first = |four: bool| addresses.iter().find(|address| address.addr().is_ipv4() == four).copied();
        record.addresses = [first(true), first(false)].into_iter().flatten().collect();
        if let Some(port) = record.ports.iter().find(|port| !table::serves(port, &record.addresses)) {
            return Err(HostPortError::NoTarget { id: id.to_owned(), port: port.to_string() });
        }
        let mut applied = self.inner.applied.lock().await;
        record.loopback = interface_to_open(&record, &applied);
        self.inner.records.save(&record).await?;
        if let Some(held) = self.inner.pods().get_mut(id) {
            held.record = record;
        }
        self.watched.call_once(|| watch::spawn(&self.inner));
        self.inner.apply(&mut applied).await
    }

    /// Gives the pod's ports back. Idempotent; one that was never given any is success.
    ///
    /// # Errors
    /// When rules cannot be changed; the call can be repeated.
    pub async fn release(&self, id: &str) -> Result<(), HostPortError> {
        if let Some(held) = self.inner.pods().get_mut(id) {
            held.closing = true;
        } else {
            return self.inner.records.forget(id).await;
        }
        let mut applied = self.inner.applied.lock().await;
        self.inner.apply(&mut applied).await?;
        self.inner.records.forget(id).await?;
        self.inner.pods().remove(id);
        Ok(())
    }

    /// Takes up what an earlier daemon held for the pods that `runs` names, and gives the rest back. A port that somebody
    /// took in between is told of and tried again; the pod keeps its rules.
    ///
    /// # Errors
    /// When records cannot be read or rules cannot be changed.
    pub async fn recover(&self, runs: impl Fn(&str) -> bool) -> Result<(), HostPortError> {
        let (kept, gone): (Vec<Record>, Vec<Record>) =
            self.inner.records.load()?.into_iter().partition(|record| runs(&record.pod.id));
        let mut applied = self.inner.applied.lock().await;
        applied.interfaces = kept.iter().chain(&gone).filter_map(|record| record.loopback.clone()).collect();
        for record in kept {
            let id = record.pod.id.clone();
            let held = tokio::task::spawn_blocking(move || bind_again(record));
            let held = held.await.map_err(|e| bind_failed(&id, e))?;
            self.inner.pods().insert(id, held);
        }
        let changed = match self.inner.apply(&mut applied).await {
            // Without nft there were never rules.
            Err(HostPortError::NoNft) if self.inner.pods().is_empty() => Ok(()),
            changed => changed,
        };
        self.watched.call_once(|| watch::spawn(&self.inner));
        for record in gone {
            self.inner.records.forget(&record.pod.id).await?;
        }
        changed
    }
}

impl Inner {
    fn pods(&self) -> MutexGuard<'_, BTreeMap<String, Held>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // Among pods, first come, first served.
    fn reserve(&self, record: &Record) -> Result<(), HostPortError> {
        let mut pods = self.pods();
        for (port, held) in record.ports.iter().flat_map(|port| pods.values().map(move |held| (port, held))) {
            if held.record.ports.iter().any(|other| other.overlaps(port)) {
                let PodName { id, namespace, name } = &held.record.pod;
                let owner = format!("pod {namespace}/{name} (sandbox {id})");
                return Err(HostPortError::Taken { id: record.pod.id.clone(), port: port.to_string(), owner });
            }
        }
        let held = Held { record: record.clone(), sockets: Vec::new(), closing: false, unbound: Vec::new() };
        pods.insert(record.pod.id.clone(), held);
        Ok(())
    }

    fn content(&self) -> (Content, BTreeSet<String>) {
        let (mut content, mut interfaces) = (Content::default(), BTreeSet::new());
        for held in self.pods().values().filter(|held| !held.closing) {
            held.record.ports.iter().for_each(|port| content.add(port, &held.record.addresses));
            interfaces.extend(held.record.loopback.clone());
        }
        interfaces.iter().for_each(|interface| content.guard(interface));
        (content, interfaces)
    }

    // An interface is closed before its guard goes, and opened after its guard stands.
    async fn apply(&self, applied: &mut Applied) -> Result<(), HostPortError> {
        let (content, interfaces) = self.content();
        for interface in applied.interfaces.difference(&interfaces) {
            loopback::close(interface)?;
        }
        applied.listing = None;
        self.table.replace(&content).await?;
        for interface in &interfaces {
            loopback::open(interface)?;
        }
        applied.interfaces = interfaces;
        if !content.is_empty() {
            applied.listing = Some(self.table.list().await);
        }
        Ok(())
    }

    /// Restores what others took away.
    async fn heal(&self) {
        self.bind_missing().await;
        let mut applied = self.applied.lock().await;
        match &applied.listing {
            Some(expected) if self.table.list().await == *expected => return,
            // An earlier change failed halfway.
            None if !self.content().0.is_empty() => {}
            None => return,
            Some(_) => {}
        }
        tracing::warn!(table = %self.table.name, "the nftables table of host ports is not as it was left; restoring it");
        if let Err(error) = self.apply(&mut applied).await {
            tracing::error!(error = %error_text(&error), "cannot restore it; trying again");
        }
    }

    async fn bind_missing(&self) {
        let missing: Vec<(String, Protocol, SocketAddr)> = {
            let pods = self.pods();
            let of = |(id, held): (&String, &Held)| {
                held.unbound.iter().map(|(p, a)| (id.clone(), *p, *a)).collect::<Vec<_>>()
            };
            pods.iter().flat_map(of).collect()
        };
        for (id, protocol, address) in missing {
            let Ok(Some(socket)) = hold::hold(protocol, address, Absent::Allowed) else { continue };
            if let Some(held) = self.pods().get_mut(&id) {
                held.sockets.push(socket);
                held.unbound.retain(|other| *other != (protocol, address));
            }
        }
    }
}

/// The interface to open for 127.0.0.1; none when the pod needs none, or when somebody else keeps it open.
fn interface_to_open(record: &Record, applied: &Applied) -> Option<String> {
    let address = record.addresses.iter().find_map(|network| match network.addr() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    })?;
    let interface = record.ports.iter().any(HostPort::on_loopback).then(|| loopback::interface_to(address))??;
    (applied.interfaces.contains(&interface) || !loopback::is_open(&interface)).then_some(interface)
}

fn bind_all(record: &Record) -> Result<Vec<OwnedFd>, HostPortError> {
    let mut sockets = Vec::new();
    for (port, address) in record.ports.iter().flat_map(|port| port.addresses().into_iter().map(move |a| (port, a))) {
        let held = hold::hold(port.protocol, address, Absent::Refused);
        sockets.extend(held.map_err(|source| refusal(&record.pod.id, port, address, source))?);
    }
    Ok(sockets)
}

fn refusal(id: &str, port: &HostPort, address: SocketAddr, source: io::Error) -> HostPortError {
    let (id, text) = (id.to_owned(), port.to_string());
    match source.kind() {
        io::ErrorKind::AddrInUse => {
            HostPortError::Taken { id, port: text, owner: owner::owner(port.protocol, address) }
        }
        io::ErrorKind::AddrNotAvailable => HostPortError::NoAddress { id, port: text, address: address.ip() },
        _ => HostPortError::Bind { id, port: text, source },
    }
}

fn bind_again(record: Record) -> Held {
    let mut held = Held { record, sockets: Vec::new(), closing: false, unbound: Vec::new() };
    for port in &held.record.ports {
        for address in port.addresses() {
            match hold::hold(port.protocol, address, Absent::Allowed) {
                Ok(socket) => held.sockets.extend(socket),
                Err(error) => {
                    let owner = owner::owner(port.protocol, address);
                    let id = &held.record.pod.id;
                    tracing::warn!(sandbox = %id, %port, %error, owner, "cannot bind the pod's host port again; packets still go to the pod");
                    held.unbound.push((port.protocol, address));
                }
            }
        }
    }
    held
}

fn bind_failed(id: &str, error: tokio::task::JoinError) -> HostPortError {
    HostPortError::Bind { id: id.to_owned(), port: "(all)".to_owned(), source: error.into() }
}
