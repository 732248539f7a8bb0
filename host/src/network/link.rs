//! Netlink in a pod's network namespace: the loopback, reading what plugins made, and the cross-connection with taps.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use futures_util::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteType, RouteVia,
};
use netlink_packet_route::tc::TcHandle;
use rtnetlink::{Handle, LinkUnspec};

use super::state::{Interface, Neighbour, Route};
use crate::sys::netns::{self, NetnsError};

/// `ingress` qdiscs have this handle, and filters on them this parent.
const INGRESS: u32 = 0xffff_0000;
/// `ETH_P_ALL`, in network byte order as tc wants it.
const ALL_PROTOCOLS: u16 = 0x0003_u16.to_be();

/// Something in a pod's network namespace failed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The namespace.
    #[error(transparent)]
    Namespace(#[from] NetnsError),
    /// No netlink socket, or a setting in /proc.
    #[error("cannot {action} in {netns}")]
    Io {
        /// What was tried.
        action: String,
        /// The namespace.
        netns: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused a netlink request.
    #[error("cannot {action} in {netns}")]
    Netlink {
        /// What was tried.
        action: String,
        /// The namespace.
        netns: PathBuf,
        /// Why.
        source: rtnetlink::Error,
    },
    /// An interface that should exist does not.
    #[error("there is no interface {name} in {netns}, though the CNI plugins should have made it")]
    NoInterface {
        /// Its name.
        name: String,
        /// The namespace.
        netns: PathBuf,
    },
}

/// What a pod's namespace holds beside the loopback and the taps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// In the order asked for.
    pub interfaces: Vec<Interface>,
    /// Sorted: see [`super::PodNetworkState::routes`].
    pub routes: Vec<Route>,
    /// Permanent ones.
    pub neighbours: Vec<Neighbour>,
}

/// Brings the loopback up.
///
/// # Errors
/// When the namespace is gone or the kernel refuses.
pub async fn loopback_up(netns: &Path) -> Result<(), LinkError> {
    inside(netns, |links| async move { links.up("lo", None).await }).await
}

/// Reads `interfaces` and, for each `(interface, tap)`, sends every frame that arrives at the one out of the other,
/// wherever an earlier call sent it.
///
/// # Errors
/// When one of them does not exist or the kernel refuses.
pub async fn cross_connect(netns: &Path, pairs: Vec<(String, String)>) -> Result<Observed, LinkError> {
    inside(netns, |links| async move {
        let mut observed = Observed::default();
        let mut indexes = Vec::new();
        for (name, tap) in pairs {
            let (index, interface) = links.interface(&name, &tap).await?;
            let tap_index = links.prepare_tap(&tap, interface.mtu).await?;
            links.redirect(&name, index, &tap, tap_index).await?;
            links.redirect(&tap, tap_index, &name, index).await?;
            indexes.push((index, name));
            observed.interfaces.push(interface);
        }
        observed.routes = links.routes(&indexes).await?;
        observed.neighbours = links.neighbours(&indexes).await?;
        Ok(observed)
    })
    .await
}

/// Reads `interfaces`, as a pod without taps has them.
///
/// # Errors
/// When one of them does not exist or the kernel refuses.
pub async fn observe(netns: &Path, interfaces: Vec<String>) -> Result<Observed, LinkError> {
    inside(netns, |links| async move {
        let mut observed = Observed::default();
        let mut indexes = Vec::new();
        for name in interfaces {
            let (index, interface) = links.interface(&name, "").await?;
            indexes.push((index, name));
            observed.interfaces.push(interface);
        }
        observed.routes = links.routes(&indexes).await?;
        observed.neighbours = links.neighbours(&indexes).await?;
        Ok(observed)
    })
    .await
}

// Runs on a thread of its own with a runtime of its own: a netlink socket belongs to the namespace it was opened in.
async fn inside<T, F, W>(netns: &Path, work: W) -> Result<T, LinkError>
where
    T: Send + 'static,
    W: FnOnce(Links) -> F + Send + 'static,
    F: Future<Output = Result<T, LinkError>>,
{
    let path = netns.to_owned();
    netns::run_async(netns, move || {
        let failed = |source| LinkError::Io { action: "open a netlink socket".into(), netns: path.clone(), source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().map_err(failed)?;
            let connection = tokio::spawn(connection);
            let outcome = work(Links { handle, netns: path.clone() }).await;
            connection.abort();
            outcome
        })
    })
    .await?
}

struct Links {
    handle: Handle,
    netns: PathBuf,
}

impl Links {
    fn failed<A: Into<String>>(&self, action: A) -> impl FnOnce(rtnetlink::Error) -> LinkError + use<A> {
        let (action, netns) = (action.into(), self.netns.clone());
        move |source| LinkError::Netlink { action, netns, source }
    }

    async fn find(&self, name: &str) -> Result<LinkMessage, LinkError> {
        let mut found = Box::pin(self.handle.link().get().match_name(name).execute());
        let missing = || LinkError::NoInterface { name: name.to_owned(), netns: self.netns.clone() };
        match found.try_next().await {
            Ok(link) => link.ok_or_else(missing),
            Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code() == -libc::ENODEV => Err(missing()),
            Err(e) => Err(self.failed(format!("look up interface {name}"))(e)),
        }
    }

    async fn up(&self, name: &str, mtu: Option<u32>) -> Result<(), LinkError> {
        let mut change = LinkUnspec::new_with_name(name).up();
        if let Some(mtu) = mtu {
            change = change.mtu(mtu);
        }
        self.handle.link().change(change.build()).execute().await.map_err(self.failed(format!("bring {name} up")))
    }

