//! What URLs end with: random, for one use, for a minute.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Request;
use crate::node::new_id;

/// How long a URL waits for its client.
const LIFE: Duration = Duration::from_secs(60);
/// URLs that may wait; 1000 a minute is more than a node's kubelet asks for.
const MAX: usize = 4096;

/// Too many URLs wait for their clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{MAX} streaming requests wait for their clients already; try again within a minute")]
pub struct TooMany;

#[derive(Debug, Default)]
pub(super) struct Tokens(Mutex<HashMap<String, (Request, Instant)>>);

impl Tokens {
    /// 128 random bits that stand for `request`.
    pub(super) fn issue(&self, request: Request) -> Result<String, TooMany> {
        let (token, now) = (new_id(), Instant::now());
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, (_, issued)| now.duration_since(*issued) < LIFE);
        if waiting.len() >= MAX {
            return Err(TooMany);
        }
        waiting.insert(token.clone(), (request, now));
        Ok(token)
    }

    /// The request, the first time and within a minute, if `verb` is its own.
    pub(super) fn redeem(&self, verb: &str, token: &str) -> Option<Request> {
        self.redeem_at(verb, token, Instant::now())
    }

    fn redeem_at(&self, verb: &str, token: &str, now: Instant) -> Option<Request> {
        let (request, issued) = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(token)?;
        (now.duration_since(issued) < LIFE && request.verb() == verb).then_some(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request::PortForward { sandbox: "s".into(), ports: vec![80] }
    }

    #[test]
    fn a_token_works_once() {
        let tokens = Tokens::default();
        let (first, second) = (tokens.issue(request()).unwrap(), tokens.issue(request()).unwrap());
        assert_ne!(first, second);
        assert_eq!(tokens.redeem("portforward", &first), Some(request()));
        assert_eq!(tokens.redeem("portforward", &first), None);
        assert_eq!(tokens.redeem("exec", &second), None);
    }

    #[test]
    fn a_token_expires() {
        let tokens = Tokens::default();
        let token = tokens.issue(request()).unwrap();
        assert_eq!(tokens.redeem_at("portforward", &token, Instant::now() + LIFE), None);
    }

    #[test]
    fn those_that_wait_are_bounded() {
        let tokens = Tokens::default();
        for _ in 0..MAX {
            tokens.issue(request()).unwrap();
        }
        assert_eq!(tokens.issue(request()), Err(TooMany));
    }
}
