//! virtio-fs (virtio 1.2, section 5.11): the front end of the pod's file server, which reads the guest's requests itself.
//!
//! ```text
//! Waiting --a queue is kicked: connect, memory table, rings--> Serving --the server is gone--> Failed
//!    ^                                                            |          (the device needs a reset)
//!    `--------------------- the driver resets --------------------'
//! ```
//!
//! As long as the guest asks for nothing, there is no connection. Afterwards the server takes kicks from the guest's own event
//! descriptors; only its interrupts pass through here.

mod session;
mod virtio;

pub use session::{Ring, Session, SessionError};
pub use virtio::{Connect, Fs, FsConfig, connected};

/// Virtio device type of a file system.
pub const DEVICE_TYPE: u32 = 26;
/// Descriptors per queue.
pub const QUEUE_SIZE: u16 = 256;
/// Bytes of a tag.
pub const MAX_TAG: usize = 36;
