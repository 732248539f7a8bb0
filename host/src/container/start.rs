//! Starting a created container.

use std::sync::Arc;

use bulkhead_proto::agent;
use bulkhead_proto::nri::Event;

use super::{Container, ContainerError, ContainerEvent, ContainerState, Exit};
use crate::node::{Node, now_ns};

/// Executes the container's command; returns when it runs.
pub async fn start(node: &Arc<Node>, container: &Arc<Container>) -> Result<(), ContainerError> {
    let (node, target) = (node.clone(), container.clone());
    // On a task of its own, so that plugins hear of the start although the caller went away.
    let done = tokio::spawn(async move {
        if target.record.get().state == ContainerState::Created {
            node.nri.container_event(Event::START_CONTAINER, &target).await?;
        }
        let (operator, object) = (node.clone(), target.clone());
        let started = target.operate(async move { start_now(&operator, &object).await }).await;
        match &started {
            Ok(()) => node.nri.container_told(Event::POST_START_CONTAINER, &target).await,
            Err(_) if matches!(target.record.get().state, ContainerState::Exited { .. }) => {
                node.nri.container_ended(&target.id).await;
            }
            Err(_) => {}
        }
        started
    });
    done.await.unwrap_or_else(|_| Err(ContainerError::Interrupted { id: container.id.clone() }))
}

async fn start_now(node: &Arc<Node>, container: &Arc<Container>) -> Result<(), ContainerError> {
    let record = container.record.get();
    if record.state != ContainerState::Created {
        let (id, state) = (record.id.clone(), record.state.name());
        return Err(ContainerError::WrongState { id, state, request: "starting it" });
    }
    let sandbox = node.sandboxes.find("sandbox", &record.sandbox_id)?;
    let live = sandbox.live("starting a container")?;
    let request = agent::StartContainerRequest { container_id: record.id.clone(), ..Default::default() };
    let at = now_ns();
    match live.agent.start_container(request).await {
        Ok(_) => container.take(ContainerEvent::Started { at }).await,
        // The agent says that it runs already: a daemon was killed before it could note the start.
        Err(error) if error.code() == Some(ttrpc::Code::FAILED_PRECONDITION) => {
            container.take(ContainerEvent::Started { at }).await
        }
        Err(error) if error.code().is_some() => {
            let exit = Exit {
                code: 128,
                reason: "ContainerCannotRun".into(),
                message: error.to_string(),
                finished_at: now_ns(),
            };
            container.take(ContainerEvent::StartFailed(exit)).await?;
            Err(ContainerError::guest(&record.id)(error))
        }
        // Whether it runs is not known: its watcher or its machine's end will tell.
        Err(error) => Err(ContainerError::guest(&record.id)(error)),
    }
}
