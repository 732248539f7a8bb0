//! Credential helpers: `docker-credential-NAME get`, the registry on standard input, JSON on standard output.

use std::time::Duration;

use serde::Deserialize;
use tokio::process::Command;

use super::{AuthError, Credentials, TOKEN_USER};
use crate::image::program;
use crate::image::secret::Secret;

const LIMIT: Duration = Duration::from_secs(30);
const MAX_ANSWER: usize = 64 << 10;
/// What a helper says when it has nothing, by the protocol.
const NOT_FOUND: &[u8] = b"credentials not found in native keychain";

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Username")]
    username: String,
    #[serde(rename = "Secret")]
    secret: Secret,
}

/// Asks a helper for a registry's credentials.
pub(super) async fn get(name: &str, registry: &str) -> Result<Option<Credentials>, AuthError> {
    let program = format!("docker-credential-{name}");
    let failed = |reason: &str| AuthError::Answer {
        program: program.clone(),
        registry: registry.to_owned(),
        reason: reason.to_owned(),
    };
    if name.is_empty() || name.contains('/') {
        return Err(failed("a helper's name is looked up in PATH, and has no slash"));
    }
    let mut command = Command::new(&program);
    command.arg("get");
    let output = program::run(command, registry.as_bytes(), LIMIT, MAX_ANSWER).await;
    let output = output.map_err(|cause| AuthError::Helper { registry: registry.to_owned(), cause })?;
    if !output.status.success() {
        let nothing = output.stdout.trim_ascii() == NOT_FOUND;
        return if nothing { Ok(None) } else { Err(failed(&format!("it failed ({})", output.status))) };
    }
    let answer: Answer =
        serde_json::from_slice(&output.stdout).map_err(|_| failed("its answer is not the JSON it should be"))?;
    if answer.secret.is_empty() {
        return Ok(None);
    }
    Ok(Some(match answer.username.as_str() {
        TOKEN_USER => Credentials::Identity(answer.secret),
        _ => Credentials::Basic { username: answer.username, password: answer.secret },
    }))
}
