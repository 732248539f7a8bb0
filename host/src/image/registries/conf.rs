//! containers-registries.conf(5), version 2: what one file says, and how several files become one.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::image::reference::{Reference, check_registry};

/// What to do about a short name that several registries may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ShortNameMode {
    /// Without a terminal to ask at, such a name is refused.
    #[default]
    Enforcing,
    /// Asks where there is a terminal, else as `Disabled`; a daemon has none.
    Permissive,
    /// Each registry in turn.
    Disabled,
}

/// For which references a mirror is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum PullFromMirror {
    /// Any.
    #[default]
    All,
    /// With a digest.
    DigestOnly,
    /// With a tag.
    TagOnly,
}

/// One file, or all of them together.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Conf {
    /// Where short names are looked for, in order.
    pub unqualified_search_registries: Option<Vec<String>>,
    /// Default: enforcing.
    pub short_name_mode: Option<ShortNameMode>,
    /// Where credentials come from, in order.
    pub credential_helpers: Option<Vec<String>>,
    /// Whole names of short names; an empty one takes an alias of an earlier file back.
    #[serde(default)]
    pub aliases: BTreeMap<String, String>,
    /// `[[registry]]`
    #[serde(default)]
    pub registry: Vec<Registry>,
    /// Keys that mean nothing to us.
    #[serde(flatten)]
    pub rest: BTreeMap<String, toml::Value>,
}

/// `[[registry]]`: the longest prefix that a name has decides.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Registry {
    /// `host[:port][/path[:tag]]` or `*.domain`; empty: the location.
    #[serde(default)]
    pub prefix: String,
    /// Comes in the prefix's place; empty: the prefix itself.
    #[serde(default)]
    pub location: String,
    /// TLS is not verified, and may be missing.
    #[serde(default)]
    pub insecure: bool,
    /// Never pulled from.
    #[serde(default)]
    pub blocked: bool,
    /// Mirrors are asked for digests alone.
    #[serde(default)]
    pub mirror_by_digest_only: bool,
    /// Asked before the location, in order.
    #[serde(default)]
    pub mirror: Vec<Mirror>,
}

/// `[[registry.mirror]]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Mirror {
    /// Comes in the prefix's place.
    #[serde(default)]
    pub location: String,
    /// TLS is not verified, and may be missing.
    #[serde(default)]
    pub insecure: bool,
    /// Which references it is asked for.
    pub pull_from_mirror: Option<PullFromMirror>,
}

impl Conf {
    /// Reads and checks one file's text; the reason if it cannot be used.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut conf: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        if conf.rest.contains_key("registries") {
            return Err(
                "[registries.search], [registries.insecure] and [registries.block] are version 1 of this format, \
                which is not read: write unqualified-search-registries and [[registry]] (containers-registries.conf(5))"
                    .into(),
            );
        }
        for host in conf.unqualified_search_registries.iter().flatten() {
            check_location("unqualified-search-registries", host)?;
        }
        for (short, whole) in &conf.aliases {
            check_alias(short, whole)?;
        }
        for registry in &mut conf.registry {
            registry.check()?;
        }
        Ok(conf)
    }

    /// Keys of the file that mean nothing to us.
    pub fn unknown(&self) -> impl Iterator<Item = &str> {
        self.rest.keys().map(String::as_str).filter(|key| *key != "additional-layer-store-auth-helper")
    }

    /// Lays a later file over this one: its lists replace ours, aliases and registries are taken one by one.
    pub fn merge(&mut self, later: Self) {
        self.unqualified_search_registries =
            later.unqualified_search_registries.or(self.unqualified_search_registries.take());
        self.short_name_mode = later.short_name_mode.or(self.short_name_mode);
        self.credential_helpers = later.credential_helpers.or(self.credential_helpers.take());
        for (short, whole) in later.aliases {
            if whole.is_empty() {
                self.aliases.remove(&short);
            } else {
                self.aliases.insert(short, whole);
            }
        }
        for registry in later.registry {
            self.registry.retain(|known| known.prefix != registry.prefix);
            self.registry.push(registry);
        }
    }

    /// The entry for a whole name with tag or digest, and how many of its bytes the prefix is.
    pub fn find(&self, name: &str) -> Option<(&Registry, usize)> {
        let fits = |registry: &'_ Registry| matched(&registry.prefix, name);
        let all = self.registry.iter().filter_map(|registry| Some((registry, fits(registry)?)));
        all.max_by_key(|(registry, _)| (registry.prefix.len(), !registry.prefix.starts_with('*')))
    }
}

