//! Names and registries: for a name, which images it may mean; for an image, which hosts serve it, in which order, with
//! which TLS.
//!
//! ```text
//! name -> short_name -> Reference -> conf   registries.conf: blocked, rewritten, mirrors
//!                                 -> hosts  containerd's hosts.toml of each of these hosts
//!                                 -> certs  certs.d and the files that hosts.toml names
//!                                 => Source, Source, ...
//! ```

mod certs;
pub(crate) mod conf;
pub(crate) mod hosts;
mod short_name;
mod source;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use super::config::ImageStoreConfig;
use super::reference::{Reference, ReferenceError};
use super::registry::Endpoint;
use conf::Conf;
use hosts::{Host, HostsFile};
pub use short_name::NameError;
pub(crate) use source::{Scheme, Source, Tls};

const DEFAULT_CONF: &str = "/etc/containers/registries.conf";

/// Why registries.conf or a drop-in of it cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("registries configuration {}: {reason}", .path.display())]
pub struct ConfError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub reason: String,
}

/// Why nobody can be asked for an image.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    /// `blocked = true`
    #[error("registry {prefix} is blocked in registries.conf")]
    Blocked {
        /// Of its entry.
        prefix: String,
    },
    /// A rewritten name is none.
    #[error("registries.conf makes {name:?} of it, which names no repository")]
    Rewritten {
        /// The outcome.
        name: String,
    },
    /// Certificates and `hosts.toml`.
    #[error("{}: {reason}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl SourceError {
    fn file(path: &Path, reason: impl ToString) -> Self {
        Self::File { path: path.to_owned(), reason: reason.to_string() }
    }
}

/// What the configuration says of names and registries.
#[derive(Debug)]
pub(crate) struct Registries {
    conf: Conf,
    plain_http: Vec<String>,
    certs_dirs: Vec<PathBuf>,
    hosts_dir: PathBuf,
}

impl Registries {
    /// Reads registries.conf and its drop-ins. Blocks on the disk.
    pub fn load(config: &ImageStoreConfig) -> Result<Self, ConfError> {
        let named = !config.registries_conf.as_os_str().is_empty();
        let main = if named { config.registries_conf.as_path() } else { Path::new(DEFAULT_CONF) };
        let mut conf = if named || main.exists() { read(main)? } else { Conf::default() };
        for path in drop_ins(main)? {
            conf.merge(read(&path)?);
        }
        // What the daemon's own configuration says is said last.
        conf.merge(Conf { registry: config.registry.iter().map(Into::into).collect(), ..Conf::default() });
        Ok(Self {
            conf,
            plain_http: config.plain_http.clone(),
            certs_dirs: config.certs_dirs.clone(),
            hosts_dir: config.hosts_dir.clone(),
        })
    }

    /// `credential-helpers`
    pub fn credential_helpers(&self) -> Option<Vec<String>> {
        self.conf.credential_helpers.clone()
    }

    /// The images that a pull of `name` tries, in order; never none.
    pub fn to_pull(&self, name: &str) -> Result<Vec<Reference>, NameError> {
        short_name::to_pull(&self.conf, name)
    }

    /// The images that `name` may mean, most likely first.
    pub fn candidates(&self, name: &str) -> Result<Vec<Reference>, ReferenceError> {
        short_name::candidates(&self.conf, name)
    }

    /// Who serves an image, in the order of asking; never none. Reads certificates, so it blocks on the disk.
    pub fn sources(&self, reference: &Reference) -> Result<Vec<Source>, SourceError> {
        let name = reference.to_string();
        let mut sources = Vec::new();
        match self.conf.find(&name) {
            None => self.add(&mut sources, reference.registry(), reference.repository(), false)?,
            Some((registry, _)) if registry.blocked => {
                return Err(SourceError::Blocked { prefix: registry.prefix.clone() });
            }
            Some((registry, covered)) => {
                let rest = &name[covered..];
                for mirror in registry.mirrors(reference.digest().is_some()) {
                    let (host, repository) = rewrite(&mirror.location, rest)?;
                    self.add(&mut sources, &host, &repository, mirror.insecure)?;
                }
                let (host, repository) = match registry.location.as_str() {
                    "" => (reference.registry().to_owned(), reference.repository().to_owned()),
                    location => rewrite(location, rest)?,
                };
                self.add(&mut sources, &host, &repository, registry.insecure)?;
            }
        }
        Ok(sources)
    }

    /// Adds a host, or those that its `hosts.toml` names instead.
    fn add(&self, to: &mut Vec<Source>, host: &str, repository: &str, insecure: bool) -> Result<(), SourceError> {
        let Some((folder, file)) = self.hosts_file(host)? else {
            to.push(self.source(host, repository, insecure)?);
            return Ok(());
        };
        for entry in &file.hosts {
            // What registries.conf allows one host says nothing of another.
            let mut source = self.source(&entry.host, repository, insecure && entry.host == host)?;
            apply(&mut source, entry, &folder)?;
            source.namespace = (entry.host != host).then(|| host.to_owned());
            to.push(source);
        }
        let named = !file.server.host.is_empty();
        let server = if named { &file.server.host } else { host };
        let mut source = self.source(server, repository, insecure && server == host)?;
        apply(&mut source, &file.server, &folder)?;
        if !named {
            certs::add_folder(&mut source.tls, &folder)?;
        }
        to.push(source);
        Ok(())
    }

