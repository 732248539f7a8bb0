//! What plugins are told beside their configuration: CNI_ARGS, and `runtimeConfig` by the capabilities they declare.

use std::collections::HashMap;

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

/// Values by capability; a plugin gets those that it declares. Never `portMappings`: host ports are the daemon's own.
///
/// # Errors
/// When an annotation makes no sense.
pub fn values(request: &NetworkRequest) -> Result<Map<String, Value>, CapabilityError> {
    let mut values = Map::new();
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
    fn bandwidth_becomes_a_capability_and_ports_do_not() {
        let mut request = request();
        request.port_mappings =
            vec![bulkhead_proto::cri::PortMapping { container_port: 80, host_port: 8080, ..Default::default() }];
        request.annotations.insert(INGRESS.to_owned(), "10M".to_owned());
        let values = values(&request).unwrap();
        assert!(!values.contains_key("portMappings"), "{values:?}");
        assert_eq!(values["bandwidth"], json!({"ingressRate": 10_000_000, "ingressBurst": 2_147_483_647}));
    }

    #[test]
    fn nonsense_is_refused() {
        let mut request = request();
        request.annotations.insert(EGRESS.to_owned(), "fast".to_owned());
        assert!(values(&request).unwrap_err().to_string().contains("\"fast\" is no bandwidth"));
        assert_eq!(quantity("18446744073709551615G"), None);
        assert_eq!(quantity("1Mi"), Some(1 << 20));
    }
}