impl Registry {
    fn check(&mut self) -> Result<(), String> {
        self.prefix = self.prefix.trim_end_matches('/').to_owned();
        self.location = self.location.trim_end_matches('/').to_owned();
        let wildcard = self.prefix.starts_with("*.");
        if self.prefix.is_empty() {
            self.prefix.clone_from(&self.location);
        }
        if self.location.is_empty() && !wildcard {
            let what = if self.prefix.is_empty() { "an entry".into() } else { format!("prefix {:?}", self.prefix) };
            return Err(format!("[[registry]]: {what} has no location, which only a prefix with *. may go without"));
        }
        check_location("[[registry]] prefix", self.prefix.strip_prefix("*.").unwrap_or(&self.prefix))?;
        if !self.location.is_empty() {
            check_location("[[registry]] location", &self.location)?;
        }
        for mirror in &mut self.mirror {
            mirror.location = mirror.location.trim_end_matches('/').to_owned();
            if mirror.location.is_empty() {
                return Err(format!("[[registry.mirror]] of {:?} has no location", self.prefix));
            }
            check_location("[[registry.mirror]] location", &mirror.location)?;
            if self.mirror_by_digest_only && mirror.pull_from_mirror.is_some() {
                return Err(format!(
                    "[[registry]] {:?} has mirror-by-digest-only, and its mirror {:?} pull-from-mirror: use one of them",
                    self.prefix, mirror.location
                ));
            }
        }
        Ok(())
    }

    /// The mirrors that are asked for a reference with a digest, or with a tag alone.
    pub fn mirrors(&self, has_digest: bool) -> impl Iterator<Item = &Mirror> {
        let fits = move |mirror: &&Mirror| match mirror.pull_from_mirror.unwrap_or_default() {
            PullFromMirror::All => has_digest || !self.mirror_by_digest_only,
            PullFromMirror::DigestOnly => has_digest,
            PullFromMirror::TagOnly => !has_digest,
        };
        self.mirror.iter().filter(fits)
    }
}

/// How many bytes of `name` the prefix covers; it ends at a `/`, `:` or `@`.
fn matched(prefix: &str, name: &str) -> Option<usize> {
    let end = match prefix.strip_prefix('*') {
        Some(domain) => {
            let host = name.split('/').next().unwrap_or_default();
            let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
            // The prefix may go on behind the domain: *.example.com/team.
            let (domain, path) = domain.split_at(domain.find(['/', ':']).unwrap_or(domain.len()));
            let end = host.strip_suffix(domain).filter(|rest| !rest.is_empty()).map(|_| host.len())?;
            name[end..].starts_with(path).then_some(end + path.len())?
        }
        None => name.starts_with(prefix).then_some(prefix.len())?,
    };
    matches!(name.as_bytes().get(end), None | Some(b'/' | b':' | b'@')).then_some(end)
}

fn check_location(key: &str, location: &str) -> Result<(), String> {
    if location.contains("://") {
        return Err(format!("{key} {location:?} is a URL: write host[:port][/path] without a scheme"));
    }
    let host = location.split('/').next().unwrap_or_default();
    check_registry(host).map_err(|error| format!("{key} {location:?}: {error}"))
}

