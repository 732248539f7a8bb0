//! Images built on the spot, without a network: layers from tar entries of ours, manifests, indexes, and the push.
//!
//! [`catalogue`] is what the suites, the demo and the benchmark use.

pub mod busybox;
pub mod catalogue;
pub mod critest;
pub mod image;
pub mod layer;
pub mod push;

pub use image::{Blob, Built, Compression, Flavour, Image, Index};
pub use layer::Layer;
pub use push::Target;
