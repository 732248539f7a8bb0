//! The requests of one pull against one repository: scheme, authorization, retries.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode};
use tokio::sync::Mutex;

use super::challenge::{self, Challenge};
use super::retry::retry_after;
use super::{Backoff, Endpoint, Http, RegistryError};
use crate::error_text;
use crate::image::config::ImageStoreConfig;
use crate::image::credentials::Credentials;
use crate::image::registries::{Scheme, Source};

/// Of an error's answer.
const MAX_ERROR_BODY: usize = 8 << 10;

/// A repository of a registry, for the length of one pull.
pub(crate) struct Session {
    pub(super) http: Arc<Http>,
    pub(super) source: Source,
    pub(super) tls: bool,
    pub(super) credentials: Option<Credentials>,
    /// The header that worked last.
    authorization: Mutex<Option<HeaderValue>>,
    pub(super) stall: Duration,
    attempts: u32,
    retry_delay: Duration,
}

/// What to ask for.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    /// Below `/v2/<repository>/`.
    pub path: &'a str,
    /// Says it in messages: "layer sha256:...".
    pub what: &'a str,
    pub accept: Option<&'a str>,
    /// First byte wanted.
    pub from: u64,
}

impl Session {
    /// Finds out whether the host speaks TLS where it may do without: this machine itself, and insecure ones.
    pub async fn open(
        http: Arc<Http>,
        config: &ImageStoreConfig,
        source: Source,
        attempts: u32,
        credentials: Option<Credentials>,
    ) -> Result<Self, RegistryError> {
        let tls = match source.scheme {
            Scheme::Https => true,
            Scheme::Http => false,
            Scheme::Either => speaks_tls(&http, &source, config.stall_timeout()).await,
        };
        let authorization = match &credentials {
            Some(bearer @ Credentials::Bearer(_)) => bearer.header().and_then(|header| secret(&header)),
            _ => None,
        };
        Ok(Self {
            http,
            source,
            tls,
            credentials,
            authorization: Mutex::new(authorization),
            stall: config.stall_timeout(),
            attempts,
            retry_delay: Duration::from_millis(config.retry_delay_ms),
        })
    }

    /// `host[:port]`
    pub fn host(&self) -> &str {
        &self.source.endpoint.host
    }

    /// Longest silence.
    pub fn stall(&self) -> Duration {
        self.stall
    }

    /// The attempts that one request has.
    pub fn backoff(&self) -> Backoff {
        Backoff::new(self.attempts, self.retry_delay)
    }

    /// A whole answer of at most `limit` bytes.
    pub async fn fetch(&self, request: Request<'_>, limit: usize) -> Result<(HeaderMap, Vec<u8>), RegistryError> {
        let mut backoff = self.backoff();
        loop {
            let response = self.get(request, &mut backoff).await?;
            let headers = response.headers().clone();
            match read(response, limit, self.stall).await {
                Ok(body) if body.len() <= limit => return Ok((headers, body)),
                Ok(_) => {
                    let (host, what) = (self.host().to_owned(), request.what.to_owned());
                    return Err(RegistryError::TooLarge { host, what, limit });
                }
                Err(reason) => backoff.again(self.host(), request.what, reason, None).await?,
            }
        }
    }

