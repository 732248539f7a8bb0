//! As in the daemon, so that `crate::image` paths hold.

#[path = "../../src/image/digest.rs"]
pub mod digest;
#[path = "../../src/image/erofs/mod.rs"]
pub mod erofs;
#[path = "../../src/image/layer/mod.rs"]
pub mod layer;
