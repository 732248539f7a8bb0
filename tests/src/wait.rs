//! Waiting for a condition with a deadline.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Asks `condition` every few milliseconds until it gives a value.
///
/// # Errors
/// After `limit`, naming `what` was waited for; or the condition's own error at once.
pub fn until<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("waited {limit:?} in vain for {what}");
        }
        sleep(Duration::from_millis(10));
    }
}

/// Asks `check` until it succeeds; the last failure is the error.
///
/// # Errors
/// What `check` said last, after `limit`.
pub fn until_ok<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("waited {limit:?} in vain for {what}")));
            }
            Err(_) => sleep(Duration::from_millis(10)),
        }
    }
}
