//! GetContainerEvents: from now on, until the client or the daemon ends it.

use std::pin::Pin;
use std::sync::Arc;

use bulkhead_proto::cri;
use futures_util::Stream;
use futures_util::stream::unfold;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tonic::Status;

use super::convert;
use crate::events::{Event, EventKind};
use crate::node::Node;

/// Events as one client reads them.
pub(super) type EventStream = Pin<Box<dyn Stream<Item = Result<cri::ContainerEventResponse, Status>> + Send>>;

pub(super) fn get_container_events(node: &Arc<Node>, _: cri::GetEventsRequest) -> Result<EventStream, Status> {
    let listener = node.events.listen().ok_or_else(|| Status::unavailable("the daemon is stopping"))?;
    Ok(Box::pin(stream(listener)))
}

/// A client that reads too slowly is cut off: it has to list anew in any case.
fn stream(listener: Receiver<Arc<Event>>) -> impl Stream<Item = Result<cri::ContainerEventResponse, Status>> + Send {
    unfold(Some(listener), |listener| async move {
        let mut listener = listener?;
        match listener.recv().await {
            Ok(event) => Some((Ok(response(&event)), Some(listener))),
            Err(RecvError::Closed) => None,
            Err(RecvError::Lagged(lost)) => {
                let text = format!(
                    "this client read events too slowly and has missed {lost}; call GetContainerEvents again, then list"
                );
                Some((Err(Status::resource_exhausted(text)), None))
            }
        }
    })
}

fn response(event: &Event) -> cri::ContainerEventResponse {
    let kind = match event.kind {
        EventKind::Created => cri::ContainerEventType::ContainerCreatedEvent,
        EventKind::Started => cri::ContainerEventType::ContainerStartedEvent,
        EventKind::Stopped => cri::ContainerEventType::ContainerStoppedEvent,
        EventKind::Deleted => cri::ContainerEventType::ContainerDeletedEvent,
    };
    cri::ContainerEventResponse {
        container_id: event.id.clone(),
        container_event_type: kind as i32,
        created_at: event.at,
        pod_sandbox_status: event.sandbox.as_ref().map(|record| convert::sandbox_status(record)),
        containers_statuses: event.containers.iter().map(|record| convert::container_status(record)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_stream::StreamExt;

    fn event(id: usize) -> Arc<Event> {
        Arc::new(Event { id: id.to_string(), kind: EventKind::Started, at: 5, sandbox: None, containers: Vec::new() })
    }

    #[tokio::test]
    async fn a_slow_reader_is_cut_off_with_an_error() {
        let (sender, listener) = tokio::sync::broadcast::channel(4);
        for id in 0..10 {
            sender.send(event(id)).unwrap();
        }
        let mut stream = Box::pin(stream(listener));
        let error = stream.next().await.unwrap().unwrap_err();
        assert_eq!(error.code(), tonic::Code::ResourceExhausted);
        assert!(error.message().contains("missed 6"), "{error}");
        assert!(stream.next().await.is_none());
    }

    #[tokio::test]
    async fn events_come_in_order_and_end_with_the_daemon() {
        let (sender, listener) = tokio::sync::broadcast::channel(4);
        for id in 0..3 {
            sender.send(event(id)).unwrap();
        }
        drop(sender);
        let seen: Vec<_> = stream(listener).map(|event| event.unwrap().container_id).collect().await;
        assert_eq!(seen, ["0", "1", "2"]);
    }
}
