//! Runs the guest on a thread of its own and, after the time limit, kicks it out of the kernel with a signal.

#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::machine::{Machine, Word};
use super::payload;
use super::{SelfTestError, Step};

/// Between kicks. One that arrives just before the vCPU enters the kernel has no effect, so the next must come soon.
const KICK_INTERVAL: Duration = Duration::from_millis(1);
/// Longest time that a thread is kicked; after that it is left behind.
const KICK_LIMIT: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Shared {
    reported: AtomicUsize,
    stop: AtomicBool,
}

/// The self-test with a wall-clock limit.
pub fn run(limit: Duration) -> Result<Duration, SelfTestError> {
    run_from(payload::layout().entry, limit)
}

fn run_from(entry: u64, limit: Duration) -> Result<Duration, SelfTestError> {
    let prepare = |action| move |source: io::Error| SelfTestError::Prepare { action, source };
    let signal = libc::SIGRTMIN() + 5;
    ignore_but_interrupt(signal).map_err(prepare("install a signal handler"))?;
    let shared = Arc::new(Shared::default());
    let (sender, receiver) = channel();
    let guest = shared.clone();
    let started = Instant::now();
    let thread = thread::Builder::new()
        .name("kvm-selftest".to_owned())
        .spawn(move || run_guest(entry, &guest, &sender))
        .map_err(prepare("start a thread"))?;
    let outcome = receiver.recv_timeout(limit).or_else(|e| match e {
        RecvTimeoutError::Timeout => kick(&thread, signal, &shared, &receiver),
        RecvTimeoutError::Disconnected => Err(e),
    });
    let failed = |how: String| SelfTestError::Failed {
        step: Step::after(shared.reported.load(Ordering::Relaxed)),
        how,
        milliseconds: started.elapsed().as_millis(),
    };
    match outcome {
        Ok(Ok(None)) => Ok(started.elapsed()),
        Ok(Ok(Some(how))) => Err(failed(how)),
        Ok(Err(error)) => Err(error),
        Err(RecvTimeoutError::Timeout) => Err(failed("it hung and could not be interrupted".to_owned())),
        Err(RecvTimeoutError::Disconnected) => Err(failed("the test's thread crashed".to_owned())),
    }
}

// `None` is success, `Some` says how the guest ended.
type Outcome = Result<Option<String>, SelfTestError>;

fn run_guest(entry: u64, shared: &Shared, sender: &Sender<Outcome>) {
    let outcome = Machine::new(entry).map(|mut machine| converse(&mut machine, shared));
    // Without a receiver nobody waits any more.
    let _ = sender.send(outcome);
}

fn converse(machine: &mut Machine, shared: &Shared) -> Option<String> {
    loop {
        match machine.run() {
            Word::Reported(steps) => {
                shared.reported.store(steps, Ordering::Relaxed);
                if steps == Step::ALL.len() {
                    return None;
                }
            }
            Word::Ended(how) => return Some(how),
            Word::Interrupted if shared.stop.load(Ordering::Relaxed) => {
                return Some("it hung and was stopped".to_owned());
            }
            Word::Interrupted => {}
        }
    }
}

fn kick(
    thread: &JoinHandle<()>,
    signal: libc::c_int,
    shared: &Shared,
    receiver: &Receiver<Outcome>,
) -> Result<Outcome, RecvTimeoutError> {
    shared.stop.store(true, Ordering::Relaxed);
    let until = Instant::now() + KICK_LIMIT;
    while Instant::now() < until {
        // SAFETY: the thread has not been joined or detached, as `thread` is its only handle, so its id is valid even if it
        // has ended; the signal has a handler that does nothing.
        unsafe { libc::pthread_kill(thread.as_pthread_t(), signal) };
        match receiver.recv_timeout(KICK_INTERVAL) {
            Err(RecvTimeoutError::Timeout) => {}
            outcome => return outcome,
        }
    }
    Err(RecvTimeoutError::Timeout)
}

extern "C" fn nothing(_: libc::c_int) {}

// A handler without SA_RESTART: the signal's only effect is that a blocked call returns EINTR.
fn ignore_but_interrupt(signal: libc::c_int) -> io::Result<()> {
    // SAFETY: `sigaction` is plain old data for which all zeros is a valid value: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
    // SAFETY: `action` is initialised and outlives the call; its handler does nothing, so it is safe at any point.
    let result = unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_hangs_is_stopped() {
        // Long enough for the guest to be made, on an emulated CPU too.
        let (limit, started) = (super::super::LIMIT, Instant::now());
        match run_from(payload::halt(), limit) {
            Err(SelfTestError::Failed { step, how, .. }) => {
                assert_eq!((step, how.as_str()), (Step::LongMode, "it hung and was stopped"));
                assert!(started.elapsed() >= limit);
            }
            Err(error @ SelfTestError::Open(_)) => {
                eprintln!("skipped: {}", crate::error_text(&error));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_verdict_comes_in_time() {
        let started = Instant::now();
        let verdict = run(super::super::LIMIT);
        assert!(started.elapsed() < super::super::LIMIT * 3, "{verdict:?} after {:?}", started.elapsed());
    }
}
