//! What plugins answer to ADD, versions 0.3.0 to 1.1.0. The answer is kept as it came, because the next plugin gets it
//! as `prevResult`; only what the daemon needs is read from it.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The fields that the daemon reads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Interfaces on the node and in the pod.
    #[serde(default, deserialize_with = "or_empty")]
    pub interfaces: Vec<AnswerInterface>,
    /// The pod's addresses, the primary first.
    #[serde(default, deserialize_with = "or_empty")]
    pub ips: Vec<AnswerAddress>,
    /// What the network's DNS is, if plugins say.
    #[serde(default, deserialize_with = "or_empty")]
    pub dns: Dns,
}

/// An interface that plugins made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerInterface {
    /// Its name.
    pub name: String,
    /// The namespace's path; empty for the node's own.
    #[serde(default)]
    pub sandbox: String,
}

/// An address that plugins assigned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerAddress {
    /// With the network's prefix length.
    pub address: IpNet,
    /// Index into `interfaces`.
    #[serde(default)]
    pub interface: Option<usize>,
}

/// DNS as CNI and CRI both describe it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Addresses of servers.
    #[serde(default, rename = "nameservers", deserialize_with = "or_empty")]
    pub servers: Vec<String>,
    /// Search domains.
    #[serde(default, rename = "search", deserialize_with = "or_empty")]
    pub searches: Vec<String>,
    /// Options of resolv.conf.
    #[serde(default, deserialize_with = "or_empty")]
    pub options: Vec<String>,
}

// Go programs write null for what is empty.
fn or_empty<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Answer {
    /// Reads a plugin's answer.
    ///
    /// # Errors
    /// In words: which field is wrong.
    pub fn parse(value: &Value) -> Result<Self, String> {
        if !value.is_object() {
            return Err("its answer is no JSON object".to_owned());
        }
        Self::deserialize(value).map_err(|e| format!("its answer breaks the specification: {e}"))
    }

    /// Names of the interfaces in the pod, in order, without duplicates; `fallback` when plugins name none.
    #[must_use]
    pub fn pod_interfaces(&self, fallback: &str) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for interface in self.interfaces.iter().filter(|i| !i.sandbox.is_empty() && i.name != "lo") {
            if !names.contains(&interface.name) {
                names.push(interface.name.clone());
            }
        }
        if names.is_empty() {
            names.push(fallback.to_owned());
        }
        names
    }

    /// The pod's addresses, primary first.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.ips.iter().map(|ip| ip.address.addr()).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn answers_of_old_and_new_versions_are_read() {
        let old = json!({"cniVersion": "0.4.0", "interfaces": [{"name": "br0", "mac": "0a:00:00:00:00:01"},
            {"name": "eth0", "sandbox": "/run/n"}], "ips": [{"version": "4", "interface": 1, "address": "10.1.0.2/24"}],
            "dns": {"nameservers": null}, "routes": null});
        let answer = Answer::parse(&old).unwrap();
        assert_eq!(answer.pod_interfaces("eth9"), ["eth0"]);
        assert_eq!(answer.addresses(), ["10.1.0.2".parse::<IpAddr>().unwrap()]);
        let bare = Answer::parse(&json!({"cniVersion": "1.1.0", "ips": null})).unwrap();
        assert_eq!(bare.pod_interfaces("eth0"), ["eth0"]);
    }

    #[test]
    fn wrong_answers_are_told() {
        assert!(Answer::parse(&json!([])).unwrap_err().contains("no JSON object"));
        let error = Answer::parse(&json!({"ips": [{"address": "10.1.0.2/99"}]})).unwrap_err();
        assert!(error.contains("breaks the specification"), "{error}");
    }
}