    /// A successful answer whose body is still to come.
    pub async fn get(&self, request: Request<'_>, backoff: &mut Backoff) -> Result<Response, RegistryError> {
        let mut challenged = false;
        loop {
            let sent = self.authorization.lock().await.clone();
            let response = match self.send(request, sent.clone()).await? {
                Ok(response) => response,
                Err(reason) => {
                    backoff.again(self.host(), request.what, reason, None).await?;
                    continue;
                }
            };
            let status = response.status();
            match status {
                _ if status.is_success() => return Ok(response),
                StatusCode::UNAUTHORIZED if !challenged => {
                    challenged = true;
                    self.authorize(request, response, sent, backoff).await?;
                }
                StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
                    self.wait(request, response, backoff).await?;
                }
                _ if status.is_server_error() => self.wait(request, response, backoff).await?,
                _ => return Err(self.refusal(request.what, response).await),
            }
        }
    }

    /// One request; the inner error is worth another attempt.
    async fn send(
        &self,
        request: Request<'_>,
        authorization: Option<HeaderValue>,
    ) -> Result<Result<Response, String>, RegistryError> {
        let Source { endpoint: Endpoint { host, repository }, api, namespace, headers, .. } = &self.source;
        let scheme = if self.tls { "https" } else { "http" };
        let client = self.client(self.tls, self.source.endpoint.is_loopback())?;
        let namespace = namespace.as_ref().map(|name| format!("?ns={name}")).unwrap_or_default();
        let url = format!("{scheme}://{host}{api}/{repository}/{}{namespace}", request.path);
        let mut builder = client.get(url).headers(headers.clone());
        if let Some(accept) = request.accept {
            builder = builder.header(ACCEPT, accept);
        }
        if let Some(authorization) = authorization {
            builder = builder.header(AUTHORIZATION, authorization);
        }
        if request.from > 0 {
            builder = builder.header(RANGE, format!("bytes={}-", request.from));
        }
        Ok(self.answer(builder).await)
    }

    /// A client for this registry, or for a server that it sends us to.
    pub(super) fn client(&self, tls: bool, loopback: bool) -> Result<reqwest::Client, RegistryError> {
        let client = self.http.client(tls.then_some(&self.source.tls), loopback);
        client.map_err(|reason| RegistryError::Tls { host: self.host().to_owned(), reason })
    }

    pub(super) async fn answer(&self, builder: reqwest::RequestBuilder) -> Result<Response, String> {
        match tokio::time::timeout(self.stall, builder.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(error_text(&error.without_url())),
            Err(_) => Err(format!("no answer within {} s", self.stall.as_secs())),
        }
    }

    /// After a 429 or 5xx: as long as the registry says, or the usual pause.
    async fn wait(&self, request: Request<'_>, response: Response, backoff: &mut Backoff) -> Result<(), RegistryError> {
        let after = response.headers().get(RETRY_AFTER).and_then(|v| retry_after(v.to_str().ok()?));
        let status = response.status();
        let reason = format!("{status}{}", self.words(response).await);
        backoff.again(self.host(), request.what, reason, after).await
    }

    /// Answers a 401's challenge, unless another request of this pull has done it meanwhile.
    async fn authorize(
        &self,
        request: Request<'_>,
        response: Response,
        sent: Option<HeaderValue>,
        backoff: &mut Backoff,
    ) -> Result<(), RegistryError> {
        let challenges = response.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok());
        let challenge = challenges.filter_map(challenge::parse).max_by_key(|c| *c != Challenge::Basic);
        let header = match (challenge, &self.credentials) {
            (Some(Challenge::Basic), Some(basic @ Credentials::Basic { .. })) if sent.is_none() => {
                basic.header().and_then(|header| secret(&header))
            }
            (Some(Challenge::Bearer { .. }), Some(Credentials::Bearer(_))) => None,
            (Some(Challenge::Bearer { realm, service, scope }), _) => {
                let now = self.authorization.lock().await.clone();
                if now.is_some() && now != sent {
                    return Ok(());
                }
                let token = self.token(request.what, &realm, service, scope, backoff).await?;
                secret(&format!("Bearer {token}"))
            }
            _ => None,
        };
        if header.is_none() {
            return Err(self.refusal(request.what, response).await);
        }
        *self.authorization.lock().await = header;
        Ok(())
    }

    /// The error for a status that no retry helps.
    pub(super) async fn refusal(&self, what: &str, response: Response) -> RegistryError {
        let status = response.status();
        let answer = self.words(response).await;
        let (host, what) = (self.host().to_owned(), what.to_owned());
        match status {
            StatusCode::NOT_FOUND => RegistryError::NotFound { host, what, answer },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::Unauthorized {
                host,
                what,
                credentials: Credentials::describe(self.credentials.as_ref()),
                status: status.as_u16(),
                answer,
            },
            _ => RegistryError::Answer { host, what, status: status.as_u16(), answer },
        }
    }

    /// The registry's own words about a failure, with a separator before them; empty when there are none.
    async fn words(&self, response: Response) -> String {
        #[derive(serde::Deserialize)]
        struct Errors {
            errors: Vec<Error>,
        }
        #[derive(serde::Deserialize)]
        struct Error {
            #[serde(default)]
            message: String,
        }
        let Ok(body) = read(response, MAX_ERROR_BODY, self.stall).await else { return String::new() };
        let message = serde_json::from_slice::<Errors>(&body).ok().and_then(|e| e.errors.into_iter().next());
        match message {
            Some(error) if !error.message.is_empty() => {
                let text: String = error.message.chars().filter(|c| !c.is_control()).take(200).collect();
                format!(": {text}")
            }
            _ => String::new(),
        }
    }
}

/// At most a little over `limit` bytes of the body; the error is worth another attempt.
pub(super) async fn read(mut response: Response, limit: usize, stall: Duration) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while body.len() <= limit {
        match tokio::time::timeout(stall, response.chunk()).await {
            Ok(Ok(Some(chunk))) => body.extend_from_slice(&chunk[..chunk.len().min(limit + 1 - body.len())]),
            Ok(Ok(None)) => break,
            Ok(Err(error)) => return Err(error_text(&error.without_url())),
            Err(_) => return Err(format!("no byte within {} s", stall.as_secs())),
        }
    }
    Ok(body)
}

/// A header value that logs do not show.
pub(super) fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Whether a registry speaks TLS. A certificate that is not trusted is TLS too, and a reason to fail.
async fn speaks_tls(http: &Http, source: &Source, stall: Duration) -> bool {
    let Source { endpoint, api, tls, .. } = source;
    let Ok(client) = http.client(Some(tls), endpoint.is_loopback()) else { return false };
    let probe = client.get(format!("https://{}{api}/", endpoint.host)).timeout(stall).send();
    match probe.await {
        Ok(_) => true,
        Err(error) => !error.is_connect() || is_bad_certificate(&error),
    }
}

fn is_bad_certificate(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
            return true;
        }
        // An I/O error's source is that of the error in it, so the error in it is asked for by itself.
        next = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}
