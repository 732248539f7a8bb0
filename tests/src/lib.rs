//! The harness of the end-to-end suites in `tests/`, of the demo and of the benchmark.
//!
//! * [`suite`]: runs the cases of one test program one after the other over one [`fixture`].
//! * [`fixture`]: a daemon, a registry filled with images, and what it takes to use them.
//! * [`daemon`], [`registry`], [`cni`]: the real programs, each with directories and addresses of its own.
//! * [`images`]: images built on the spot, and how they reach a registry.
//! * [`cri`], [`crictl`], [`pod`]: three ways to talk to the daemon: typed, as people do, and in whole pods.
//! * [`nri`]: plugins of the Node Resource Interface, and what they were told.
//! * [`leaks`]: what a suite must not leave behind; [`faults`]: a registry that misbehaves.
//! * [`environment`], [`command`], [`http`], [`initramfs`], [`wait`]: the small things.

pub mod certificates;
pub mod cni;
pub mod command;
pub mod cri;
pub mod crictl;
pub mod daemon;
pub mod environment;
pub mod events;
pub mod faults;
pub mod fixture;
pub mod http;
pub mod images;
pub mod initramfs;
pub mod leaks;
pub mod logs;
pub mod nri;
pub mod pod;
pub mod registry;
pub mod streaming;
pub mod suite;
pub mod token_server;
pub mod wait;
