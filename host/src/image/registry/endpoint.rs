//! A host and a repository on it.

/// A host and the repository on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// `host[:port]`
    pub host: String,
    /// Path below `/v2/`.
    pub repository: String,
}

impl Endpoint {
    /// A repository on the host that a registry's name stands for: Docker Hub's own address differs from its name.
    pub fn new(registry: &str, repository: &str) -> Self {
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
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
