//! Starts the threads of devices, which a vCPU asks for when the guest's driver is ready: a vCPU may start none itself, and a
//! thread that it started would have its list.

use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::{self, Sender};
use std::thread::{Builder, JoinHandle};

use super::{Role, enter_thread};

type Start = Box<dyn FnOnce() + Send>;

static STARTER: OnceLock<Sender<Start>> = OnceLock::new();

/// In the jail, before any other thread.
pub(super) fn begin() -> io::Result<()> {
    let (sender, starts) = mpsc::channel::<Start>();
    Builder::new().name("starter".into()).spawn(move || {
        enter_thread(Role::Control);
        starts.into_iter().for_each(|start| start());
    })?;
    // The first one stays; another would end with its sender.
    let _ = STARTER.set(sender);
    Ok(())
}

/// Starts a thread that restricts itself to its role before anything else.
///
/// # Errors
/// When there is no thread to be had.
pub fn spawn<T: Send + 'static>(
    name: &str,
    role: Role,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let builder = Builder::new().name(name.to_owned());
    let start = move || {
        builder.spawn(move || {
            enter_thread(role);
            body()
        })
    };
    let Some(starter) = STARTER.get() else { return start() };
    let gone = || io::Error::other("the thread that starts threads has ended");
    let (answer, started) = mpsc::channel();
    let order = move || {
        // Whoever asked waits.
        let _ = answer.send(start());
    };
    starter.send(Box::new(order)).map_err(|_| gone())?;
    started.recv().map_err(|_| gone())?
}
