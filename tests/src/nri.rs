//! NRI plugins as processes of a test, and what they were told.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::wait;

/// A plugin registers, or notes what it was told, within this time.
const SOON: Duration = Duration::from_secs(20);

/// A plugin that runs; killed when dropped.
#[derive(Debug)]
pub struct Plugin {
    child: Child,
    /// Where it notes what it is told.
    pub log: PathBuf,
}

impl Plugin {
    /// Starts `tests/nri/plugin.go` as `NN-NAME` and waits until it is served.
    ///
    /// # Errors
    /// When it cannot be started or is not served.
    pub fn start(programs: &Path, directory: &Path, socket: &Path, id: &str, events: &str) -> Result<Self> {
        let (index, name) = id.split_once('-').context("NN-NAME")?;
        let log = directory.join(format!("{id}.events"));
        let mut command = Command::new(programs.join("plugin"));
        command.stdin(Stdio::null());
        command.args(["-idx", index, "-name", name, "-events", events]);
        command.arg("-socket").arg(socket).arg("-log").arg(&log);
        let plugin = Self::spawn(command, log)?;
        plugin.told("Synchronize")?;
        Ok(plugin)
    }

    /// Starts another plugin that writes to `log`; its standard output goes beside it, as `.output`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(mut command: Command, log: PathBuf) -> Result<Self> {
        let output = File::create(log.with_extension("output"))?;
        command.stdout(output.try_clone()?).stderr(output);
        let child = command.spawn().with_context(|| format!("cannot start {:?}", command.get_program()))?;
        Ok(Self { child, log })
    }

    /// Everything that it noted until now.
    ///
    /// # Errors
    /// When a line is not JSON.
    pub fn events(&self) -> Result<Vec<Value>> {
        events_of(&self.log)
    }

    /// The names of its events of one pod, in their order.
    ///
    /// # Errors
    /// As [`Self::events`].
    pub fn names_of(&self, pod: &str) -> Result<Vec<String>> {
        let events = self.events()?;
        let of_pod = events.iter().filter(|event| event["pod"]["id"] == pod);
        Ok(of_pod.map(|event| event["event"].as_str().unwrap_or_default().to_owned()).collect())
    }

    /// Waits for the last event of this name.
    ///
    /// # Errors
    /// When there is none in time.
    pub fn told(&self, event: &str) -> Result<Value> {
        wait::until(&format!("{event} in {}", self.log.display()), SOON, || {
            Ok(self.events()?.into_iter().rfind(|told| told["event"] == event))
        })
    }

    /// Whether its process has ended.
    ///
    /// # Errors
    /// When that cannot be told.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits for its process to end by itself.
    ///
    /// # Errors
    /// When it does not.
    pub fn ends(&mut self) -> Result<()> {
        wait::until("the end of the plugin", SOON, || Ok(self.has_ended()?.then_some(())))
    }

    /// Stops it in its tracks, as a plugin that hangs.
    ///
    /// # Errors
    /// When it has ended.
    pub fn freeze(&mut self) -> Result<()> {
        ensure!(!self.has_ended()?, "the plugin has ended");
        Ok(kill_process(Pid::from_child(&self.child), Signal::STOP)?)
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        // It has ended already when this fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the plugin of `tests/nri/plugin.go` noted in a file.
///
/// # Errors
/// When a line is not JSON.
pub fn events_of(log: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(log).unwrap_or_default();
    // The last line may be half written.
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    whole.lines().map(|line| serde_json::from_str(line).with_context(|| format!("no event: {line}"))).collect()
}
