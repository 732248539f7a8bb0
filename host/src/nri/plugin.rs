//! One connected plugin: its requests, their time limit, and what happens when it does not answer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bulkhead_proto::nri::{self, Event};
use bulkhead_proto::nri_ttrpc::PluginClient;
use protobuf::{Enum, Message};
use tokio_util::sync::CancellationToken;
use ttrpc::Code;

use super::error::NriError;

/// Longest name of a plugin, in bytes.
const MAX_NAME: usize = 128;
/// Bytes of pods and containers in one Synchronize request; a ttrpc message takes 4 MiB.
const SYNC_PART: u64 = 3 << 20;

/// A plugin's index and name, which is how the reference names it: `10-logger`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PluginId {
    /// Two digits; plugins are asked in this order.
    pub index: String,
    /// Letters, digits and `_.+-`.
    pub name: String,
}

impl std::fmt::Display for PluginId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.index, self.name)
    }
}

impl PluginId {
    /// Checks what a plugin calls itself.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn new(index: &str, name: &str) -> Result<Self, String> {
        if index.len() != 2 || !index.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(format!("the index of an NRI plugin is two digits, not {index:?}"));
        }
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte);
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(fits) {
            return Err(format!("the name of an NRI plugin is 1 to {MAX_NAME} of A-Z a-z 0-9 - _ . +, not {name:?}"));
        }
        Ok(Self { index: index.to_owned(), name: name.to_owned() })
    }

    /// Of a program `NN-NAME`.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn of_file(name: &str) -> Result<Self, String> {
        let (index, name) = name.split_once('-').ok_or_else(|| format!("{name:?} is not named NN-NAME"))?;
        Self::new(index, name)
    }
}

/// What a request came to.
type Answer<T> = Result<Option<T>, NriError>;

/// A plugin that registered.
pub(super) struct Plugin {
    pub(super) id: PluginId,
    client: PluginClient,
    closed: CancellationToken,
    request_timeout: Duration,
    /// Bit `event - 1` of every event that it wants.
    events: u32,
    policy: nri::FailurePolicy,
    /// It knows StateChange instead of a request for each event.
    is_old: AtomicBool,
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plugin").field("id", &self.id).field("events", &self.events).finish_non_exhaustive()
    }
}

/// The mask of an event.
fn bit(event: Event) -> u32 {
    u32::try_from(event.value() - 1).ok().and_then(|shift| 1u32.checked_shl(shift)).unwrap_or(0)
}

