//! Which host serves a name: rules of the configuration, then Docker Hub's own address.

use crate::image::config::RegistryRule;
use crate::image::reference::Reference;

/// A host and the repository on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// `host[:port]`
    pub host: String,
    /// Path below `/v2/`.
    pub repository: String,
}

impl Endpoint {
    /// Where `reference` is fetched from.
    pub fn of(reference: &Reference, rules: &[RegistryRule]) -> Self {
        let name = reference.name();
        let rule = rules
            .iter()
            .filter_map(|rule| {
                let rest = name.strip_prefix(rule.prefix.trim_end_matches('/'))?;
                (rest.is_empty() || rest.starts_with('/')).then_some((rule, rest))
            })
            .max_by_key(|(rule, _)| rule.prefix.len());
        let name = match rule {
            Some((rule, rest)) => format!("{}{rest}", rule.location.trim_end_matches('/')),
            None => name,
        };
        let (host, repository) = name.split_once('/').unwrap_or((&name, ""));
        let host = if host == "docker.io" { "registry-1.docker.io" } else { host };
        Self { host: host.to_owned(), repository: repository.to_owned() }
    }

    /// Whether the host is this machine: `localhost`, 127.0.0.0/8 or `[::1]`.
    pub fn is_loopback(&self) -> bool {
        let host = match self.host.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
            _ => &self.host,
        };
        let address = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || address.parse::<std::net::IpAddr>().is_ok_and(|a| a.is_loopback())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(name: &str, rules: &[(&str, &str)]) -> (String, String) {
        let rules: Vec<_> = rules
            .iter()
            .map(|(prefix, location)| RegistryRule { prefix: (*prefix).into(), location: (*location).into() })
            .collect();
        let endpoint = Endpoint::of(&Reference::parse(name).unwrap(), &rules);
        (endpoint.host, endpoint.repository)
    }

    #[test]
    fn longest_prefix_wins_at_path_boundaries() {
        let rules = [("registry.k8s.io", "127.0.0.1:5000/k8s"), ("registry.k8s.io/e2e", "[::1]:80/")];
        assert_eq!(at("registry.k8s.io/pause", &rules), ("127.0.0.1:5000".into(), "k8s/pause".into()));
        assert_eq!(at("registry.k8s.io/e2e/x", &rules), ("[::1]:80".into(), "x".into()));
        assert_eq!(at("registry.k8s.io/e2e2/x", &rules).1, "k8s/e2e2/x");
        assert_eq!(at("busybox", &rules), ("registry-1.docker.io".into(), "library/busybox".into()));
        assert_eq!(at("busybox", &[("docker.io/library", "mirror:1/hub")]), ("mirror:1".into(), "hub/busybox".into()));
    }

    #[test]
    fn knows_this_machine() {
        let local = |host: &str| Endpoint { host: host.into(), repository: String::new() }.is_loopback();
        assert!(
            local("localhost")
                && local("localhost:5000")
                && local("127.0.0.1:1")
                && local("127.9.9.9")
                && local("[::1]:5")
        );
        assert!(!local("localhost.evil.com") && !local("127.0.0.1.evil.com") && !local("10.0.0.1:5000"));
    }
}
