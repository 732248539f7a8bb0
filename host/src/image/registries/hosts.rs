//! containerd's `hosts.toml`: which hosts serve a registry's images, in which order, with which TLS and headers.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// What a `hosts.toml` says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct HostsFile {
    /// In the file's order.
    pub hosts: Vec<Host>,
    /// Asked last; without a URL the registry's own address.
    pub server: Host,
}

/// One host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Host {
    /// `http` or `https`; none: as usual for the host.
    pub tls: Option<bool>,
    /// `host[:port]`; empty in a `server` that is not given.
    pub host: String,
    /// The path of its API: `/v2` behind the URL's path, or that path alone with `override_path`.
    pub api: String,
    /// May say which digest a tag has.
    pub resolve: bool,
    /// May send what has a digest.
    pub pull: bool,
    /// PEM files of certificate authorities, beside the system's.
    pub ca: Vec<PathBuf>,
    /// PEM files: certificates, and their keys unless they are in the same file.
    pub client: Vec<(PathBuf, Option<PathBuf>)>,
    /// Any certificate will do.
    pub skip_verify: bool,
    /// Sent with each request.
    pub headers: Vec<(String, String)>,
}

/// One host's table, and the top of the file.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Table {
    server: Option<String>,
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMore>,
    client: Option<toml::Value>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    override_path: bool,
    #[serde(default)]
    header: toml::Table,
    /// Accepted, as the time limits of the image store hold for all hosts.
    #[serde(rename = "dial_timeout")]
    _dial_timeout: Option<String>,
    #[serde(default)]
    host: std::collections::BTreeMap<String, toml::Spanned<toml::Value>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl HostsFile {
    /// Reads a file's text; paths in it are relative to `directory`. The reason if it cannot be used.
    pub fn parse(text: &str, directory: &Path) -> Result<Self, String> {
        let mut top: Table = toml::from_str(text).map_err(|error| without_source(text, &error))?;
        let mut tables: Vec<_> = std::mem::take(&mut top.host).into_iter().collect();
        tables.sort_by_key(|(_, table)| table.span().start);
        let mut hosts = Vec::new();
        for (url, table) in tables {
            let at = |reason: &dyn std::fmt::Display| format!("[host.{url:?}]: {reason}");
            let table: Table = table.into_inner().try_into().map_err(|error: toml::de::Error| at(&error.message()))?;
            if !table.host.is_empty() || table.server.is_some() {
                return Err(at(&"a host holds no `host` and no `server`"));
            }
            hosts.push(table.read(Some(&url), directory).map_err(|reason| at(&reason))?);
        }
        let server = top.server.take();
        let server = top.read(server.as_deref(), directory)?;
        Ok(Self { hosts, server })
    }
}

/// What is wrong, and in which line, but not the line itself: it may hold a secret.
fn without_source(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    format!("line {}: {}", before.matches('\n').count() + 1, error.message())
}

impl Table {
    fn read(self, url: Option<&str>, directory: &Path) -> Result<Host, String> {
        let (tls, host, path) = match url {
            Some(url) => parse_url(url)?,
            None => (None, String::new(), String::new()),
        };
        let api = if self.override_path && !path.is_empty() { path } else { with_v2(path) };
        let (mut resolve, mut pull) = (true, true);
        if let Some(capabilities) = &self.capabilities {
            if let Some(other) =
                capabilities.iter().find(|c| !["pull", "resolve", "push", "referrers"].contains(&c.as_str()))
            {
                return Err(format!("capability {other:?} is none of \"pull\", \"resolve\", \"push\", \"referrers\""));
            }
            resolve = capabilities.iter().any(|c| c == "resolve");
            pull = capabilities.iter().any(|c| c == "pull");
        }
        let ca = match self.ca {
            None => Vec::new(),
            Some(OneOrMore::One(path)) => vec![directory.join(path)],
            Some(OneOrMore::More(paths)) => paths.into_iter().map(|path| directory.join(path)).collect(),
        };
        let client = self.client.map_or(Ok(Vec::new()), |client| clients(client, directory))?;
        let mut headers = Vec::new();
        for (name, value) in self.header {
            match value {
                toml::Value::String(value) => headers.push((name, value)),
                toml::Value::Array(values) => {
                    for value in values {
                        let value =
                            value.as_str().ok_or_else(|| format!("header {name:?} holds something that is no text"))?;
                        headers.push((name.clone(), value.to_owned()));
                    }
                }
                _ => return Err(format!("header {name:?} is neither a text nor a list of them")),
            }
        }
        Ok(Host { tls, host, api, resolve, pull, ca, client, skip_verify: self.skip_verify, headers })
    }
}

