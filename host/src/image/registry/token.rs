//! Token servers: a registry sends us there for what it wants to see.

use reqwest::StatusCode;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE};
use zeroize::Zeroizing;

use super::session::{read, secret};
use super::{Backoff, Endpoint, RegistryError, Session};
use crate::image::credentials::Credentials;
use crate::image::secret::Secret;

/// Of a token server's answer.
const MAX_TOKEN: usize = 256 << 10;
const FORM: &str = "application/x-www-form-urlencoded";
/// Who asks, for the token server's records.
const CLIENT: &str = "bulkhead";

impl Session {
    /// A pull token from the token server that the registry names.
    pub(super) async fn token(
        &self,
        what: &str,
        realm: &str,
        service: Option<String>,
        scope: Option<String>,
        backoff: &mut Backoff,
    ) -> Result<String, RegistryError> {
        let failed = |reason: &str| RegistryError::Token {
            host: self.host().to_owned(),
            what: what.to_owned(),
            realm: realm.chars().take(200).collect(),
            reason: reason.to_owned(),
        };
        let mut url = reqwest::Url::parse(realm).map_err(|_| failed("that is no URL"))?;
        let tls = url.scheme() == "https";
        if !tls && (self.tls || url.scheme() != "http") {
            return Err(failed("only https is allowed for a registry that speaks https"));
        }
        let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.source.endpoint.repository));
        let mut parameters = vec![("scope", scope)];
        parameters.extend(service.map(|service| ("service", service)));
        let refresh = match &self.credentials {
            Some(Credentials::Identity(token)) => Some(refresh_form(token, &parameters)),
            _ => {
                url.query_pairs_mut().extend_pairs(&parameters);
                None
            }
        };
        let loopback = Endpoint::new(url.host_str().unwrap_or_default(), "").is_loopback();
        let client = self.client(tls, loopback)?;
        loop {
            let mut builder = match &refresh {
                Some(form) => client.post(url.clone()).header(CONTENT_TYPE, FORM).body(form.to_string()),
                None => client.get(url.clone()),
            };
            if let Some(header) = self.credentials.as_ref().and_then(Credentials::header).and_then(|h| secret(&h)) {
                builder = builder.header(AUTHORIZATION, header);
            }
            let reason = match self.answer(builder).await {
                Ok(response) if response.status().is_success() => match read(response, MAX_TOKEN, self.stall).await {
                    Ok(body) => return token_of(&body).ok_or_else(|| failed("its answer holds no token")),
                    Err(reason) => reason,
                },
                Ok(response)
                    if response.status().is_client_error() && response.status() != StatusCode::TOO_MANY_REQUESTS =>
                {
                    return Err(self.refusal(what, response).await);
                }
                Ok(response) => format!("token server: {}", response.status()),
                Err(reason) => format!("token server: {reason}"),
            };
            backoff.again(self.host(), what, reason, None).await?;
        }
    }
}

/// OAuth2's refresh grant, as the distribution project describes it for registries.
fn refresh_form(token: &Secret, parameters: &[(&str, String)]) -> Zeroizing<String> {
    // A URL's query is encoded as a form is.
    let Ok(mut form) = reqwest::Url::parse("form:") else { return Zeroizing::default() };
    form.query_pairs_mut()
        .extend_pairs([("grant_type", "refresh_token"), ("client_id", CLIENT), ("refresh_token", token.expose())])
        .extend_pairs(parameters);
    Zeroizing::new(form.query().unwrap_or_default().to_owned())
}

fn token_of(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
    }
    let answer: Answer = serde_json::from_slice(body).ok()?;
    answer.token.or(answer.access_token).filter(|token| !token.is_empty())
}
