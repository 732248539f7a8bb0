//! Token servers: a registry sends us there for what it wants to see.

use reqwest::StatusCode;
use reqwest::header::AUTHORIZATION;

use super::session::{read, secret};
use super::{Backoff, Endpoint, RegistryError, Session};

/// Of a token server's answer.
const MAX_TOKEN: usize = 256 << 10;

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
        let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.endpoint.repository));
        url.query_pairs_mut().append_pair("scope", &scope);
        if let Some(service) = service {
            url.query_pairs_mut().append_pair("service", &service);
        }
        let loopback =
            Endpoint { host: url.host_str().unwrap_or_default().into(), repository: String::new() }.is_loopback();
        let client = self.http.client(tls, loopback).map_err(|reason| failed(&reason))?;
        loop {
            let mut builder = client.get(url.clone());
            if let Some(header) = self.credentials.as_ref().and_then(|c| secret(&c.header())) {
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

fn token_of(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
    }
    let answer: Answer = serde_json::from_slice(body).ok()?;
    answer.token.or(answer.access_token).filter(|token| !token.is_empty())
}
