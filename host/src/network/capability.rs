//! What plugins are told beside their configuration: CNI_ARGS, and `runtimeConfig` by the capabilities they declare.

use std::collections::HashMap;

use bulkhead_proto::cri;
use serde_json::{Map, Value, json};

use super::pod::NetworkRequest;

/// Bits per second of a pod may be limited by these annotations, as kubelet passes them.
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// Largest burst that the bandwidth plugin takes, in bits.
const BURST: u64 = i32::MAX as u64;

/// Something in the request cannot be told to plugins.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CapabilityError {
    /// It would change the meaning of CNI_ARGS.
    #[error(
        "pod sandbox {id}: {field} {value:?} cannot be passed to CNI plugins: it has a ';', '=' or control character"
    )]
    Argument {
        /// The pod sandbox.
        id: String,
        /// The request's field.
        field: &'static str,
        /// Its value.
        value: String,
    },
    /// No quantity.
    #[error("pod sandbox {id}: annotation {name}={value:?} is no bandwidth; write bits per second such as \"10M\"")]
    Bandwidth {
        /// The pod sandbox.
        id: String,
        /// The annotation.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// No port or protocol.
    #[error("pod sandbox {id}: port mapping {mapping} is not valid: ports are 1 to 65535, protocols TCP, UDP and SCTP")]
    Port {
        /// The pod sandbox.
        id: String,
        /// As text.
        mapping: String,
    },
}

/// CNI_ARGS, with the names that Kubernetes' runtimes share.
///
/// # Errors
/// When a value would change the meaning of the others.
pub fn arguments(request: &NetworkRequest) -> Result<String, CapabilityError> {
    let values = [
        ("pod namespace", "K8S_POD_NAMESPACE", &request.pod_namespace),
        ("pod name", "K8S_POD_NAME", &request.pod_name),
        ("id", "K8S_POD_INFRA_CONTAINER_ID", &request.sandbox_id),
        ("pod uid", "K8S_POD_UID", &request.pod_uid),
    ];
    let mut text = "IgnoreUnknown=1".to_owned();
    for (field, name, value) in values {
        if value.contains(|c: char| c == ';' || c == '=' || c.is_control()) {
            return Err(CapabilityError::Argument { id: request.sandbox_id.clone(), field, value: value.clone() });
        }
        text.push_str(&format!(";{name}={value}"));
    }
    Ok(text)
}

/// Values by capability; a plugin gets those that it declares.
///
/// # Errors
/// When an annotation or a port mapping makes no sense.
pub fn values(request: &NetworkRequest) -> Result<Map<String, Value>, CapabilityError> {
    let mut values = Map::new();
    let ports = host_ports(request)?;
    if !ports.is_empty() {
        values.insert("portMappings".to_owned(), Value::Array(ports));
    }
    if let Some(bandwidth) = bandwidth(request)? {
        values.insert("bandwidth".to_owned(), bandwidth);
    }
    if !request.annotations.is_empty() {
        values.insert("io.kubernetes.cri.pod-annotations".to_owned(), json!(sorted(&request.annotations)));
    }
    Ok(values)
}

fn sorted(map: &HashMap<String, String>) -> std::collections::BTreeMap<&String, &String> {
    map.iter().collect()
}

fn host_ports(request: &NetworkRequest) -> Result<Vec<Value>, CapabilityError> {
    let wanted = request.port_mappings.iter().filter(|mapping| mapping.host_port != 0);
    wanted.map(|mapping| host_port(&request.sandbox_id, mapping)).collect()
}

fn host_port(id: &str, mapping: &cri::PortMapping) -> Result<Value, CapabilityError> {
    let wrong = || {
        let text =
            format!("{}:{} -> {} ({})", mapping.host_ip, mapping.host_port, mapping.container_port, mapping.protocol);
        CapabilityError::Port { id: id.to_owned(), mapping: text }
    };
    let port = |number: i32| u16::try_from(number).ok().filter(|port| *port > 0).ok_or_else(wrong);
    let protocol = match mapping.protocol {
        0 => "tcp",
        1 => "udp",
        2 => "sctp",
        _ => return Err(wrong()),
    };
    let mut value = json!({
        "hostPort": port(mapping.host_port)?,
        "containerPort": port(mapping.container_port)?,
        "protocol": protocol,
    });
    if !mapping.host_ip.is_empty() {
        value["hostIP"] = json!(mapping.host_ip);
    }
    Ok(value)
}

fn bandwidth(request: &NetworkRequest) -> Result<Option<Value>, CapabilityError> {
    let rate = |name: &'static str| match request.annotations.get(name) {
        None => Ok(None),
        Some(text) => quantity(text).map(Some).ok_or_else(|| CapabilityError::Bandwidth {
            id: request.sandbox_id.clone(),
            name,
            value: text.clone(),
        }),
    };
    let (ingress, egress) = (rate(INGRESS)?, rate(EGRESS)?);
    if ingress.is_none() && egress.is_none() {
        return Ok(None);
    }
    let mut value = Map::new();
    for (rate, rate_key, burst_key) in [(ingress, "ingressRate", "ingressBurst"), (egress, "egressRate", "egressBurst")]
    {
        if let Some(rate) = rate {
            value.insert(rate_key.to_owned(), json!(rate));
            value.insert(burst_key.to_owned(), json!(BURST));
        }
    }
    Ok(Some(Value::Object(value)))
}

// The whole-number part of Kubernetes' quantities.
fn quantity(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor).filter(|rate| *rate > 0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn request() -> NetworkRequest {
        NetworkRequest {
            sandbox_id: "s1".into(),
            pod_name: "web".into(),
            pod_namespace: "default".into(),
            pod_uid: "u-1".into(),
            ..NetworkRequest::default()
        }
    }

    #[test]
    fn arguments_name_the_pod() {
        assert_eq!(
            arguments(&request()).unwrap(),
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=s1;K8S_POD_UID=u-1"
        );
        let forged = NetworkRequest { pod_name: "a;K8S_POD_UID=other".into(), ..request() };
        assert!(arguments(&forged).unwrap_err().to_string().contains("pod name"));
    }

    #[test]
    fn ports_and_bandwidth_become_capabilities() {
        let mut request = request();
        request.port_mappings = vec![
            cri::PortMapping { container_port: 80, host_port: 8080, ..Default::default() },
            cri::PortMapping { container_port: 81, ..Default::default() },
        ];
        request.annotations.insert(INGRESS.to_owned(), "10M".to_owned());
        let values = values(&request).unwrap();
        assert_eq!(values["portMappings"], json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]));
        assert_eq!(values["bandwidth"], json!({"ingressRate": 10_000_000, "ingressBurst": 2_147_483_647}));
    }

    #[test]
    fn nonsense_is_refused() {
        let mut request = request();
        request.annotations.insert(EGRESS.to_owned(), "fast".to_owned());
        assert!(values(&request).unwrap_err().to_string().contains("\"fast\" is no bandwidth"));
        request.annotations.clear();
        request.port_mappings = vec![cri::PortMapping { container_port: 70_000, host_port: 1, ..Default::default() }];
        assert!(values(&request).unwrap_err().to_string().contains("70000"));
        assert_eq!(quantity("18446744073709551615G"), None);
        assert_eq!(quantity("1Mi"), Some(1 << 20));
    }
}
