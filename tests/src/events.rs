//! GetContainerEvents, read as fast as they come.

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bulkhead_proto::cri;
use tokio::sync::oneshot;
use tonic::Status;

use crate::cri::Cri;

/// Longest wait for one event.
const LIMIT: Duration = Duration::from_secs(60);

/// A listener on a connection of its own, until it is dropped.
#[derive(Debug)]
pub struct Listener {
    events: Receiver<Result<cri::ContainerEventResponse, Status>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Listens at `socket`; returns once the daemon has taken the request.
    ///
    /// # Errors
    /// The daemon's status.
    pub fn start(socket: &Path) -> Result<Self> {
        let cri = Cri::new(socket)?;
        let mut client = cri.runtime();
        let opened = cri.block_on(async move { client.get_container_events(cri::GetEventsRequest {}).await });
        let mut stream = opened.context("GetContainerEvents")?.into_inner();
        let (sender, events) = channel();
        let (stop, mut stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            cri.block_on(async move {
                loop {
                    let event = tokio::select! {
                        event = stream.message() => event,
                        _ = &mut stopped => return,
                    };
                    let Some(event) = event.transpose() else { return };
                    let failed = event.is_err();
                    if sender.send(event).is_err() || failed {
                        return;
                    }
                }
            });
        });
        Ok(Self { events, stop: Some(stop), thread: Some(thread) })
    }

    /// The next event.
    ///
    /// # Errors
    /// When none comes, or the stream ends.
    pub fn next(&self) -> Result<cri::ContainerEventResponse> {
        match self.events.recv_timeout(LIMIT) {
            Ok(event) => Ok(event?),
            Err(RecvTimeoutError::Timeout) => bail!("no event within {LIMIT:?}"),
            Err(RecvTimeoutError::Disconnected) => bail!("the stream of events has ended"),
        }
    }

    /// Waits for the stream's end; gives what still came.
    ///
    /// # Errors
    /// When it does not end, or not in order.
    pub fn end(&self) -> Result<Vec<cri::ContainerEventResponse>> {
        let mut left = Vec::new();
        loop {
            match self.events.recv_timeout(LIMIT) {
                Ok(event) => left.push(event?),
                Err(RecvTimeoutError::Timeout) => bail!("the stream of events does not end"),
                Err(RecvTimeoutError::Disconnected) => return Ok(left),
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // The thread has ended already when this fails.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