impl Plugin {
    /// Tells a plugin that registered who asks, and learns what it wants to be asked.
    ///
    /// # Errors
    /// When it does not answer, or asks for events that there are not.
    pub(super) async fn configure(
        id: PluginId,
        client: PluginClient,
        closed: CancellationToken,
        request_timeout: Duration,
        request: &nri::ConfigureRequest,
    ) -> Result<Self, String> {
        let asked = client.configure(ttrpc::context::with_duration(request_timeout), request);
        let answer = match tokio::time::timeout(request_timeout, asked).await {
            Ok(answer) => answer.map_err(|error| error.to_string())?,
            Err(_) => return Err(format!("no answer to Configure in {} ms", request_timeout.as_millis())),
        };
        let valid = bit(Event::LAST) - 1;
        let events = match u32::from_ne_bytes(answer.events.to_ne_bytes()) {
            0 => valid,
            events if events & !valid != 0 => return Err(format!("it asks for unknown events: {events:#x}")),
            events => events,
        };
        let policy = answer.failure_policy.into_option().unwrap_or_default();
        let is_old = AtomicBool::new(false);
        Ok(Self { id, client, closed, request_timeout, events, policy, is_old })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Ends the connection, and the process if the daemon started it.
    pub(super) fn close(&self) {
        self.closed.cancel();
    }

    pub(super) fn wants(&self, event: Event) -> bool {
        self.events & bit(event) != 0
    }

    fn context(&self) -> ttrpc::context::Context {
        ttrpc::context::with_duration(self.request_timeout)
    }

    /// Sorts an answer: an error of the plugin's own fails the request, silence closes the plugin (unless its policy says
    /// otherwise) and the request goes on without it.
    async fn answer<T>(&self, request: &'static str, asked: impl Future<Output = ttrpc::Result<T>>) -> Answer<T> {
        let started = Instant::now();
        let failure = match tokio::time::timeout(self.request_timeout, asked).await {
            Ok(Ok(answer)) => return Ok(Some(answer)),
            Ok(Err(ttrpc::Error::RpcStatus(status))) if status.code() != Code::DEADLINE_EXCEEDED => {
                return Err(NriError::Refused { plugin: self.id.clone(), request, why: status.message });
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => String::from("no answer"),
        };
        let late = started.elapsed() >= self.request_timeout;
        let why = if late { format!("no answer in {} ms", self.request_timeout.as_millis()) } else { failure };
        if late && self.policy.keep_connected {
            tracing::warn!(plugin = %self.id, request, why, "NRI plugin failed; it is kept, as it asked");
        } else {
            tracing::error!(plugin = %self.id, request, why, "NRI plugin failed; closing its connection");
            self.close();
        }
        if self.policy.fail_request {
            return Err(NriError::Failed { plugin: self.id.clone(), request, why });
        }
        Ok(None)
    }

    /// Tells of everything that there is, in as many requests as it takes.
    ///
    /// # Errors
    /// Why the plugin is of no use.
    pub(super) async fn synchronize(
        &self,
        pods: Vec<nri::PodSandbox>,
        containers: Vec<nri::Container>,
    ) -> Result<Vec<nri::ContainerUpdate>, String> {
        let all = async {
            for request in sync_parts(pods, containers) {
                let answer = self.client.synchronize(self.context(), &request).await.map_err(|e| e.to_string())?;
                if !request.more {
                    return Ok(answer.update);
                }
                if !answer.more || !answer.update.is_empty() {
                    return Err("it cannot take the node's pods in several messages".to_owned());
                }
            }
            Ok(Vec::new())
        };
        match tokio::time::timeout(self.request_timeout, all).await {
            Ok(result) => result,
            Err(_) => Err(format!("no answer to Synchronize in {} ms", self.request_timeout.as_millis())),
        }
    }

    /// Tells of an event that has no answer.
    pub(super) async fn notify(
        &self,
        event: Event,
        pod: &nri::PodSandbox,
        container: Option<&nri::Container>,
    ) -> Result<(), NriError> {
        if !self.wants(event) || self.is_closed() {
            return Ok(());
        }
        let (pod, container) = (Some(pod.clone()).into(), container.cloned().into());
        self.answer(name(event), self.tell(event, pod, container)).await.map(drop)
    }

    async fn tell(
        &self,
        event: Event,
        pod: protobuf::MessageField<nri::PodSandbox>,
        container: protobuf::MessageField<nri::Container>,
    ) -> ttrpc::Result<()> {
        if !self.is_old.load(Ordering::Relaxed) {
            match self.tell_directly(event, &pod, &container).await {
                Err(ttrpc::Error::RpcStatus(status)) if status.code() == Code::UNIMPLEMENTED => {
                    tracing::warn!(plugin = %self.id, "NRI plugin knows only StateChange; it was made for NRI before 0.11");
                    self.is_old.store(true, Ordering::Relaxed);
                }
                told => return told,
            }
        }
        let change = nri::StateChangeEvent { event: event.into(), pod, container, ..Default::default() };
        self.client.state_change(self.context(), &change).await.map(drop)
    }

    async fn tell_directly(
        &self,
        event: Event,
        pod: &protobuf::MessageField<nri::PodSandbox>,
        container: &protobuf::MessageField<nri::Container>,
    ) -> ttrpc::Result<()> {
        macro_rules! tell {
            ($method:ident, $request:ident { $($field:ident),* }) => {{
                let request = nri::$request { $($field: $field.clone(),)* ..Default::default() };
                self.client.$method(self.context(), &request).await.map(drop)
            }};
        }
        match event {
            Event::RUN_POD_SANDBOX => tell!(run_pod_sandbox, RunPodSandboxRequest { pod }),
            Event::POST_UPDATE_POD_SANDBOX => tell!(post_update_pod_sandbox, PostUpdatePodSandboxRequest { pod }),
            Event::STOP_POD_SANDBOX => tell!(stop_pod_sandbox, StopPodSandboxRequest { pod }),
            Event::REMOVE_POD_SANDBOX => tell!(remove_pod_sandbox, RemovePodSandboxRequest { pod }),
            Event::POST_CREATE_CONTAINER => {
                tell!(post_create_container, PostCreateContainerRequest { pod, container })
            }
            Event::START_CONTAINER => tell!(start_container, StartContainerRequest { pod, container }),
            Event::POST_START_CONTAINER => tell!(post_start_container, PostStartContainerRequest { pod, container }),
            Event::POST_UPDATE_CONTAINER => {
                tell!(post_update_container, PostUpdateContainerRequest { pod, container })
            }
            Event::REMOVE_CONTAINER => tell!(remove_container, RemoveContainerRequest { pod, container }),
            _ => Ok(()),
        }
    }
}

macro_rules! requests {
    ($($(#[$doc:meta])* $name:ident($request:ty) -> $response:ty, $event:ident;)*) => {
        impl Plugin {
            $(
                $(#[$doc])*
                pub(super) async fn $name(&self, request: &$request) -> Answer<$response> {
                    if !self.wants(Event::$event) || self.is_closed() {
                        return Ok(None);
                    }
                    self.answer(name(Event::$event), self.client.$name(self.context(), request)).await
                }
            )*
        }
    };
}

requests! {
    /// A pod's limits are about to change.
    update_pod_sandbox(nri::UpdatePodSandboxRequest) -> nri::UpdatePodSandboxResponse, UPDATE_POD_SANDBOX;
    /// A container is about to be made.
    create_container(nri::CreateContainerRequest) -> nri::CreateContainerResponse, CREATE_CONTAINER;
    /// A container's limits are about to change.
    update_container(nri::UpdateContainerRequest) -> nri::UpdateContainerResponse, UPDATE_CONTAINER;
    /// A container has ended.
    stop_container(nri::StopContainerRequest) -> nri::StopContainerResponse, STOP_CONTAINER;
    /// All plugins have said what they want of a new container.
    validate_container_adjustment(nri::ValidateContainerAdjustmentRequest)
        -> nri::ValidateContainerAdjustmentResponse, VALIDATE_CONTAINER_ADJUSTMENT;
}

/// The request of an event, as people know it.
pub(super) fn name(event: Event) -> &'static str {
    match event {
        Event::RUN_POD_SANDBOX => "RunPodSandbox",
        Event::STOP_POD_SANDBOX => "StopPodSandbox",
        Event::REMOVE_POD_SANDBOX => "RemovePodSandbox",
        Event::CREATE_CONTAINER => "CreateContainer",
        Event::POST_CREATE_CONTAINER => "PostCreateContainer",
        Event::START_CONTAINER => "StartContainer",
        Event::POST_START_CONTAINER => "PostStartContainer",
        Event::UPDATE_CONTAINER => "UpdateContainer",
        Event::POST_UPDATE_CONTAINER => "PostUpdateContainer",
        Event::STOP_CONTAINER => "StopContainer",
        Event::REMOVE_CONTAINER => "RemoveContainer",
        Event::UPDATE_POD_SANDBOX => "UpdatePodSandbox",
        Event::POST_UPDATE_POD_SANDBOX => "PostUpdatePodSandbox",
        Event::VALIDATE_CONTAINER_ADJUSTMENT => "ValidateContainerAdjustment",
        Event::UNKNOWN | Event::LAST => "an unknown event",
    }
}

/// Requests that are small enough for one message each; the last one has `more` unset.
fn sync_parts(pods: Vec<nri::PodSandbox>, containers: Vec<nri::Container>) -> Vec<nri::SynchronizeRequest> {
    let mut parts = vec![nri::SynchronizeRequest::default()];
    let mut size = 0;
    let mut room = |parts: &mut Vec<nri::SynchronizeRequest>, bytes: u64| {
        if size > 0 && size + bytes > SYNC_PART {
            parts.push(nri::SynchronizeRequest::default());
            size = 0;
        }
        size += bytes;
    };
    for pod in pods {
        room(&mut parts, pod.compute_size());
        parts.last_mut().into_iter().for_each(|part| part.pods.push(pod.clone()));
    }
    for container in containers {
        room(&mut parts, container.compute_size());
        parts.last_mut().into_iter().for_each(|part| part.containers.push(container.clone()));
    }
    let last = parts.len() - 1;
    parts[..last].iter_mut().for_each(|part| part.more = true);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_are_named_by_index_and_name() {
        assert_eq!(PluginId::of_file("10-device-injector").unwrap().to_string(), "10-device-injector");
        for bad in ["logger", "1-logger", "1x-logger", "100-logger", "10-", "10-a/b", "10-a b"] {
            assert!(PluginId::of_file(bad).is_err(), "{bad}");
        }
        assert!(PluginId::new("10", &"x".repeat(MAX_NAME + 1)).is_err());
    }

    #[test]
    fn masks_are_those_of_the_protocol() {
        assert_eq!((bit(Event::RUN_POD_SANDBOX), bit(Event::CREATE_CONTAINER), bit(Event::UNKNOWN)), (1, 8, 0));
        assert_eq!(bit(Event::LAST) - 1, 0x3fff);
    }

    #[test]
    fn what_is_too_much_for_one_message_is_told_in_several() {
        let pods = |count: usize| vec![nri::PodSandbox { name: "x".repeat(1 << 20), ..Default::default() }; count];
        let small = sync_parts(pods(1), vec![nri::Container::default()]);
        assert_eq!((small.len(), small[0].pods.len(), small[0].containers.len(), small[0].more), (1, 1, 1, false));
        let parts = sync_parts(pods(7), vec![nri::Container::default()]);
        assert_eq!(parts.iter().map(|part| part.pods.len()).sum::<usize>(), 7);
        assert!(parts.iter().all(|part| part.compute_size() < 4 << 20));
        let more: Vec<bool> = parts.iter().map(|part| part.more).collect();
        assert!(more.len() > 2 && more[..more.len() - 1].iter().all(|more| *more) && !more[more.len() - 1]);
        assert_eq!(sync_parts(Vec::new(), Vec::new()).len(), 1);
    }
}