    /// The folder of a registry in containerd's tree, and what it says.
    fn hosts_file(&self, host: &str) -> Result<Option<(PathBuf, HostsFile)>, SourceError> {
        if self.hosts_dir.as_os_str().is_empty() {
            return Ok(None);
        }
        let Some(folder) = hosts::folders(&self.hosts_dir, host).into_iter().find(|folder| folder.is_dir()) else {
            return Ok(None);
        };
        let path = folder.join("hosts.toml");
        let file = match std::fs::read_to_string(&path) {
            Ok(text) => HostsFile::parse(&text, &folder).map_err(|reason| SourceError::file(&path, reason))?,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                HostsFile::parse("", &folder).map_err(|reason| SourceError::file(&path, reason))?
            }
            Err(error) => return Err(SourceError::file(&path, error)),
        };
        Ok(Some((folder, file)))
    }

    /// A host as it is without a `hosts.toml`.
    fn source(&self, host: &str, repository: &str, insecure: bool) -> Result<Source, SourceError> {
        let endpoint = Endpoint::new(host, repository);
        let scheme = if self.plain_http.iter().any(|plain| plain == host) {
            Scheme::Http
        } else if insecure || endpoint.is_loopback() {
            Scheme::Either
        } else {
            Scheme::Https
        };
        let mut tls = Tls { skip_verify: insecure, ..Tls::default() };
        for folder in &self.certs_dirs {
            certs::add_folder(&mut tls, &folder.join(host))?;
        }
        Ok(Source {
            endpoint,
            scheme,
            tls,
            api: "/v2".into(),
            namespace: None,
            resolve: true,
            pull: true,
            headers: HeaderMap::new(),
            registry: host.to_owned(),
        })
    }
}

/// What a host's table in a `hosts.toml` says of it.
fn apply(source: &mut Source, host: &Host, folder: &Path) -> Result<(), SourceError> {
    match host.tls {
        Some(true) => source.scheme = Scheme::Https,
        Some(false) => source.scheme = Scheme::Http,
        None => {}
    }
    source.api.clone_from(&host.api);
    (source.resolve, source.pull) = (host.resolve, host.pull);
    source.tls.skip_verify |= host.skip_verify;
    for path in &host.ca {
        certs::add_authority(&mut source.tls, path)?;
    }
    for (certificate, key) in &host.client {
        certs::add_client(&mut source.tls, certificate, key.as_deref())?;
    }
    for (name, value) in &host.headers {
        let wrong = || SourceError::file(&folder.join("hosts.toml"), format!("header {name:?} cannot be sent"));
        let mut value = HeaderValue::from_str(value).map_err(|_| wrong())?;
        value.set_sensitive(true);
        source.headers.append(HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?, value);
    }
    Ok(())
}

/// `location` in the place of a prefix, split into host and repository.
fn rewrite(location: &str, rest: &str) -> Result<(String, String), SourceError> {
    let name = format!("{location}{rest}");
    let (whole, _) = Reference::split_suffix(&name);
    match whole.split_once('/') {
        Some((host, repository)) if Reference::is_repository(repository) => {
            Ok((host.to_owned(), repository.to_owned()))
        }
        _ => Err(SourceError::Rewritten { name }),
    }
}

fn read(path: &Path) -> Result<Conf, ConfError> {
    let failed = |reason: String| ConfError { path: path.to_owned(), reason };
    let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    let conf = Conf::parse(&text).map_err(failed)?;
    for key in conf.unknown() {
        tracing::warn!(file = %path.display(), key, "the registries configuration has a key that means nothing here");
    }
    Ok(conf)
}

