//! Agreeing with a client on what is spoken after the HTTP request.

use http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY};
use http::header::{SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::Request;
use super::port_forward::{self, WEBSOCKET_PROTOCOLS};
use super::remote_command::{VERSIONS, Version};
use super::websocket::{ChannelProtocol, PROTOCOLS};

const STREAM_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_VERSIONS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
const SPDY: &str = "SPDY/3.1";

/// What both sides speak from here on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spoken {
    /// A remote command over SPDY.
    CommandSpdy(Version),
    /// A remote command over WebSocket.
    CommandWebSocket(ChannelProtocol),
    /// Port forwarding over SPDY.
    ForwardSpdy,
    /// Port forwarding over SPDY inside WebSocket.
    ForwardTunnel,
    /// Port forwarding over WebSocket.
    ForwardWebSocket(ChannelProtocol),
}

/// Why there is no agreement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub(super) enum Disagreement {
    #[error("this URL is for clients that upgrade to SPDY/3.1 or WebSocket; no such header came")]
    NoUpgrade,
    #[error("a WebSocket client has to send GET, version 13 and a key")]
    WebSocket,
    #[error("none of the client's protocols {offered:?} is spoken here; there are {spoken:?}")]
    Protocol { offered: Vec<String>, spoken: Vec<&'static str> },
}

impl Disagreement {
    /// Headers that tell the client what there is.
    pub(super) fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Self::Protocol { spoken, .. } = self {
            for name in spoken.iter().filter(|name| !name.is_empty()) {
                headers.append(ACCEPTED_VERSIONS, HeaderValue::from_static(name));
            }
        }
        headers
    }
}

/// Chooses, and gives the headers of the answer (101).
pub(super) fn negotiate<B>(request: &Request, http: &http::Request<B>) -> Result<(Spoken, HeaderMap), Disagreement> {
    let is = |name: HeaderName, wanted: &str| {
        list(http.headers(), &name).iter().any(|value| value.eq_ignore_ascii_case(wanted))
    };
    if !is(CONNECTION, "upgrade") {
        return Err(Disagreement::NoUpgrade);
    }
    if is(UPGRADE, SPDY) {
        return spdy(request, http.headers());
    }
    if is(UPGRADE, "websocket") {
        if http.method() != http::Method::GET || !is(SEC_WEBSOCKET_VERSION, "13") {
            return Err(Disagreement::WebSocket);
        }
        return websocket(request, http.headers());
    }
    Err(Disagreement::NoUpgrade)
}

fn spdy(request: &Request, headers: &HeaderMap) -> Result<(Spoken, HeaderMap), Disagreement> {
    let offered = list(headers, &STREAM_VERSION);
    let (spoken, name) = match request {
        Request::PortForward { .. } => {
            if !offered.is_empty() && !offered.iter().any(|name| name == port_forward::VERSION) {
                return Err(Disagreement::Protocol { offered, spoken: vec![port_forward::VERSION] });
            }
            (Spoken::ForwardSpdy, port_forward::VERSION)
        }
        Request::Exec { .. } | Request::Attach { .. } => {
            let [.., oldest] = VERSIONS;
            let version = if offered.is_empty() {
                oldest
            } else {
                let found = VERSIONS.into_iter().find(|version| offered.iter().any(|name| name == version.name));
                let spoken = VERSIONS.iter().map(|version| version.name).collect();
                found.ok_or(Disagreement::Protocol { offered, spoken })?
            };
            (Spoken::CommandSpdy(version), version.name)
        }
    };
    let mut answer = HeaderMap::new();
    answer.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(UPGRADE, HeaderValue::from_static(SPDY));
    answer.insert(STREAM_VERSION, HeaderValue::from_static(name));
    Ok((spoken, answer))
}