/// containerd's three forms: "pair.pem", ["a.pem", "b.pem"], [["a.cert", "a.key"]].
fn clients(value: toml::Value, directory: &Path) -> Result<Vec<(PathBuf, Option<PathBuf>)>, String> {
    let wrong = || "client is a file, a list of files, or a list of [certificate, key]".to_owned();
    let path = |value: &toml::Value| value.as_str().map(|text| directory.join(text)).ok_or_else(wrong);
    let one = |value: &toml::Value| match value {
        toml::Value::Array(pair) => match pair.as_slice() {
            [certificate] => Ok((path(certificate)?, None)),
            [certificate, key] => {
                let key = key.as_str().filter(|key| !key.is_empty()).map(|key| directory.join(key));
                Ok((path(certificate)?, key))
            }
            _ => Err(wrong()),
        },
        single => Ok((path(single)?, None)),
    };
    match &value {
        toml::Value::Array(list) => list.iter().map(one).collect(),
        single => Ok(vec![one(single)?]),
    }
}

/// Scheme, `host[:port]` and path without a slash at its end.
fn parse_url(url: &str) -> Result<(Option<bool>, String, String), String> {
    let (tls, rest) = match url.split_once("://") {
        Some(("https", rest)) => (Some(true), rest),
        Some(("http", rest)) => (Some(false), rest),
        Some((scheme, _)) => return Err(format!("its address begins with {scheme:?}, but must with https or http")),
        None => (None, url),
    };
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    crate::image::reference::check_registry(host).map_err(|error| format!("its address: {error}"))?;
    if path.contains(['?', '#']) {
        return Err("its address has a query or a fragment".into());
    }
    Ok((tls, host.to_owned(), path.trim_end_matches('/').to_owned()))
}

fn with_v2(path: String) -> String {
    if path.ends_with("/v2") { path } else { path + "/v2" }
}

/// The folder of a registry in a tree, as containerd names it: `host:port`, `host_port_`, then `_default`.
pub(super) fn folders(tree: &Path, registry: &str) -> Vec<PathBuf> {
    let mut names = vec![registry.to_owned()];
    if let Some((host, port)) = registry.rsplit_once(':') {
        names.push(format!("{host}_{port}_"));
    }
    names.push("_default".into());
    names.into_iter().map(|name| tree.join(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<HostsFile, String> {
        HostsFile::parse(text, Path::new("/d"))
    }

    #[test]
    fn hosts_in_the_order_of_the_file() {
        let file = parse(
            r#"
            server = "https://registry-1.docker.io"
            ca = "top.crt"
            [host."https://z.example.com:5000/path"]
            capabilities = ["pull", "resolve"]
            ca = ["one.crt", "/abs/two.crt"]
            client = [["c.cert", "c.key"], ["pair.pem", ""]]
            [host."https://z.example.com:5000/path".header]
            x-one = "1"
            x-two = ["2", "3"]
            [host."http://a.example.com/v2/x"]
            capabilities = ["pull"]
            override_path = true
            skip_verify = true
            client = "pair.pem"
            "#,
        )
        .unwrap();
        let [z, a] = file.hosts.as_slice() else { panic!("{file:?}") };
        assert_eq!((z.tls, z.host.as_str(), z.api.as_str()), (Some(true), "z.example.com:5000", "/path/v2"));
        assert_eq!(z.ca, [Path::new("/d/one.crt"), Path::new("/abs/two.crt")]);
        assert_eq!(z.client, [("/d/c.cert".into(), Some("/d/c.key".into())), ("/d/pair.pem".into(), None)]);
        assert_eq!(z.headers.len(), 3);
        assert_eq!(
            (a.tls, a.api.as_str(), a.resolve, a.pull, a.skip_verify),
            (Some(false), "/v2/x", false, true, true)
        );
        assert_eq!((file.server.host.as_str(), file.server.api.as_str()), ("registry-1.docker.io", "/v2"));
        assert_eq!(file.server.ca, [Path::new("/d/top.crt")]);
        let empty = parse("").unwrap();
        assert!(empty.hosts.is_empty() && empty.server.host.is_empty() && empty.server.resolve);
    }

    #[test]
    fn refuses_with_the_reason() {
        let why = |text: &str| parse(text).unwrap_err();
        assert!(why("server = \"ftp://x\"").contains("ftp"));
        assert!(why("[host.\"https://a b\"]").contains("a b"));
        assert!(why("[host.\"https://a\"]\ncapabilities = [\"fly\"]").contains("fly"));
        assert!(why("[host.\"https://a\"]\nskip_verfy = true").contains("skip_verfy"));
        assert!(why("[host.\"https://a\".header]\nx = 1").contains("header"));
        assert!(why("[host.\"https://a\"]\nclient = 1").contains("client is a file"));
    }

    #[test]
    fn folders_as_containerd_names_them() {
        let names = folders(Path::new("/t"), "localhost:5000");
        assert_eq!(names, ["/t/localhost:5000", "/t/localhost_5000_", "/t/_default"].map(PathBuf::from));
    }
}