    async fn interface(&self, name: &str, tap: &str) -> Result<(u32, Interface), LinkError> {
        let link = self.find(name).await?;
        let index = link.header.index;
        let mut interface = Interface { name: name.to_owned(), tap: tap.to_owned(), ..Interface::default() };
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::Address(address) => interface.mac = mac_text(address),
                LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
                _ => {}
            }
        }
        let request = self.handle.address().get().set_link_index_filter(index).execute();
        let addresses: Vec<AddressMessage> =
            request.try_collect().await.map_err(self.failed(format!("read the addresses of {name}")))?;
        interface.addresses = addresses.iter().filter_map(address_text).collect();
        Ok((index, interface))
    }

    // IPv6 is off on the tap, or the namespace's own stack would announce itself to the guest.
    async fn prepare_tap(&self, tap: &str, mtu: u32) -> Result<u32, LinkError> {
        let index = self.find(tap).await?.header.index;
        let setting = format!("/proc/sys/net/ipv6/conf/{tap}/disable_ipv6");
        match std::fs::write(&setting, "1") {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(LinkError::Io { action: format!("write {setting}"), netns: self.netns.clone(), source });
            }
            _ => {}
        }
        self.up(tap, Some(mtu)).await?;
        Ok(index)
    }

    async fn redirect(&self, from: &str, from_index: u32, to: &str, to_index: u32) -> Result<(), LinkError> {
        let from_index = from_index.cast_signed();
        let failed = |what: &str| self.failed(format!("{what} {from} to {to} (tc ingress, u32, mirred)"));
        let mut old = self.handle.qdisc().del(from_index);
        old.message_mut().header.parent = TcHandle::INGRESS;
        // Refused where there is none; whatever else is wrong, the next request tells.
        let _ = old.execute().await;
        self.handle.qdisc().add(from_index).ingress().execute().await.map_err(failed("prepare redirecting"))?;
        let filter = self.handle.traffic_filter(from_index).add().parent(INGRESS).protocol(ALL_PROTOCOLS);
        let filter = filter.redirect(to_index).map_err(failed("describe redirecting"))?;
        filter.execute().await.map_err(failed("redirect"))
    }

    async fn routes(&self, interfaces: &[(u32, String)]) -> Result<Vec<Route>, LinkError> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let found: Vec<RouteMessage> = self
                .handle
                .route()
                .get(request)
                .execute()
                .try_collect()
                .await
                .map_err(self.failed("read the routes"))?;
            routes.extend(found.iter().filter_map(|message| route(message, interfaces)));
        }
        // A gateway must be reachable before a route through it is accepted.
        routes.sort_by_key(|route: &Route| (!route.gateway.is_empty(), route.destination.ends_with("/0")));
        Ok(routes)
    }

    async fn neighbours(&self, interfaces: &[(u32, String)]) -> Result<Vec<Neighbour>, LinkError> {
        let request = self.handle.neighbours().get().execute();
        let found: Vec<NeighbourMessage> = request.try_collect().await.map_err(self.failed("read the neighbours"))?;
        Ok(found.iter().filter_map(|message| neighbour(message, interfaces)).collect())
    }
}

fn name_of(index: u32, interfaces: &[(u32, String)]) -> Option<String> {
    interfaces.iter().find(|(known, _)| *known == index).map(|(_, name)| name.clone())
}

fn mac_text(address: &[u8]) -> String {
    address.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

// IFA_LOCAL is the interface's own address where it differs from the peer's (IFA_ADDRESS).
fn address_text(message: &AddressMessage) -> Option<String> {
    let mut own = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => own = Some(*address),
            AddressAttribute::Address(address) => own = own.or(Some(*address)),
            _ => {}
        }
    }
    let address = own.filter(|address| !is_link_local(address))?;
    Some(format!("{address}/{}", message.header.prefix_len))
}

// The guest's kernel makes its own.
fn is_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

fn route(message: &RouteMessage, interfaces: &[(u32, String)]) -> Option<Route> {
    let header = &message.header;
    let mut table = u32::from(header.table);
    let v6 = header.address_family == AddressFamily::Inet6;
    let mut route = Route { scope: u32::from(u8::from(header.scope)), ..Route::default() };
    let mut destination: IpAddr = if v6 { IpAddr::from([0_u16; 8]) } else { IpAddr::from([0_u8; 4]) };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Destination(address) => destination = route_address(address)?,
            RouteAttribute::Gateway(address) => route.gateway = route_address(address)?.to_string(),
            RouteAttribute::Via(RouteVia::Inet(address)) => route.gateway = address.to_string(),
            RouteAttribute::Via(RouteVia::Inet6(address)) => route.gateway = address.to_string(),
            RouteAttribute::Oif(index) => route.interface = name_of(*index, interfaces)?,
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics
                    .iter()
                    .find_map(|m| if let RouteMetric::Mtu(mtu) = m { Some(*mtu) } else { None })
                    .unwrap_or(0);
            }
            _ => {}
        }
    }
    // The kernel's own routes follow from the addresses, in the guest as here.
    let wanted = table == u32::from(RouteHeader::RT_TABLE_MAIN)
        && header.kind == RouteType::Unicast
        && header.protocol != RouteProtocol::Kernel
        && !route.interface.is_empty()
        && !is_link_local(&destination);
    route.destination = format!("{destination}/{}", header.destination_prefix_length);
    wanted.then_some(route)
}

fn route_address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn neighbour(message: &NeighbourMessage, interfaces: &[(u32, String)]) -> Option<Neighbour> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let mut found = Neighbour { interface: name_of(message.header.ifindex, interfaces)?, ..Neighbour::default() };
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => found.address = address.to_string(),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => found.address = address.to_string(),
            NeighbourAttribute::LinkLayerAddress(address) => found.mac = mac_text(address),
            _ => {}
        }
    }
    (!found.address.is_empty() && !found.mac.is_empty()).then_some(found)
}
