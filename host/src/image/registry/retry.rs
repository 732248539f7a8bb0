//! How often and after which pause a request is tried again.

use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use super::RegistryError;

const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A pull waits this long for a registry that names a time, and fails at once if it names a longer one.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(120);

/// The attempts of one request.
#[derive(Debug)]
pub(crate) struct Backoff {
    used: u32,
    allowed: u32,
    pause: Duration,
}

impl Backoff {
    /// `allowed` attempts in all, `pause` before the second one.
    pub fn new(allowed: u32, pause: Duration) -> Self {
        Self { used: 0, allowed: allowed.max(1), pause }
    }

    /// Notes a failure and waits, `after` if the registry said so; an error when no attempt is left.
    pub async fn again(
        &mut self,
        host: &str,
        what: &str,
        reason: String,
        after: Option<Duration>,
    ) -> Result<(), RegistryError> {
        self.used += 1;
        if self.used >= self.allowed {
            let (host, what) = (host.to_owned(), what.to_owned());
            return Err(RegistryError::Unavailable { host, what, reason, attempts: self.used });
        }
        if let Some(wait) = after.filter(|wait| *wait > LONGEST_RETRY_AFTER) {
            return Err(RegistryError::AskedToWait { host: host.to_owned(), what: what.to_owned(), wait });
        }
        tracing::debug!(host, what, reason, attempt = self.used, "registry request failed, trying again");
        let jittered = self.pause.mul_f64(0.75 + rand::random::<f64>() / 2.0);
        tokio::time::sleep(after.unwrap_or(jittered)).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }
}

/// `Retry-After`: seconds or an HTTP date.
pub(super) fn retry_after(value: &str) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let date = OffsetDateTime::parse(&value.trim().replace("GMT", "+0000"), &Rfc2822).ok()?;
    Some(SystemTime::from(date).duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_forms() {
        assert_eq!(retry_after("7"), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert!(retry_after("Wed, 21 Oct 2099 07:28:00 GMT").is_some_and(|d| d > LONGEST_RETRY_AFTER));
        assert_eq!(retry_after("soon"), None);
        assert_eq!(retry_after("-1"), None);
    }

    #[tokio::test]
    async fn attempts_are_bounded() {
        let mut backoff = Backoff::new(3, Duration::ZERO);
        assert!(backoff.again("h", "w", "r".into(), None).await.is_ok());
        assert!(backoff.again("h", "w", "r".into(), None).await.is_ok());
        let error = backoff.again("h", "w", "refused".into(), None).await.unwrap_err();
        assert!(error.to_string().contains("refused (3 attempts)"), "{error}");
        let mut patient = Backoff::new(3, Duration::ZERO);
        let error = patient.again("h", "w", "r".into(), Some(Duration::from_secs(999))).await.unwrap_err();
        assert!(error.to_string().contains("asks to wait 999 s"), "{error}");
    }
}
