//! Deadlines that clients set (`grpc-timeout`), answered as gRPC asks: tonic itself says CANCELLED, where the kubelet
//! and its tools look for DEADLINE_EXCEEDED.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::HeaderMap;
use tonic::Status;
use tower::{Layer, Service};

/// How much sooner than tonic's own clock.
const HEAD_START: Duration = Duration::from_millis(5);

/// Puts [`Deadline`] around services.
#[derive(Debug, Clone, Copy, Default)]
pub struct DeadlineLayer;

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Deadline<S> {
        Deadline(inner)
    }
}

/// Drops a request whose client has stopped waiting.
#[derive(Debug, Clone)]
pub struct Deadline<S>(S);

impl<S, B, R> Service<http::Request<B>> for Deadline<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>>,
    S::Future: Send + 'static,
    R: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let limit = limit(request.headers());
        let answer = self.0.call(request);
        let Some(limit) = limit else { return Box::pin(answer) };
        Box::pin(async move {
            let limit = limit.saturating_sub(HEAD_START.min(limit / 2));
            tokio::time::timeout(limit, answer).await.unwrap_or_else(|_| {
                Ok(Status::deadline_exceeded("the request took longer than the client's own deadline").into_http())
            })
        })
    }
}

/// `grpc-timeout`: up to eight digits and a unit.
fn limit(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let value: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            limit(&headers)
        };
        assert_eq!(of("2S"), Some(Duration::from_secs(2)));
        assert_eq!(of("119999886u"), None);
        assert_eq!(of("99999999m"), Some(Duration::from_millis(99_999_999)));
        assert_eq!((of("S"), of("x"), of("12"), of("-1S")), (None, None, None, None));
        assert_eq!(limit(&HeaderMap::new()), None);
    }

    #[tokio::test]
    async fn a_slow_answer_is_a_deadline_exceeded() {
        let slow = tower::service_fn(|_: http::Request<()>| {
            std::future::pending::<Result<http::Response<String>, std::convert::Infallible>>()
        });
        let request = http::Request::builder().header("grpc-timeout", "20m").body(()).unwrap();
        let answer = DeadlineLayer.layer(slow).call(request).await.unwrap();
        assert_eq!(answer.headers()["grpc-status"], "4");
    }
}