fn check_alias(short: &str, whole: &str) -> Result<(), String> {
    if !Reference::is_short(short) || short.contains([':', '@']) {
        return Err(format!("[aliases] {short:?} is no short name: one without registry, tag and digest is expected"));
    }
    if whole.is_empty() {
        return Ok(());
    }
    let parsed = Reference::parse(whole).map_err(|error| format!("[aliases] {short:?}: {error}"))?;
    if Reference::is_short(whole) || parsed.name() != whole {
        return Err(format!("[aliases] {short:?} = {whole:?}: a whole name without tag and digest is expected"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_decides() {
        let conf = Conf::parse(
            r#"
            [[registry]]
            location = "a.example.com"
            [[registry]]
            prefix = "a.example.com/team"
            location = "b.example.com/x"
            [[registry]]
            prefix = "*.example.com"
            blocked = true
            [[registry]]
            prefix = "*.wild.org/team"
            location = "w.org"
            [[registry]]
            prefix = "a.example.com/team/app:1"
            location = "c.example.com"
            "#,
        )
        .unwrap();
        let find = |name| conf.find(name).map(|(registry, len)| (registry.prefix.as_str(), len));
        assert_eq!(find("a.example.com/x:1"), Some(("a.example.com", 13)));
        assert_eq!(find("a.example.com/team/app:2"), Some(("a.example.com/team", 18)));
        assert_eq!(find("a.example.com/team2/app:2"), Some(("a.example.com", 13)));
        assert_eq!(find("a.example.com/team/app:1"), Some(("a.example.com/team/app:1", 24)));
        assert_eq!(find("deep.b.example.com:5000/x:1"), Some(("*.example.com", 18)));
        assert_eq!(find("example.com/x:1"), None);
        assert_eq!(find("aexample.com/x:1"), None);
        assert_eq!(find("evil.org/b.example.com/x:1"), None);
        assert_eq!(find("x.wild.org/team/app:1"), Some(("*.wild.org/team", 15)));
        assert_eq!(find("x.wild.org/teams/app:1"), None);
    }

    #[test]
    fn mirrors_by_kind_of_reference() {
        let conf = Conf::parse(
            r#"
            [[registry]]
            location = "a.org"
            [[registry.mirror]]
            location = "all"
            [[registry.mirror]]
            location = "digest"
            pull-from-mirror = "digest-only"
            [[registry.mirror]]
            location = "tag"
            pull-from-mirror = "tag-only"
            [[registry]]
            location = "b.org"
            mirror-by-digest-only = true
            [[registry.mirror]]
            location = "m"
            "#,
        )
        .unwrap();
        let mirrors = |name, digest| -> Vec<&str> {
            conf.find(name).unwrap().0.mirrors(digest).map(|mirror| mirror.location.as_str()).collect()
        };
        assert_eq!(mirrors("a.org/x", false), ["all", "tag"]);
        assert_eq!(mirrors("a.org/x", true), ["all", "digest"]);
        assert_eq!(mirrors("b.org/x", false), [""; 0]);
        assert_eq!(mirrors("b.org/x", true), ["m"]);
    }

    #[test]
    fn later_files_win_entry_by_entry() {
        let mut conf = Conf::parse(
            "unqualified-search-registries = [\"a.org\"]\n[aliases]\nx = \"a.org/x\"\ny = \"a.org/y\"\n\
             [[registry]]\nlocation = \"a.org\"\n[[registry]]\nlocation = \"b.org\"\n",
        )
        .unwrap();
        conf.merge(
            Conf::parse(
                "short-name-mode = \"disabled\"\nunqualified-search-registries = []\n[aliases]\nx = \"\"\ny = \"b.org/y\"\n\
                 [[registry]]\nlocation = \"b.org\"\nblocked = true\n",
            )
            .unwrap(),
        );
        assert_eq!(conf.unqualified_search_registries, Some(Vec::new()));
        assert_eq!(conf.short_name_mode, Some(ShortNameMode::Disabled));
        assert_eq!(conf.aliases, BTreeMap::from([("y".to_owned(), "b.org/y".to_owned())]));
        assert_eq!(conf.registry.len(), 2);
        assert!(conf.find("b.org/x").unwrap().0.blocked);
    }

    #[test]
    fn refuses_with_the_reason() {
        let why = |text: &str| Conf::parse(text).unwrap_err();
        assert!(why("[registries.search]\nregistries = []").contains("version 1"));
        assert!(why("[[registry]]\nprefix = \"a.org\"").contains("\"a.org\" has no location"));
        assert!(why("[[registry]]\nlocation = \"https://a.org\"").contains("is a URL"));
        assert!(why("[[registry]]\nlocation = \"a.org\"\nblokced = true").contains("blokced"));
        assert!(why("short-name-mode = \"sometimes\"").contains("sometimes"));
        assert!(why("[aliases]\n\"a.org/x\" = \"b.org/x\"").contains("no short name"));
        assert!(why("[aliases]\nx = \"b.org/x:1\"").contains("without tag"));
        assert!(why("[aliases]\nx = \"y\"").contains("a whole name"));
        let both = "[[registry]]\nlocation = \"a.org\"\nmirror-by-digest-only = true\n[[registry.mirror]]\n\
                    location = \"m\"\npull-from-mirror = \"all\"";
        assert!(why(both).contains("use one of them"));
        assert_eq!(Conf::parse("colour = 1").unwrap().unknown().collect::<Vec<_>>(), ["colour"]);
    }
}
