//! The one place where the agent's errors become ttrpc's codes.

use ttrpc::{Code, get_status};

use crate::container::ContainerError;
use crate::container::cgroups::CgroupError;
use crate::container::images::ImageError;
use crate::container::launch::LaunchError;
use crate::container::volumes::VolumeError;
use crate::sandbox::SandboxError;

/// An error on its way out.
#[derive(Debug)]
pub(super) struct Refusal {
    code: Code,
    message: String,
}

impl From<Refusal> for ttrpc::Error {
    fn from(refusal: Refusal) -> Self {
        Self::RpcStatus(get_status(refusal.code, refusal.message))
    }
}

impl From<ContainerError> for Refusal {
    fn from(error: ContainerError) -> Self {
        Self { code: container_code(&error), message: error.to_string() }
    }
}

impl From<SandboxError> for Refusal {
    fn from(error: SandboxError) -> Self {
        Self { code: sandbox_code(&error), message: error.to_string() }
    }
}

pub(super) fn refuse(error: impl Into<Refusal>) -> ttrpc::Error {
    error.into().into()
}

pub(super) fn internal(message: &str) -> ttrpc::Error {
    Refusal { code: Code::INTERNAL, message: message.into() }.into()
}

pub(super) fn invalid(message: String) -> ttrpc::Error {
    Refusal { code: Code::INVALID_ARGUMENT, message }.into()
}

fn container_code(error: &ContainerError) -> Code {
    match error {
        ContainerError::NotFound(_) | ContainerError::NoProcess { .. } => Code::NOT_FOUND,
        ContainerError::Exists(_) | ContainerError::ProcessExists { .. } => Code::ALREADY_EXISTS,
        ContainerError::Invalid { .. } => Code::INVALID_ARGUMENT,
        ContainerError::State { .. } | ContainerError::NotRunning { .. } => Code::FAILED_PRECONDITION,
        ContainerError::StillCreating { .. } => Code::UNAVAILABLE,
        ContainerError::Launch { source, .. } | ContainerError::Start(source) => launch_code(source),
        ContainerError::Cgroup(error) => cgroup_code(error),
        ContainerError::Image(ImageError::NoDrive(_)) => Code::FAILED_PRECONDITION,
        ContainerError::Volume(VolumeError::Open { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Code::NOT_FOUND
        }
        ContainerError::Sandbox(error) => sandbox_code(error),
        ContainerError::Image(_) | ContainerError::Layer(_) | ContainerError::Volume(_) | ContainerError::Io { .. } => {
            Code::INTERNAL
        }
    }
}

/// What a helper refuses lies in the image or the request; losing the helper does not.
fn launch_code(error: &LaunchError) -> Code {
    match error {
        LaunchError::Refused(_) => Code::INVALID_ARGUMENT,
        LaunchError::Spawn { .. } | LaunchError::Control(_) | LaunchError::Vanished => Code::INTERNAL,
    }
}

fn cgroup_code(error: &CgroupError) -> Code {
    match error {
        CgroupError::BadFile(_) | CgroupError::BadValue(_) | CgroupError::Limit { .. } => Code::INVALID_ARGUMENT,
        CgroupError::NoController(_) => Code::FAILED_PRECONDITION,
        CgroupError::Io { .. } => Code::INTERNAL,
    }
}

fn sandbox_code(error: &SandboxError) -> Code {
    match error {
        SandboxError::Configured => Code::FAILED_PRECONDITION,
        SandboxError::Invalid(_) => Code::INVALID_ARGUMENT,
        SandboxError::Pause(error) => launch_code(error),
        SandboxError::Cgroup(error) => cgroup_code(error),
        SandboxError::Io { .. } | SandboxError::Platform(_) => Code::INTERNAL,
    }
}