fn websocket(request: &Request, headers: &HeaderMap) -> Result<(Spoken, HeaderMap), Disagreement> {
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or(Disagreement::WebSocket)?;
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(|_| Disagreement::WebSocket)?;
    let offered = list(headers, &SEC_WEBSOCKET_PROTOCOL);
    let forwarding = matches!(request, Request::PortForward { .. });
    let known: &[ChannelProtocol] = if forwarding { &WEBSOCKET_PROTOCOLS } else { &PROTOCOLS };
    let (spoken, name) = if forwarding && offered.iter().any(|name| name == port_forward::TUNNELLED) {
        (Spoken::ForwardTunnel, port_forward::TUNNELLED)
    } else {
        let offers = |name: &str| {
            if offered.is_empty() { name.is_empty() } else { offered.iter().any(|offered| offered == name) }
        };
        let Some(protocol) = known.iter().copied().find(|protocol| offers(protocol.name)) else {
            let tunnelled = forwarding.then_some(port_forward::TUNNELLED);
            let spoken = tunnelled.into_iter().chain(known.iter().map(|protocol| protocol.name));
            let spoken = spoken.filter(|name| !name.is_empty()).collect();
            return Err(Disagreement::Protocol { offered, spoken });
        };
        let spoken = if forwarding { Spoken::ForwardWebSocket(protocol) } else { Spoken::CommandWebSocket(protocol) };
        (spoken, protocol.name)
    };
    let mut answer = HeaderMap::new();
    answer.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(UPGRADE, HeaderValue::from_static("websocket"));
    answer.insert(SEC_WEBSOCKET_ACCEPT, accept);
    if !name.is_empty() {
        answer.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    }
    Ok((spoken, answer))
}

/// The values of a header that may come in several lines and hold several values in each.
fn list(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let lines = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let values = lines.flat_map(|line| line.split(',')).map(|value| value.trim().to_owned());
    values.filter(|value| !value.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streaming::Streams;

    fn exec() -> Request {
        Request::Exec { container: "c".into(), command: vec!["sh".into()], streams: Streams::default() }
    }

    fn forward() -> Request {
        Request::PortForward { sandbox: "s".into(), ports: vec![] }
    }

    fn ask(request: &Request, headers: &[(&str, &str)]) -> Result<(Spoken, HeaderMap), Disagreement> {
        let mut http = http::Request::builder().method("GET").header("Connection", "keep-alive, Upgrade");
        for (name, value) in headers {
            http = http.header(*name, *value);
        }
        negotiate(request, &http.body(()).unwrap())
    }

    fn websocket_headers(protocols: &str) -> [(&str, &str); 4] {
        [
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("Sec-WebSocket-Protocol", protocols),
        ]
    }

    #[test]
    fn the_best_common_version_is_spoken() {
        let version = "X-Stream-Protocol-Version";
        let offered = [("Upgrade", "SPDY/3.1"), (version, "v2.channel.k8s.io"), (version, "v4.channel.k8s.io")];
        let (spoken, answer) = ask(&exec(), &offered).unwrap();
        assert_eq!(spoken, Spoken::CommandSpdy(VERSIONS[0]));
        assert_eq!(answer[STREAM_VERSION], "v4.channel.k8s.io");
        let (spoken, _) = ask(&forward(), &[("Upgrade", "SPDY/3.1"), (version, "portforward.k8s.io")]).unwrap();
        assert_eq!(spoken, Spoken::ForwardSpdy);
        let refused = ask(&exec(), &[("Upgrade", "SPDY/3.1"), (version, "v9.channel.k8s.io")]).unwrap_err();
        assert_eq!(refused.headers().get_all(ACCEPTED_VERSIONS).iter().count(), 4);
    }

    #[test]
    fn websocket_clients_choose_channels_or_a_tunnel() {
        let (spoken, answer) = ask(&exec(), &websocket_headers("v4.channel.k8s.io, v5.channel.k8s.io")).unwrap();
        assert_eq!(spoken, Spoken::CommandWebSocket(PROTOCOLS[0]));
        // The example of RFC 6455, section 1.3.
        assert_eq!(answer[SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let (spoken, answer) = ask(&forward(), &websocket_headers("SPDY/3.1+portforward.k8s.io")).unwrap();
        assert_eq!(spoken, Spoken::ForwardTunnel);
        assert_eq!(answer[SEC_WEBSOCKET_PROTOCOL], "SPDY/3.1+portforward.k8s.io");
        let (spoken, _) = ask(&forward(), &websocket_headers("")).unwrap();
        assert_eq!(spoken, Spoken::ForwardWebSocket(PROTOCOLS[5]));
        assert!(ask(&exec(), &websocket_headers("v9.channel.k8s.io")).is_err());
    }

    #[test]
    fn what_does_not_upgrade_is_refused() {
        assert_eq!(ask(&exec(), &[]).unwrap_err(), Disagreement::NoUpgrade);
        assert_eq!(ask(&exec(), &[("Upgrade", "h2c")]).unwrap_err(), Disagreement::NoUpgrade);
        assert_eq!(ask(&exec(), &websocket_headers("")[..1]).unwrap_err(), Disagreement::WebSocket);
    }
}
