//! Who we are to a registry: what the CRI hands over, else auth files and credential helpers.
//!
//! Secrets are [`Secret`]s: no message, log or `Debug` output has them, and the daemon leaves no core dump.

pub(crate) mod auth_file;
mod helper;

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::program::ProgramError;
use super::secret::Secret;
use auth_file::AuthFile;

/// In `credential-helpers` of registries.conf: the auth files.
const AUTH_FILES: &str = "containers-auth.json";
/// The user name of helpers' answers that hold an identity token.
const TOKEN_USER: &str = "<token>";

/// What is shown to a registry or its token server.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Credentials {
    /// User and password, for the registry or its token server.
    Basic {
        /// Who.
        username: String,
        /// The secret.
        password: Secret,
    },
    /// A token that the registry takes as it is.
    Bearer(Secret),
    /// An OAuth2 refresh token, for the registry's token server.
    Identity(Secret),
}

/// What came with a pull, and which registry it is meant for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PullSecret {
    /// What is shown.
    pub credentials: Credentials,
    /// `host[:port]`; none: every registry of this pull.
    pub server: Option<String>,
}

/// For every registry of the pull.
impl From<Credentials> for PullSecret {
    fn from(credentials: Credentials) -> Self {
        Self { credentials, server: None }
    }
}

/// Why an `AuthConfig` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// `auth` is base64 of `user:password`.
    #[error("the pull secret's `auth` is not base64 of user:password: {0}")]
    Auth(&'static str),
}

/// Why the node's own credentials could not be found out.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AuthError {
    /// containers-auth.json(5) or Docker's config.json.
    #[error("auth file {}: {reason}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, without anything of its content.
        reason: String,
    },
    /// A helper that did not answer.
    #[error("credential helper for registry {registry}: {cause}")]
    Helper {
        /// `host[:port]`
        registry: String,
        /// What happened.
        cause: ProgramError,
    },
    /// A helper that failed or answered something else.
    #[error(
        "credential helper {program} for registry {registry}: {reason}; see what `echo {registry} | {program} get` says"
    )]
    Answer {
        /// `docker-credential-...`
        program: String,
        /// `host[:port]`
        registry: String,
        /// What is wrong, without anything of its answer.
        reason: String,
    },
}

impl Credentials {
    /// From `user:password` in base64.
    pub(crate) fn from_auth(auth: &str) -> Result<Self, CredentialsError> {
        let bytes = STANDARD.decode(auth.trim()).map_err(|_| CredentialsError::Auth("not base64"))?;
        let text = String::from_utf8(bytes).map_err(|_| CredentialsError::Auth("not UTF-8"))?;
        let text = zeroize::Zeroizing::new(text);
        let (username, password) = text.split_once(':').ok_or(CredentialsError::Auth("no colon"))?;
        // Docker pads the password with NULs.
        Ok(Self::Basic { username: username.into(), password: password.trim_matches('\0').into() })
    }

    /// For messages: who was tried, without the secret.
    #[must_use]
    pub fn describe(credentials: Option<&Self>) -> String {
        match credentials {
            None => "no credentials".into(),
            Some(Self::Basic { username, .. }) => format!("user {username:?}"),
            Some(Self::Bearer(_)) => "a registry token".into(),
            Some(Self::Identity(_)) => "an identity token".into(),
        }
    }

    /// The `Authorization` header's value; none for what only a token server takes.
    pub(super) fn header(&self) -> Option<String> {
        match self {
            Self::Basic { username, password } => {
                let pair = zeroize::Zeroizing::new(format!("{username}:{}", password.expose()));
                Some(format!("Basic {}", STANDARD.encode(&*pair)))
            }
            Self::Bearer(token) => Some(format!("Bearer {}", token.expose())),
            Self::Identity(_) => None,
        }
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({})", Self::describe(Some(self)))
    }
}

/// The fields of CRI's `AuthConfig`.
#[derive(Default)]
pub(crate) struct CriAuth {
    pub username: String,
    pub password: String,
    pub auth: String,
    pub server_address: String,
    pub identity_token: String,
    pub registry_token: String,
}

impl PullSecret {
    /// `None` when all fields are empty. User and password win over an identity token, that over `auth`, and that over a
    /// registry token.
    pub(crate) fn from_cri(from: CriAuth) -> Result<Option<Self>, CredentialsError> {
        let server = normalized_host(&from.server_address);
        let password = Secret::from(from.password);
        let credentials = if !from.username.is_empty() && !password.is_empty() {
            Credentials::Basic { username: from.username, password }
        } else if !from.identity_token.is_empty() {
            Credentials::Identity(from.identity_token.into())
        } else if !from.auth.is_empty() {
            Credentials::from_auth(&zeroize::Zeroizing::new(from.auth))?
        } else if !from.registry_token.is_empty() {
            Credentials::Bearer(from.registry_token.into())
        } else if !from.username.is_empty() {
            Credentials::Basic { username: from.username, password }
        } else {
            return Ok(None);
        };
        Ok(Some(Self { credentials, server }))
    }

    /// Whether a registry may see it.
    pub(super) fn is_for(&self, registry: &str) -> bool {
        self.server.as_ref().is_none_or(|server| Some(server) == normalized_host(registry).as_ref())
    }
}

/// `host[:port]` of an address or URL, Docker Hub's many names as one; none of nothing.
fn normalized_host(address: &str) -> Option<String> {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    let host = rest.split('/').next().unwrap_or_default().to_ascii_lowercase();
    match host.as_str() {
        "" => None,
        "index.docker.io" | "registry-1.docker.io" => Some("docker.io".into()),
        _ => Some(host),
    }
}

