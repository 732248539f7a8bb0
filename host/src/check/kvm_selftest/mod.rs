//! Whether this host's KVM can run a stock kernel, found out by running what every stock kernel runs.
//!
//! Some hosts have a /dev/kvm whose API works while kernels die in its instruction emulator. So a guest of 64 pages
//! executes, in long mode: `cmpxchg16b`, `int3` through an IDT, `xsave`/`xrstor`, and waits for an interrupt of the local
//! APIC's timer. It reports each step through an I/O port; the first step it does not report is the verdict.
//!
//! * [`machine`]: the guest's memory, page tables and vCPU (unsafe: guest memory is handed to the kernel).
//! * [`payload`]: the guest's code (unsafe: assembly, and reading it from the binary).
//! * [`watchdog`]: ends a vCPU that does not end by itself (unsafe: signals).

#[cfg(target_arch = "x86_64")]
mod machine;
#[cfg(target_arch = "x86_64")]
mod payload;
#[cfg(target_arch = "x86_64")]
mod watchdog;

use std::io;
use std::time::Duration;

/// The device.
pub const KVM_DEVICE: &str = "/dev/kvm";
/// A working KVM needs a few milliseconds, a nested one on an emulated CPU a few hundred.
pub const LIMIT: Duration = Duration::from_secs(1);
/// A busy host's first answer may be late: a guest that hung is tried once more, for this long.
pub const LONG_LIMIT: Duration = Duration::from_secs(20);

/// What the guest does, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The first instruction in 64-bit mode.
    LongMode,
    /// `lock cmpxchg16b`.
    CompareExchange,
    /// `int3` and `iretq`.
    Breakpoint,
    /// `xsave` and `xrstor`; `fxsave` and `fxrstor` on a CPU without them.
    RestoreState,
    /// `hlt` until the local APIC's timer fires.
    TimerInterrupt,
}

impl Step {
    /// All, in the guest's order.
    pub const ALL: [Self; 5] =
        [Self::LongMode, Self::CompareExchange, Self::Breakpoint, Self::RestoreState, Self::TimerInterrupt];

    // `reported` steps have been done; the one that was not.
    fn after(reported: usize) -> Self {
        Self::ALL.get(reported).copied().unwrap_or(Self::TimerInterrupt)
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::LongMode => "entering 64-bit mode",
            Self::CompareExchange => "cmpxchg16b",
            Self::Breakpoint => "int3",
            Self::RestoreState => "xrstor",
            Self::TimerInterrupt => "a timer interrupt",
        })
    }
}

/// This host's KVM is missing or cannot run a stock kernel.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// /dev/kvm.
    #[error("cannot open {KVM_DEVICE}")]
    Open(#[source] io::Error),
    /// The API refused something before the guest ran.
    #[error("KVM self-test: cannot {action}")]
    Prepare {
        /// What was tried.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The guest did not get past a step.
    #[error("KVM self-test: the guest failed at {step}: {how} ({milliseconds} ms)")]
    Failed {
        /// The first step that it did not report.
        step: Step,
        /// What the kernel or the guest reported instead.
        how: String,
        /// Since the guest's start.
        milliseconds: u128,
    },
    /// Another processor architecture.
    #[error("KVM self-test: there is none for this processor architecture")]
    Architecture,
}

/// Runs the test, and once more, for longer, when the guest was stopped for taking too long.
///
/// # Errors
/// See [`SelfTestError`].
pub fn run_patiently() -> Result<Duration, SelfTestError> {
    match run() {
        Err(SelfTestError::Failed { milliseconds, .. }) if milliseconds >= LIMIT.as_millis() => run_for(LONG_LIMIT),
        verdict => verdict,
    }
}

/// Runs the test, for at most about [`LIMIT`]; how long a good guest took.
///
/// # Errors
/// See [`SelfTestError`].
pub fn run() -> Result<Duration, SelfTestError> {
    run_for(LIMIT)
}

fn run_for(limit: Duration) -> Result<Duration, SelfTestError> {
    #[cfg(target_arch = "x86_64")]
    return watchdog::run(limit);
    #[cfg(not(target_arch = "x86_64"))]
    return Err(SelfTestError::Architecture);
}
