//! The server side of SPDY/3.1, as far as Kubernetes' clients speak it: streams that clients open, headers, data both
//! ways, half-close, reset and ping. Windows are ignored by every client of Kubernetes (moby/spdystream), so a stream
//! that is not read holds up the connection, as TCP does.

mod dictionary;
pub mod frame;
pub mod headers;
mod session;
mod writer;

pub use frame::ResetReason;
pub use session::{Limits, Session, Stream};
pub use writer::{Gone, Output};
