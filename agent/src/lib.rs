//! `bulkhead-agent`: builds and runs the containers of one pod.
//!
//! PID 1 of the pod's guest, or an ordinary process of the host. What only PID 1 does is in [`init`]; everything
//! else knows nothing of virtual machines.

pub mod container;
pub mod helper;
pub mod host;
pub mod init;
pub mod io;
pub mod log;
pub mod reaper;
pub mod rpc;
pub mod sandbox;
pub mod seccomp;
pub mod server;
pub mod sys;
