//! CRI v1: the verbs, one file each: validate, call the domain, convert. Nothing imports this module but the server.

use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

use tonic::Status;

pub mod coverage;
pub mod image;
pub mod runtime;
pub mod server;
mod status;

/// The stream of a verb that is not built yet: it never has an element.
#[derive(Debug)]
pub struct Nothing<T>(PhantomData<fn() -> T>);

impl<T> futures_util::Stream for Nothing<T> {
    type Item = Result<T, Status>;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(None)
    }
}

fn not_built<T>(verb: &str) -> Result<T, Status> {
    Err(Status::unimplemented(format!("{verb} is not built yet; docs/cri-coverage.md lists what is")))
}