/// Where this node keeps credentials of its own.
#[derive(Debug, Clone, Default)]
pub(crate) struct Keyring {
    /// Auth files, the first that has an entry wins.
    pub files: Vec<PathBuf>,
    /// `credential-helpers` of registries.conf; none: the files alone.
    pub helpers: Option<Vec<String>>,
}

impl Keyring {
    /// The credentials for a repository of a registry, if there are some.
    pub async fn find(&self, registry: &str, repository: &str) -> Result<Option<Credentials>, AuthError> {
        let default = [AUTH_FILES.to_owned()];
        for helper in self.helpers.as_deref().unwrap_or(&default) {
            let found = match helper.as_str() {
                AUTH_FILES => self.in_files(registry, repository).await?,
                name => helper::get(name, registry).await?,
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    async fn in_files(&self, registry: &str, repository: &str) -> Result<Option<Credentials>, AuthError> {
        for path in &self.files {
            let Some(file) = AuthFile::read(path).await? else { continue };
            if let Some(name) = file.cred_helpers.get(registry)
                && let Some(found) = helper::get(name, registry).await?
            {
                return Ok(Some(found));
            }
            let failed = |reason| AuthError::File { path: path.clone(), reason };
            if let Some(found) = file.find(registry, repository).map_err(failed)? {
                return Ok(Some(found));
            }
            if !file.creds_store.is_empty()
                && let Some(found) = helper::get(&file.creds_store, registry).await?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(username: &str, password: &str) -> Credentials {
        Credentials::Basic { username: username.into(), password: password.into() }
    }

    fn from(change: impl FnOnce(&mut CriAuth)) -> Result<Option<Credentials>, CredentialsError> {
        let mut auth = CriAuth::default();
        change(&mut auth);
        Ok(PullSecret::from_cri(auth)?.map(|secret| secret.credentials))
    }

    #[test]
    fn each_field_of_cri() {
        let user = |a: &mut CriAuth| (a.username, a.password) = ("u".into(), "p:q".into());
        assert_eq!(from(user), Ok(Some(basic("u", "p:q"))));
        assert_eq!(from(|a| a.auth = STANDARD.encode("u:p:q\0\0")), Ok(Some(basic("u", "p:q"))));
        assert_eq!(from(|a| a.registry_token = "t".into()), Ok(Some(Credentials::Bearer("t".into()))));
        assert_eq!(from(|a| a.identity_token = "t".into()), Ok(Some(Credentials::Identity("t".into()))));
        let both = |a: &mut CriAuth| (a.username, a.identity_token) = ("u".into(), "t".into());
        assert_eq!(from(both), Ok(Some(Credentials::Identity("t".into()))));
        assert_eq!(from(|_| {}), Ok(None));
        assert!(from(|a| a.auth = "%".into()).is_err());
        assert!(from(|a| a.auth = STANDARD.encode("no colon")).is_err());
    }

    #[test]
    fn a_server_address_is_respected() {
        let with = |server: &str| {
            let auth = CriAuth { username: "u".into(), server_address: server.into(), ..CriAuth::default() };
            PullSecret::from_cri(auth).unwrap().unwrap()
        };
        assert!(with("").is_for("any.org"));
        assert!(with("https://index.docker.io/v1/").is_for("docker.io"));
        assert!(with("a.org:5000").is_for("a.org:5000") && with("http://A.org/v2/").is_for("a.org"));
        assert!(!with("a.org").is_for("a.org:5000") && !with("a.org").is_for("b.org"));
    }

    #[test]
    fn debug_hides_secrets() {
        let auth = CriAuth { username: "u".into(), password: "hush".into(), ..CriAuth::default() };
        let shown = format!("{:?}", PullSecret::from_cri(auth).unwrap());
        assert!(shown.contains("\"u\"") && !shown.contains("hush"), "{shown}");
        assert!(!format!("{:?}", Credentials::Identity("hush".into())).contains("hush"));
    }

    #[tokio::test]
    async fn files_in_order_and_namespaces() {
        let directory = tempfile::tempdir().unwrap();
        let (first, second) = (directory.path().join("1.json"), directory.path().join("2.json"));
        let auth = |pair: &str| STANDARD.encode(pair);
        let text = format!(
            r#"{{"auths":{{"a.org/team":{{"auth":"{}"}},"a.org/team/app":{{"identitytoken":"t"}},
                "https://index.docker.io/v1/":{{"auth":"{}"}},"a.org/none":{{}}}}}}"#,
            auth("team:1"),
            auth("hub:2")
        );
        std::fs::write(&first, text).unwrap();
        std::fs::write(&second, format!(r#"{{"auths":{{"a.org":{{"auth":"{}"}}}}}}"#, auth("all:3"))).unwrap();
        let keyring = Keyring { files: vec![directory.path().join("absent"), first.clone(), second], helpers: None };
        let find = async |registry, repository| keyring.find(registry, repository).await.unwrap();
        assert_eq!(find("a.org", "team/other").await, Some(basic("team", "1")));
        assert_eq!(find("a.org", "team/app").await, Some(Credentials::Identity("t".into())));
        assert_eq!(find("a.org", "teams").await, Some(basic("all", "3")));
        assert_eq!(find("docker.io", "library/x").await, Some(basic("hub", "2")));
        assert_eq!(find("b.org", "x").await, None);
        std::fs::write(&first, r#"{"auths":{"a.org":{"auth":["hush"]}}}"#).unwrap();
        let error = keyring.find("a.org", "x").await.unwrap_err().to_string();
        assert!(error.contains("1.json") && error.contains("line 1") && !error.contains("hush"), "{error}");
    }
}
