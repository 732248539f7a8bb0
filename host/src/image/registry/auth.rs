//! Credentials for a registry, as CRI hands them over.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// What is shown to a registry.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Credentials {
    /// User and password, for the registry or its token server.
    Basic {
        /// Who.
        username: String,
        /// The secret.
        password: String,
    },
    /// A token that the registry takes as it is.
    Bearer(String),
}

/// Why an `AuthConfig` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// `auth` is base64 of `user:password`.
    #[error("the pull secret's `auth` is not base64 of user:password: {0}")]
    Auth(&'static str),
    /// OAuth2 refresh tokens.
    #[error(
        "the pull secret holds an identity token, which is not supported: give user name and password or a registry token"
    )]
    IdentityToken,
}

impl Credentials {
    /// From the fields of CRI's `AuthConfig`; `None` when all are empty. A user name wins over `auth`, as in the peers.
    pub fn from_cri(
        username: &str,
        password: &str,
        auth: &str,
        identity_token: &str,
        registry_token: &str,
    ) -> Result<Option<Self>, CredentialsError> {
        if !username.is_empty() {
            return Ok(Some(Self::Basic { username: username.into(), password: password.into() }));
        }
        if !auth.is_empty() {
            return Self::from_auth(auth).map(Some);
        }
        if !registry_token.is_empty() {
            return Ok(Some(Self::Bearer(registry_token.into())));
        }
        if identity_token.is_empty() { Ok(None) } else { Err(CredentialsError::IdentityToken) }
    }

    fn from_auth(auth: &str) -> Result<Self, CredentialsError> {
        let bytes = STANDARD.decode(auth.trim()).map_err(|_| CredentialsError::Auth("not base64"))?;
        let text = String::from_utf8(bytes).map_err(|_| CredentialsError::Auth("not UTF-8"))?;
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
        }
    }

    /// The `Authorization` header's value.
    pub(super) fn header(&self) -> String {
        match self {
            Self::Basic { username, password } => {
                format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
            }
            Self::Bearer(token) => format!("Bearer {token}"),
        }
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({})", Self::describe(Some(self)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_of_cri() {
        let basic = Some(Credentials::Basic { username: "u".into(), password: "p:q".into() });
        assert_eq!(Credentials::from_cri("u", "p:q", "", "", ""), Ok(basic.clone()));
        assert_eq!(Credentials::from_cri("", "", &STANDARD.encode("u:p:q\0\0"), "", ""), Ok(basic));
        assert_eq!(Credentials::from_cri("", "", "", "", "t"), Ok(Some(Credentials::Bearer("t".into()))));
        assert_eq!(Credentials::from_cri("", "", "", "", ""), Ok(None));
        assert_eq!(Credentials::from_cri("", "", "", "t", ""), Err(CredentialsError::IdentityToken));
        assert_eq!(Credentials::from_cri("", "", "%", "", ""), Err(CredentialsError::Auth("not base64")));
    }

    #[test]
    fn secrets_are_not_shown() {
        let text = format!("{:?}", Credentials::from_cri("u", "hunter2", "", "", ""));
        assert!(text.contains("user \"u\"") && !text.contains("hunter2"), "{text}");
    }
}
