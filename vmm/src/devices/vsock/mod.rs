//! virtio-vsock (virtio 1.2, section 5.10) with a multiplexer onto unix sockets.
//!
//! ```text
//!  guest process --AF_VSOCK--> [ tx queue ]                        in-process listener for P, else
//!                               VsockDevice --(CID 2, port P)--->  unix socket `<listen path>_P`
//!  guest listener <----------- [ rx queue ]  <-- `CONNECT P\n` --  client of unix socket `<listen path>`
//!                                            <-- VsockHandle::connect(P)
//! ```
//!
//! A client of the listening socket sends `CONNECT <port>\n` and reads `OK <host port>\n` or `ERR <reason>\n`; after OK
//! the stream carries the connection's bytes. Bytes that a client does not read wait in the socket's own buffer and then in
//! at most [`BUF_ALLOC`] bytes here, which is the credit the guest has; no byte is copied while the client keeps up.

mod connection;
mod credit;
mod device;
mod greeting;
mod guest;
mod handle;
mod host;
mod mux;
mod packet;
mod poll;
mod virtio;

pub use credit::BUF_ALLOC;
pub use device::{EVENT_QUEUE, RX_QUEUE, TX_QUEUE, VsockConfig, VsockDevice};
pub use handle::{VsockCounters, VsockHandle};
pub use virtio::VirtioVsock;

/// Virtio device type of a socket device.
pub const DEVICE_TYPE: u32 = 19;
