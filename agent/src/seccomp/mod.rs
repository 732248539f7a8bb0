//! Seccomp: from the rules of a profile to a classic BPF program that the kernel runs before each system call.
//!
//! ```text
//! agent.v1.Seccomp --rules::checked--> Filter --compile--> Program --(helper, right before exec)--> kernel
//! ```

mod assemble;
mod compile;
mod rules;

use serde::{Deserialize, Serialize};

pub use compile::compile;
pub use rules::{Abi, Action, Architecture, Comparison, Condition, Filter, Rule, checked};

/// One instruction of classic BPF (linux/filter.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when a comparison holds.
    pub jt: u8,
    /// Instructions to skip when it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// What a process installs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// At most 4096.
    pub instructions: Vec<Instruction>,
    /// `SECCOMP_FILTER_FLAG_*`
    pub flags: u32,
}

#[cfg(test)]
mod tests;
