//! `WWW-Authenticate`: what a registry wants to see before it answers.

use std::collections::HashMap;

/// The way a registry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User and password with each request.
    Basic,
    /// A token from another server.
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// Reads one header; the bearer way wins when both are offered.
pub(super) fn parse(header: &str) -> Option<Challenge> {
    let mut found = None;
    for (scheme, parameters) in (Schemes { rest: header }) {
        if scheme.eq_ignore_ascii_case("bearer") {
            let mut parameters = parameters;
            return Some(Challenge::Bearer {
                realm: parameters.remove("realm")?,
                service: parameters.remove("service"),
                scope: parameters.remove("scope"),
            });
        }
        if scheme.eq_ignore_ascii_case("basic") {
            found = Some(Challenge::Basic);
        }
    }
    found
}

/// Walks `scheme key="value", key=value, scheme ...`.
struct Schemes<'a> {
    rest: &'a str,
}

impl<'a> Iterator for Schemes<'a> {
    type Item = (&'a str, HashMap<String, String>);

    fn next(&mut self) -> Option<Self::Item> {
        let text = self.rest.trim_start_matches([' ', ',', '\t']);
        let end = text.find([' ', ',', '\t']).unwrap_or(text.len());
        let (scheme, mut rest) = text.split_at(end);
        if scheme.is_empty() {
            return None;
        }
        let mut parameters = HashMap::new();
        while let Some((key, value, after)) = parameter(rest) {
            parameters.insert(key, value);
            rest = after;
        }
        self.rest = rest;
        Some((scheme, parameters))
    }
}

/// One `key=value` and what follows; none when the next word is a scheme.
fn parameter(text: &str) -> Option<(String, String, &str)> {
    let text = text.trim_start_matches([' ', ',', '\t']);
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_')))?;
    let (key, rest) = text.split_at(end);
    let rest = rest.strip_prefix('=')?;
    if key.is_empty() {
        return None;
    }
    let (value, rest) = match rest.strip_prefix('"') {
        Some(quoted) => unquote(quoted)?,
        None => {
            let end = rest.find([',', ' ', '\t']).unwrap_or(rest.len());
            (rest[..end].to_owned(), &rest[end..])
        }
    };
    Some((key.to_ascii_lowercase(), value, rest))
}

/// Up to the closing quote, with backslashes undone.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_registries_send() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        assert_eq!(
            parse(hub),
            Some(Challenge::Bearer {
                realm: "https://auth.docker.io/token".into(),
                service: Some("registry.docker.io".into()),
                scope: Some("repository:a/b:pull,push".into()),
            })
        );
        assert_eq!(parse(r#"Basic realm="x\"y", charset=UTF-8"#), Some(Challenge::Basic));
        let both = r#"Basic realm="x", Bearer realm="http://t/""#;
        assert!(matches!(parse(both), Some(Challenge::Bearer { .. })));
        assert_eq!(parse("Negotiate"), None);
        assert_eq!(parse("Bearer service=x"), None);
        assert_eq!(parse(r#"Bearer realm="unclosed"#), None);
    }

    proptest! {
        #[test]
        fn never_panics_and_ends(text in ".{0,200}") {
            let _ = parse(&text);
        }
    }
}
