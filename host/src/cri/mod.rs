//! CRI v1: the verbs, one file each: validate, call the domain, convert. Nothing imports this module but the server.

use tonic::Status;

pub mod coverage;
mod deadline;
pub mod image;
pub mod runtime;
pub mod server;
mod status;
mod stream;

fn not_built<T>(verb: &str) -> Result<T, Status> {
    Err(Status::unimplemented(format!("{verb} is not built yet; docs/cri-coverage.md lists what is")))
}
