//! A processor's thread, and the signal that gets it out of the guest.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use kvm_bindings::{KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd};
use tokio::sync::mpsc::UnboundedSender;

use super::bus::Bus;
use super::exits::{ExitCounters, ExitKind};
use super::gate::Gate;
use super::machine::End;
use super::ports::{Ports, Wish};
use crate::jail::{self, Role};

/// What a processor reaches, and what reaches it.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The devices.
    pub bus: Arc<Bus>,
    /// The I/O ports.
    pub ports: Arc<Ports>,
    /// Holds it up.
    pub gate: Arc<Gate>,
    /// Told how the machine ends.
    pub ends: UnboundedSender<End>,
}

/// What is known about a processor from outside.
#[derive(Debug, Default)]
pub struct Facts {
    /// Its exits.
    pub exits: ExitCounters,
    /// Where it stood when it was held up last: the instruction's address.
    pub instruction: AtomicU64,
}

/// A processor that has a thread.
#[derive(Debug)]
pub struct Running {
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Shared with the thread.
    pub facts: Arc<Facts>,
}

struct Vcpu {
    fd: VcpuFd,
    facts: Arc<Facts>,
    around: Surroundings,
}

/// What an entry into the guest came to.
enum Entered {
    /// It left again, and what it left for is done.
    Served,
    /// It is to look at the gate.
    Interrupted,
    /// It cannot go on.
    End(End),
}

/// Starts the thread of processor `index`. It waits at the gate.
///
/// # Errors
/// When there is no thread to be had.
pub fn start(fd: VcpuFd, index: usize, around: Surroundings) -> io::Result<Running> {
    let facts = Arc::<Facts>::default();
    let mut vcpu = Vcpu { fd, facts: facts.clone(), around };
    let thread = std::thread::Builder::new().name(format!("vcpu{index}")).spawn(move || {
        jail::enter_thread(Role::Vcpu);
        let gate = vcpu.around.gate.clone();
        vcpu.run();
        drop(vcpu);
        gate.leave();
    })?;
    Ok(Running { thread: Mutex::new(Some(thread)), facts })
}

impl Running {
    /// Gets it out of the guest, if it is there.
    pub fn kick(&self) {
        if let Some(thread) = &*self.thread.lock().unwrap_or_else(PoisonError::into_inner) {
            // SAFETY: the handle has not been joined, so the thread's id is valid even if it has ended; the signal's handler
            // does nothing.
            unsafe { libc::pthread_kill(thread.as_pthread_t(), signal()) };
        }
    }

    /// After the gate has stopped.
    pub fn join(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A thread that panicked has ended, too.
            let _ = thread.join();
        }
    }
}

impl Vcpu {
    fn run(&mut self) {
        loop {
            if self.around.gate.is_closed() {
                if let Some(end) = self.settle() {
                    return self.finish(end);
                }
                if !self.around.gate.pass() {
                    return;
                }
            }
            if let Entered::End(end) = self.enter() {
                return self.finish(end);
            }
        }
    }

    fn finish(&mut self, end: End) {
        self.facts.exits.count(ExitKind::End);
        // Without a receiver the machine is ending already.
        let _ = self.around.ends.send(end);
        self.note_position();
        self.around.gate.wait_for_stop();
    }

    /// Completes the access that the last exit was about, so that the registers are whole. KVM reports an access that is
    /// longer than 8 bytes or crosses a page in pieces: each entry takes in one, and may exit with the next.
    fn settle(&mut self) -> Option<End> {
        self.fd.set_kvm_immediate_exit(1);
        let end = loop {
            match self.enter() {
                Entered::Served => {}
                // Nothing is left of the access, and no other instruction of the guest has run.
                Entered::Interrupted => break None,
                Entered::End(end) => break Some(end),
            }
        };
        self.fd.set_kvm_immediate_exit(0);
        self.note_position();
        // Spares the guest's watchdog; a guest without a clock of KVM's has none to spare.
        let _ = self.fd.kvmclock_ctrl();
        end
    }

    fn note_position(&self) {
        if let Ok(registers) = self.fd.get_regs() {
            self.facts.instruction.store(registers.rip, Ordering::Relaxed);
        }
    }

    fn enter(&mut self) -> Entered {
        let (facts, around) = (&self.facts, &self.around);
        let count = |kind| facts.exits.count(kind);
        match self.fd.run() {
            Ok(VcpuExit::MmioRead(address, data)) => {
                count(ExitKind::MmioRead);
                around.bus.read(address, data);
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                count(ExitKind::MmioWrite);
                around.bus.write(address, data);
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                count(ExitKind::PortRead);
                around.ports.read(port, data);
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                count(ExitKind::PortWrite);
                return match around.ports.write(port, data) {
                    Wish::None => Entered::Served,
                    Wish::Reset => Entered::End(End::Reset),
                    Wish::PowerOff => Entered::End(End::PowerOff),
                };
            }
            Ok(VcpuExit::Shutdown) => return Entered::End(End::TripleFault),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => return Entered::End(End::PowerOff),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => return Entered::End(End::Reset),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _)) => {
                return Entered::End(End::Failed("the guest reported a crash".to_owned()));
            }
            Ok(VcpuExit::InternalError) => return Entered::End(End::Failed(self.internal_error())),
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                return Entered::End(End::Failed(format!(
                    "processor {cpu} cannot enter the guest (hardware reason {reason:#x})"
                )));
            }
            Ok(VcpuExit::Hlt | VcpuExit::Intr | VcpuExit::IrqWindowOpen) => count(ExitKind::Other),
            Ok(other) => {
                return Entered::End(End::Failed(format!("KVM reports an exit that it should not: {other:?}")));
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                count(ExitKind::Interrupted);
                return Entered::Interrupted;
            }
            Err(error) => return Entered::End(End::Failed(format!("KVM_RUN failed: {}", io::Error::from(error)))),
        }
        Entered::Served
    }

    fn internal_error(&mut self) -> String {
        // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, for which KVM fills this member; any bits are valid integers.
        let suberror = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
        let place = self.fd.get_regs().map_or_else(|_| "?".into(), |registers| format!("{:#x}", registers.rip));
        let what = if suberror == 1 { "cannot emulate the guest's instruction" } else { "met an internal error" };
        format!("KVM {what} at {place} (suberror {suberror})")
    }
}

/// A real-time signal that nothing else here uses.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 1
}

extern "C" fn nothing(_: libc::c_int) {}

/// Makes the signal interrupt calls and do nothing else, in the whole process.
///
/// # Errors
/// The kernel's.
pub fn install_signal() -> io::Result<()> {
    // SAFETY: `sigaction` is plain old data for which all zeros is a valid value: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
    // SAFETY: `action` is initialised and outlives the call; its handler does nothing, so it is safe at any point.
    let result = unsafe { libc::sigaction(signal(), &raw const action, ptr::null_mut()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
