//! virtio-vsock (virtio 1.2, section 5.10) with a multiplexer onto unix sockets.
//!
//! ```text
//!  guest process --AF_VSOCK--> [ tx queue ]                        in-process listener for P, else
//!                               VsockDevice --(CID 2, port P)--->  unix socket `<listen path>_P`
//!  guest listener <----------- [ rx queue ]  <-- `CONNECT P\n` --  client of unix socket `<listen path>`
//!                                            <-- VsockHandle::connect(P)
//! ```

mod device;
mod handle;

pub use device::{VsockConfig, VsockDevice};
pub use handle::{VsockCounters, VsockHandle};

/// Virtio device type of a socket device.
pub const DEVICE_TYPE: u32 = 19;
