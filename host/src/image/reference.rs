//! Image names: `[registry/]repository[:tag][@digest]`, with Docker's short forms made whole.

use std::fmt;

use super::digest::{Digest, DigestError};

const DEFAULT_REGISTRY: &str = "docker.io";
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// A complete image name. At least one of tag and digest is there; the digest decides when both are.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is no image name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid image reference {text:?}: {reason}")]
pub struct ReferenceError {
    /// What was given, shortened.
    pub text: String,
    /// What is wrong with it.
    pub reason: InvalidReference,
}

/// What is wrong with a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidReference {
    /// Nothing there.
    #[error("it is empty")]
    Empty,
    /// Over 255 bytes before tag and digest.
    #[error("the name is {0} bytes long, {MAX_NAME} are allowed")]
    TooLong(usize),
    /// Docker and OCI allow lower case alone.
    #[error("repository {0:?} has upper-case letters: repository names are lower case")]
    Uppercase(String),
    /// A part between slashes breaks the grammar.
    #[error(
        "repository part {0:?} must be lower-case letters and digits, with single '.', '_', '__' or dashes between them"
    )]
    Component(String),
    /// The registry's name or port.
    #[error("registry {0:?} is no host[:port]")]
    Registry(String),
    /// Characters or length of the tag.
    #[error("tag {0:?} must be at most {MAX_TAG} letters, digits, '_', '.' and '-', and not begin with '.' or '-'")]
    Tag(String),
    /// After the '@'.
    #[error("{0}")]
    Digest(#[from] DigestError),
    /// 64 digits are an id.
    #[error("it is an image id, and ids cannot be pulled: give a name")]
    Id,
}

impl Reference {
    /// Parses `text`; a name without tag and digest gets `:latest`.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        Self::parse_parts(text).map_err(|reason| ReferenceError { text: text.chars().take(300).collect(), reason })
    }

    fn parse_parts(text: &str) -> Result<Self, InvalidReference> {
        if text.is_empty() {
            return Err(InvalidReference::Empty);
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse()?)),
            None => (text, None),
        };
        let (name, tag) = match rest.rfind(':') {
            Some(colon) if !rest[colon..].contains('/') => (&rest[..colon], Some(&rest[colon + 1..])),
            _ => (rest, None),
        };
        if name.is_empty() {
            return Err(InvalidReference::Empty);
        }
        if name.len() > MAX_NAME {
            return Err(InvalidReference::TooLong(name.len()));
        }
        if tag.is_none() && digest.is_none() && Digest::from_hex(name).is_ok() {
            return Err(InvalidReference::Id);
        }
        let (registry, repository) = split_registry(name);
        check_registry(registry)?;
        let repository = match (registry, repository.contains('/')) {
            (DEFAULT_REGISTRY, false) => format!("library/{repository}"),
            _ => repository.to_owned(),
        };
        check_repository(&repository)?;
        let tag = match (tag, digest) {
            (Some(tag), _) => Some(checked_tag(tag)?),
            (None, None) => Some("latest".to_owned()),
            (None, Some(_)) => None,
        };
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }

    /// Whether a name has no registry, so that it is the configuration's to say which one is meant.
    #[must_use]
    pub fn is_short(text: &str) -> bool {
        let (name, _) = Self::split_suffix(text);
        !name.split_once('/').is_some_and(|(first, _)| is_registry(first))
    }

    /// The name, and `[:tag][@digest]` behind it.
    #[must_use]
    pub fn split_suffix(text: &str) -> (&str, &str) {
        let name = text.split('@').next().unwrap_or_default();
        let name = match name.rfind(':') {
            Some(colon) if !name[colon..].contains('/') => &name[..colon],
            _ => name,
        };
        text.split_at(name.len())
    }

    /// Whether `text` can be a repository.
    pub(crate) fn is_repository(text: &str) -> bool {
        check_repository(text).is_ok()
    }

    /// `host[:port]`; `docker.io` for short names.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Without the registry: `library/busybox`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The digest asked for.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// `registry/repository`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// `registry/repository:tag`, unless a digest decides what is meant.
    #[must_use]
    pub fn repo_tag(&self) -> Option<String> {
        match (&self.tag, self.digest) {
            (Some(tag), None) => Some(format!("{}:{tag}", self.name())),
            _ => None,
        }
    }

    /// `registry/repository@digest` for a digest of this repository.
    #[must_use]
    pub fn repo_digest(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.name())
    }

    /// What the registry's manifest endpoint is asked for.
    #[must_use]
    pub fn manifest_name(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// The first part is a registry if it can be no repository: a dot, a port, or `localhost`.
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some(("index.docker.io", rest)) => (DEFAULT_REGISTRY, rest),
        Some((first, rest)) if is_registry(first) => (first, rest),
        _ => (DEFAULT_REGISTRY, name),
    }
}

fn is_registry(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':'])
}

