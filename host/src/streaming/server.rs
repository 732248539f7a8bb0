//! Accepting clients: TCP, TLS where it is set up, one HTTP/1.1 request, the upgrade.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;

use super::peer::{Link, Peer};
use super::remote_command::{self, Timeouts};
use super::upgrade::{self, Spoken};
use super::websocket;
use super::{Endpoint, Request, StreamingConfig, StreamingError, Streams, port_forward};
use crate::node::Node;

/// Longest request, headers included, in bytes.
const MAX_REQUEST: usize = 32 * 1024;
/// Pause after a failed accept, which lack of descriptors makes fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A socket that listens, not yet served.
pub struct Listener {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    timeouts: Timeouts,
    places: Arc<Semaphore>,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").field("listener", &self.listener).finish_non_exhaustive()
    }
}

/// Listens, so that URLs can be made.
pub async fn bind(config: &StreamingConfig) -> Result<(Endpoint, Listener), StreamingError> {
    let address = config.address;
    let failed = |source| StreamingError::Listen { address, source };
    let tls =
        if config.tls_cert.as_os_str().is_empty() { None } else { Some(acceptor(&config.tls_cert, &config.tls_key)?) };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let endpoint = Endpoint::new(format!("{scheme}://{}", reachable(bound)));
    let timeouts = Timeouts {
        idle: Duration::from_secs(config.idle_timeout_s),
        creation: Duration::from_secs(config.creation_timeout_s),
    };
    let places = Arc::new(Semaphore::new(config.connections));
    Ok((endpoint, Listener { listener, tls, timeouts, places }))
}

/// An address that the node itself can connect to.
fn reachable(bound: SocketAddr) -> SocketAddr {
    let ip = match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, bound.port())
}

fn acceptor(cert: &Path, key: &Path) -> Result<TlsAcceptor, StreamingError> {
    let pem = |path: &Path| {
        let path = path.to_owned();
        move |source| StreamingError::Pem { path, source }
    };
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(|certificates| certificates.collect::<Result<Vec<_>, _>>())
        .map_err(pem(cert))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(pem(key))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|source| StreamingError::Tls { source })?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Serves clients until the daemon ends.
pub async fn serve(node: Arc<Node>, listener: Listener) {
    let Listener { listener, tls, timeouts, places } = listener;
    loop {
        // Never closed.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (node, peer) = (node.clone(), Arc::new(Peer::of(&stream)));
                let connection = Connection { node, timeouts, place: Arc::new(place), peer };
                tokio::spawn(connection.serve(stream, tls.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a streaming client");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

#[derive(Clone)]
struct Connection {
    node: Arc<Node>,
    timeouts: Timeouts,
    /// Given back when the last session on the connection has ended.
    place: Arc<OwnedSemaphorePermit>,
    peer: Arc<Peer>,
}

impl Connection {
    async fn serve(self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        // Keystrokes are small and wanted at once.
        let _ = stream.set_nodelay(true);
        let Some(tls) = tls else { return self.serve_http(stream).await };
        match tokio::time::timeout(self.timeouts.creation, tls.accept(stream)).await {
            Ok(Ok(stream)) => self.serve_http(stream).await,
            Ok(Err(error)) => tracing::debug!(%error, "a streaming client's TLS handshake failed"),
            Err(_) => {}
        }
    }

    async fn serve_http<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(self, io: S) {
        let creation = self.timeouts.creation;
        let service = service_fn(move |request| {
            let connection = self.clone();
            async move { Ok::<_, Infallible>(connection.answer(request)) }
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(creation)
            .max_buf_size(MAX_REQUEST)
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades()
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "a streaming client's request failed");
        }
    }

    fn answer(self, mut http: http::Request<Incoming>) -> Response<Full<Bytes>> {
        let path = http.uri().path().trim_start_matches('/').split_once('/');
        let redeemed = path.and_then(|(verb, token)| self.node.streaming.tokens.redeem(verb, token));
        let Some(request) = redeemed else {
            return refusal(StatusCode::NOT_FOUND, "no such URL, or it was used or is older than a minute".into());
        };
        let (spoken, headers) = match upgrade::negotiate(&request, &http) {
            Ok(agreed) => agreed,
            Err(disagreement) => {
                let status = match &disagreement {
                    upgrade::Disagreement::Protocol { .. } => StatusCode::FORBIDDEN,
                    _ => StatusCode::BAD_REQUEST,
                };
                let mut answer = refusal(status, disagreement.to_string());
                answer.headers_mut().extend(disagreement.headers());
                return answer;
            }
        };
        let upgraded = hyper::upgrade::on(&mut http);
        tokio::spawn(async move {
            match upgraded.await {
                Ok(io) => self.session(TokioIo::new(io), spoken, &request).await,
                Err(error) => tracing::debug!(%error, "a streaming client did not take the upgrade"),
            }
        });
        let mut answer = Response::new(Full::default());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *answer.headers_mut() = headers;
        answer
    }

    async fn session<S>(self, io: S, spoken: Spoken, request: &Request)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (node, timeouts) = (&self.node, self.timeouts);
        let link = Link { io, peer: self.peer };
        let streams = match request {
            Request::Exec { streams, .. } | Request::Attach { streams, .. } => *streams,
            Request::PortForward { .. } => Streams::default(),
        };
        let (sandbox, ports) = match request {
            Request::PortForward { sandbox, ports } => (sandbox.as_str(), ports.as_slice()),
            _ => ("", [].as_slice()),
        };
        match spoken {
            Spoken::CommandSpdy(version) => {
                remote_command::serve_spdy(node, link, version, request, streams, timeouts).await;
            }
            Spoken::CommandWebSocket(protocol) => {
                remote_command::serve_websocket(node, link, protocol, request, streams, timeouts).await;
            }
            Spoken::ForwardSpdy => port_forward::serve_spdy(node, link, sandbox, timeouts).await,
            Spoken::ForwardTunnel => {
                let io = websocket::tunnel(websocket::accept(link.io).await);
                port_forward::serve_spdy(node, Link { io, peer: link.peer }, sandbox, timeouts).await;
            }
            Spoken::ForwardWebSocket(protocol) => {
                port_forward::serve_websocket(node, link, protocol, (sandbox, ports), timeouts).await;
            }
        }
        drop(self.place);
    }
}

fn refusal(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::from(text + "\n"));
    *answer.status_mut() = status;
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_an_address_that_can_be_reached() {
        let of = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(of("0.0.0.0:80"), "127.0.0.1:80");
        assert_eq!(of("[::]:80"), "[::1]:80");
        assert_eq!(of("10.0.0.1:80"), "10.0.0.1:80");
    }
}