/// `registries.conf.d/*.conf` beside the file, in lexical order.
fn drop_ins(main: &Path) -> Result<Vec<PathBuf>, ConfError> {
    let mut folder = main.as_os_str().to_owned();
    folder.push(".d");
    let folder = PathBuf::from(folder);
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(ConfError { path: folder, reason: error.to_string() }),
    };
    let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let mut paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|e| e == "conf")).collect();
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::config::RegistryRule;

    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn write(&self, name: &str, text: &str) {
            let path = self.0.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }

        fn config(&self) -> ImageStoreConfig {
            ImageStoreConfig {
                registries_conf: self.0.path().join("registries.conf"),
                hosts_dir: self.0.path().join("hosts"),
                certs_dirs: vec![self.0.path().join("certs")],
                ..ImageStoreConfig::default()
            }
        }

        fn load(&self) -> Registries {
            Registries::load(&self.config()).unwrap()
        }
    }

    fn urls(registries: &Registries, name: &str) -> Vec<String> {
        let sources = registries.sources(&Reference::parse(name).unwrap()).unwrap();
        let url = |s: &Source| format!("{:?} {}{}/{}", s.scheme, s.endpoint.host, s.api, s.endpoint.repository);
        sources.iter().map(url).collect()
    }

    #[test]
    fn rules_of_the_daemons_own_configuration() {
        let tree = Tree::new();
        tree.write("registries.conf", "");
        let rule = |prefix: &str, location: &str| RegistryRule { prefix: prefix.into(), location: location.into() };
        let registry = vec![
            rule("registry.k8s.io", "127.0.0.1:5000/k8s"),
            rule("registry.k8s.io/e2e", "[::1]:80/"),
            rule("docker.io/library", "mirror:1/hub"),
        ];
        let config = ImageStoreConfig { registry, plain_http: vec!["mirror:1".into()], ..tree.config() };
        let registries = Registries::load(&config).unwrap();
        assert_eq!(urls(&registries, "registry.k8s.io/pause"), ["Either 127.0.0.1:5000/v2/k8s/pause"]);
        assert_eq!(urls(&registries, "registry.k8s.io/e2e/x"), ["Either [::1]:80/v2/x"]);
        assert_eq!(urls(&registries, "registry.k8s.io/e2e2/x"), ["Either 127.0.0.1:5000/v2/k8s/e2e2/x"]);
        assert_eq!(urls(&registries, "busybox"), ["Http mirror:1/v2/hub/busybox"]);
        assert_eq!(urls(&registries, "user/app"), ["Https registry-1.docker.io/v2/user/app"]);
    }

    #[test]
    fn mirrors_rewriting_and_blocks() {
        let tree = Tree::new();
        tree.write(
            "registries.conf",
            "[[registry]]\nlocation = \"a.org\"\n[[registry.mirror]]\nlocation = \"m.org/a\"\ninsecure = true\n",
        );
        tree.write("registries.conf.d/10.conf", "[[registry]]\nprefix = \"*.bad.org\"\nblocked = true\n");
        tree.write("registries.conf.d/20.conf", "[[registry]]\nprefix = \"*.old.org\"\nlocation = \"new.org\"\n");
        tree.write("registries.conf.d/not-read", "[[[");
        let registries = tree.load();
        assert_eq!(urls(&registries, "a.org/x/y:1"), ["Either m.org/v2/a/x/y", "Https a.org/v2/x/y"]);
        assert_eq!(urls(&registries, "x.old.org/y:1"), ["Https new.org/v2/y"]);
        let blocked = registries.sources(&Reference::parse("x.bad.org/y").unwrap()).unwrap_err();
        assert!(blocked.to_string().contains("*.bad.org is blocked"), "{blocked}");
    }

    #[test]
    fn hosts_of_containerd() {
        let tree = Tree::new();
        tree.write("registries.conf", "");
        tree.write(
            "hosts/docker.io/hosts.toml",
            "[host.\"http://127.0.0.1:1/mirror\"]\ncapabilities = [\"pull\"]\n\
             [host.\"http://127.0.0.1:1/mirror\".header]\nx-team = \"one\"\n",
        );
        tree.write("hosts/_default/hosts.toml", "server = \"https://fallback.org\"\n");
        let registries = tree.load();
        let sources = registries.sources(&Reference::parse("busybox").unwrap()).unwrap();
        assert_eq!(sources.len(), 2);
        assert_eq!((sources[0].resolve, sources[0].pull, sources[0].api.as_str()), (false, true, "/mirror/v2"));
        assert_eq!(sources[0].namespace.as_deref(), Some("docker.io"));
        assert_eq!(sources[0].headers["x-team"], "one");
        assert_eq!(sources[1].endpoint.host, "registry-1.docker.io");
        assert_eq!(urls(&registries, "b.org/x"), ["Https fallback.org/v2/x"]);
        tree.write("hosts/c.org/hosts.toml", "ca = \"absent.crt\"\n");
        let error = registries.sources(&Reference::parse("c.org/x").unwrap()).unwrap_err().to_string();
        assert!(error.contains("hosts/c.org/absent.crt"), "{error}");
    }

    #[test]
    fn certificates_are_checked() {
        let tree = Tree::new();
        tree.write("registries.conf", "");
        tree.write("certs/a.org/ca.crt", "none");
        tree.write("certs/b.org/client.cert", "none");
        tree.write("certs/c.org/client.key", "none");
        let registries = tree.load();
        let why = |name| registries.sources(&Reference::parse(name).unwrap()).unwrap_err().to_string();
        assert!(why("a.org/x").contains("a.org/ca.crt: it holds no PEM certificate"), "{}", why("a.org/x"));
        assert!(why("b.org/x").contains("b.org/client.key: it is missing"));
        assert!(why("c.org/x").contains("no certificate (.cert)"));
    }

    #[test]
    fn a_file_that_is_named_must_be_there_and_sound() {
        let tree = Tree::new();
        let absent = Registries::load(&tree.config()).unwrap_err().to_string();
        assert!(absent.contains("registries.conf: No such file"), "{absent}");
        tree.write("registries.conf", "");
        tree.write("registries.conf.d/x.conf", "short-name-mode = 1");
        let wrong = Registries::load(&tree.config()).unwrap_err().to_string();
        assert!(wrong.contains("x.conf") && wrong.contains("short-name-mode"), "{wrong}");
    }
}