/// Whether `text` is `host`, `host:port` or `[v6]:port`.
pub(crate) fn check_registry(text: &str) -> Result<(), InvalidReference> {
    let wrong = || InvalidReference::Registry(text.to_owned());
    let (host, port) = match (text.strip_prefix('['), text.rsplit_once(':')) {
        (Some(v6), _) => {
            let (address, rest) = v6.split_once(']').ok_or_else(wrong)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
            (None, if rest.is_empty() { None } else { Some(rest.strip_prefix(':').ok_or_else(wrong)?) })
        }
        (None, Some((host, port))) => (Some(host), Some(port)),
        (None, None) => (Some(text), None),
    };
    if let Some(host) = host {
        let label = |l: &str| {
            !l.is_empty()
                && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !l.starts_with('-')
                && !l.ends_with('-')
        };
        if !host.split('.').all(label) {
            return Err(wrong());
        }
    }
    match port {
        Some(port) if !port.bytes().all(|b| b.is_ascii_digit()) || !port.parse::<u16>().is_ok_and(|p| p > 0) => {
            Err(wrong())
        }
        _ => Ok(()),
    }
}

fn check_repository(repository: &str) -> Result<(), InvalidReference> {
    if repository.contains(|c: char| c.is_uppercase()) {
        return Err(InvalidReference::Uppercase(repository.to_owned()));
    }
    match repository.split('/').find(|part| !is_component(part)) {
        Some(part) => Err(InvalidReference::Component(part.to_owned())),
        None => Ok(()),
    }
}

/// `[a-z0-9]+` joined by `.`, `_`, `__` or any number of dashes.
fn is_component(part: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    alphanumeric(*first)
        && alphanumeric(*last)
        && bytes
            .split(|b| alphanumeric(*b))
            .all(|gap| matches!(gap, b"" | b"." | b"_" | b"__") || gap.iter().all(|b| *b == b'-'))
}

fn checked_tag(tag: &str) -> Result<String, InvalidReference> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let fits = tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'));
    if fits { Ok(tag.to_owned()) } else { Err(InvalidReference::Tag(tag.chars().take(MAX_TAG + 1).collect())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_parses_reads_the_same_again(text in "[a-zA-Z0-9.:/@_\\[\\]-]{0,60}|.{0,40}") {
            if let Ok(reference) = Reference::parse(&text) {
                let again = Reference::parse(&reference.to_string()).unwrap();
                prop_assert_eq!(again, reference);
            }
        }
    }

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn whole(text: &str) -> String {
        Reference::parse(text).unwrap().to_string()
    }

    #[test]
    fn short_names_become_whole() {
        assert_eq!(whole("busybox"), "docker.io/library/busybox:latest");
        assert_eq!(whole("index.docker.io/busybox:1"), "docker.io/library/busybox:1");
        assert_eq!(whole("user/app"), "docker.io/user/app:latest");
        assert_eq!(whole("localhost/app"), "localhost/app:latest");
        assert_eq!(whole("localhost:5000/x:tag"), "localhost:5000/x:tag");
        assert_eq!(whole("[::1]:5000/x"), "[::1]:5000/x:latest");
        assert_eq!(whole("registry.k8s.io/a/b__c-d.e:v1.2_3"), "registry.k8s.io/a/b__c-d.e:v1.2_3");
    }

    #[test]
    fn names_without_registry_are_short() {
        for short in ["busybox", "busybox:1", "user/app@sha256:0", "host/x"] {
            assert!(Reference::is_short(short), "{short}");
        }
        for whole in ["a.org/x", "localhost/x", "host:5000/x:1", "docker.io/x"] {
            assert!(!Reference::is_short(whole), "{whole}");
        }
        assert_eq!(Reference::split_suffix("h:5/x:1@d:2"), ("h:5/x", ":1@d:2"));
        assert_eq!(Reference::split_suffix("h:5/x"), ("h:5/x", ""));
    }

    #[test]
    fn a_digest_decides_over_a_tag() {
        let both = Reference::parse(&format!("busybox:1@{D}")).unwrap();
        assert_eq!(both.to_string(), format!("docker.io/library/busybox:1@{D}"));
        assert_eq!(both.manifest_name(), D);
        assert_eq!(both.repo_tag(), None);
        assert_eq!(whole(&format!("busybox@{D}")), format!("docker.io/library/busybox@{D}"));
    }

    #[test]
    fn refuses_with_the_reason() {
        let why = |text: &str| Reference::parse(text).unwrap_err().to_string();
        assert!(why("").ends_with("it is empty"));
        assert!(why("user/Busybox").contains("\"user/Busybox\" has upper-case letters"), "{}", why("user/Busybox"));
        assert!(why("User/busybox").contains("upper-case letters"));
        assert!(why("a//b").contains("repository part \"\""));
        assert!(why("a..b").contains("repository part \"a..b\""));
        assert!(why("../../etc/passwd").contains("registry \"..\""));
        assert!(why("host:port/x").contains("registry \"host:port\""));
        assert!(why("host:0/x").contains("registry \"host:0\""));
        assert!(why("x:").contains("tag \"\""));
        assert!(why(&format!("x:{}", "a".repeat(129))).contains("tag \"aaa"));
        assert!(why("x@md5:00").contains("\"md5\" is not supported"));
        assert!(why(&D[7..]).contains("image id"));
        assert!(why(&"a".repeat(300)).contains("300 bytes long"));
    }
}
