//! `bulkhead debug-console`: a pod's guest console, straight from its `bulkhead-vmm`, whatever the daemon does.

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::config::Config;
use crate::sandbox::record::{run_dir, sandboxes_dir};
use crate::sandboxer::{Machine, MachinePaths};

/// Control-]: ends the command, as it does telnet.
const ESCAPE: u8 = 0x1d;

#[derive(Debug, clap::Args)]
pub(super) struct DebugConsoleArguments {
    /// Configuration file, for the run directory.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Id of the pod sandbox, or its beginning.
    pod: String,
}

pub(super) fn run(arguments: &DebugConsoleArguments) -> anyhow::Result<ExitCode> {
    let config = Config::load(arguments.config.as_deref())?;
    let id = find(&sandboxes_dir(&config), &arguments.pod)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(show(MachinePaths::new(run_dir(&config, &id)), &id))?;
    Ok(ExitCode::SUCCESS)
}

/// The only sandbox whose id begins so.
fn find(directory: &Path, pod: &str) -> anyhow::Result<String> {
    let entries = std::fs::read_dir(directory)
        .with_context(|| format!("cannot list the sandboxes in {}", directory.display()))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut found: Vec<String> = names.filter(|name| !pod.is_empty() && name.starts_with(pod)).collect();
    match (found.pop(), found.is_empty()) {
        (Some(id), true) => Ok(id),
        (Some(_), false) => bail!("{pod:?} begins the ids of {} pod sandboxes; give more of it", found.len() + 1),
        (None, _) => bail!("no pod sandbox whose id begins with {pod:?} has a directory in {}", directory.display()),
    }
}

async fn show(paths: MachinePaths, id: &str) -> anyhow::Result<()> {
    let machine =
        Machine::connect(paths).await.with_context(|| format!("pod sandbox {id} has no machine that runs"))?;
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    let takes_input = machine.open_console(&theirs).await?;
    drop(theirs);
    ours.set_nonblocking(true)?;
    let (mut guest, typed) = tokio::net::UnixStream::from_std(ours)?.into_split();
    let _raw = match (takes_input, std::io::stdin().is_terminal()) {
        (false, _) => {
            eprintln!("(the console takes no input: the pod's runtime handler has no debug_console = true)");
            None
        }
        (true, true) => {
            eprintln!("(Control-] ends)");
            Some(Raw::set()?)
        }
        (true, false) => None,
    };
    let mut screen = std::io::stdout();
    let shown = async {
        let mut bytes = [0; 4096];
        loop {
            match guest.read(&mut bytes).await? {
                0 => return Ok(()),
                count => screen.write_all(&bytes[..count])?,
            }
            screen.flush()?;
        }
    };
    tokio::select! {
        shown = shown => shown,
        escaped = type_on(typed) => escaped.map_err(Into::into),
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(Into::into),
    }
}

/// Returns at the escape only: who has nothing more to type still looks on.
async fn type_on(mut guest: tokio::net::unix::OwnedWriteHalf) -> std::io::Result<()> {
    let (sender, mut keys) = mpsc::channel(16);
    // Ends with the process: nobody waits for a key that may never be pressed.
    std::thread::spawn(move || {
        let mut bytes = [0; 256];
        while let Ok(count @ 1..) = std::io::stdin().read(&mut bytes) {
            if sender.blocking_send(bytes[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    while let Some(bytes) = keys.recv().await {
        if bytes.contains(&ESCAPE) {
            return Ok(());
        }
        guest.write_all(&bytes).await?;
    }
    std::future::pending().await
}

/// The terminal hands keys through; the guest's echoes them. As before when dropped.
struct Raw(Termios);

impl Raw {
    fn set() -> std::io::Result<Self> {
        let before = tcgetattr(std::io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_found_by_the_beginning_of_its_id() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["abc1", "abd2"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        assert_eq!(find(directory.path(), "abc").unwrap(), "abc1");
        for (pod, words) in [("ab", "2 pod sandboxes"), ("x", "no pod sandbox"), ("", "no pod sandbox")] {
            assert!(find(directory.path(), pod).unwrap_err().to_string().contains(words), "{pod}");
        }
    }
}
