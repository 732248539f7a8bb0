//! Errors of the domain as gRPC statuses; the one place that decides codes.

use tonic::{Code, Status};

use crate::container::ContainerError;
use crate::error_text;
use crate::image::{PullError, RemoveError, SourceError};
use crate::node::LookupError;
use crate::sandbox::SandboxError;
use crate::streaming::TooMany;

fn of(code: Code, error: &(dyn std::error::Error + 'static)) -> Status {
    Status::new(code, error_text(error))
}

impl From<LookupError> for Status {
    fn from(error: LookupError) -> Self {
        let code = match error {
            LookupError::NotFound { .. } => Code::NotFound,
            LookupError::Ambiguous { .. } => Code::InvalidArgument,
        };
        of(code, &error)
    }
}

impl From<SandboxError> for Status {
    fn from(error: SandboxError) -> Self {
        let code = match &error {
            SandboxError::Lookup(lookup) => return lookup.clone().into(),
            SandboxError::Invalid(_) | SandboxError::UnknownHandler { .. } => Code::InvalidArgument,
            SandboxError::Exists { .. } => Code::AlreadyExists,
            SandboxError::NotReady { .. }
            | SandboxError::OtherRelease { .. }
            | SandboxError::State(_)
            | SandboxError::Nri(_) => Code::FailedPrecondition,
            SandboxError::Step { .. } | SandboxError::Store(_) | SandboxError::Interrupted { .. } => Code::Internal,
        };
        of(code, &error)
    }
}

impl From<ContainerError> for Status {
    fn from(error: ContainerError) -> Self {
        let code = match &error {
            ContainerError::Lookup(lookup) => return lookup.clone().into(),
            ContainerError::Sandbox(sandbox) => return sandbox.clone().into(),
            ContainerError::Invalid(_)
            | ContainerError::Mount { .. }
            | ContainerError::Seccomp(_)
            | ContainerError::Cdi(_)
            | ContainerError::Request { .. } => Code::InvalidArgument,
            ContainerError::NoImage { .. } => Code::NotFound,
            ContainerError::Exists { .. } => Code::AlreadyExists,
            ContainerError::WrongState { .. } | ContainerError::State(_) | ContainerError::Nri(_) => {
                Code::FailedPrecondition
            }
            ContainerError::ExecTimeout { .. } => Code::DeadlineExceeded,
            ContainerError::StopTimeout { .. }
            | ContainerError::Guest { .. }
            | ContainerError::Machine { .. }
            | ContainerError::Log { .. }
            | ContainerError::Root { .. }
            | ContainerError::Store(_)
            | ContainerError::Interrupted { .. } => Code::Internal,
        };
        of(code, &error)
    }
}

/// The kubelet looks for these prefixes (k8s.io/cri-api/pkg/errors).
impl From<PullError> for Status {
    fn from(error: PullError) -> Self {
        let text = error_text(&error);
        let cause = match &error {
            PullError::Everywhere { cause, .. } => cause,
            other => other,
        };
        match cause {
            cause if cause.is_registry_unavailable() => Self::unavailable(format!("RegistryUnavailable: {text}")),
            PullError::NotFound { .. } => Self::not_found(text),
            PullError::Unauthorized { .. } => Self::unauthenticated(text),
            PullError::Name(_) | PullError::Source { cause: SourceError::Blocked { .. }, .. } => {
                Self::invalid_argument(text)
            }
            _ => Self::internal(text),
        }
    }
}

impl From<RemoveError> for Status {
    fn from(error: RemoveError) -> Self {
        of(Code::Internal, &error)
    }
}

impl From<TooMany> for Status {
    fn from(error: TooMany) -> Self {
        of(Code::ResourceExhausted, &error)
    }
}
