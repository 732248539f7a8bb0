//! A virtual machine on KVM: memory, processors, interrupts and the devices' registers.
//!
//! * [`machine`]: built step by step, then run. * [`vcpu`]: a processor's thread. * [`gate`]: holds all of them up.
//! * [`memory`], [`ports`], [`bus`]: what processors reach. * [`exits`]: why they left the guest.
//! * [`x86_64`]: what belongs to that architecture.

pub mod bus;
pub mod exits;
pub mod gate;
pub mod machine;
pub mod memory;
pub mod ports;
pub mod vcpu;
pub mod x86_64;

pub use machine::{Builder, End, Machine, MachineError};
