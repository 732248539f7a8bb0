//! Seccomp profiles: which one a container gets, read, checked and resolved into the agent's rules.

mod profile;
mod resolve;
mod syscalls;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use bulkhead_proto::{agent, cri, nri};

use self::profile::Profile;
use self::resolve::Facts;
use crate::blocking;
use crate::sandbox::Live;

/// Largest profile file, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// What containers get that ask for the runtime's default.
static DEFAULT: LazyLock<Result<Profile, String>> = LazyLock::new(|| Profile::parse(include_bytes!("default.json")));

/// Why a profile cannot be applied.
#[derive(Debug, Clone, thiserror::Error)]
#[allow(missing_docs)]
pub enum SeccompError {
    #[error("seccomp profile {path:?} is not an absolute path; profiles are files on the node")]
    Relative { path: String },
    #[error("cannot read seccomp profile {path:?}: {source}; place the file on the node")]
    Read { path: String, source: Arc<std::io::Error> },
    #[error("seccomp profile {path:?} has more than {MAX_FILE} bytes")]
    TooLarge { path: String },
    #[error("seccomp profile {path:?}: {why}")]
    Profile { path: String, why: String },
    #[error("seccomp profile type {0} is unknown")]
    UnknownType(i32),
    #[error("seccomp_profile_path {0:?} is unknown: runtime/default, unconfined or localhost/PATH")]
    UnknownName(String),
    #[error("cannot ask the pod's kernel for its version, which the seccomp profile depends on: {0}")]
    Kernel(String),
}

/// Which profile.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Choice {
    Unconfined,
    RuntimeDefault,
    Localhost(String),
}

/// The filter of a container with these capabilities; `None` allows everything.
pub(super) async fn filter(
    context: &cri::LinuxContainerSecurityContext,
    capabilities: &[String],
    live: &Live,
) -> Result<Option<agent::Seccomp>, SeccompError> {
    let (path, profile) = match choice(context)? {
        Choice::Unconfined => return Ok(None),
        Choice::RuntimeDefault => ("runtime/default".to_owned(), DEFAULT.clone()),
        Choice::Localhost(path) => {
            let profile = Profile::parse(&read(&path).await?);
            (path, profile)
        }
    };
    let refuse = |why| SeccompError::Profile { path: path.clone(), why };
    let profile = profile.map_err(refuse)?;
    let kernel = if profile.depends_on_kernel() { Some(kernel(live).await?) } else { None };
    resolve::resolve(&profile, &Facts { capabilities, kernel }).map(Some).map_err(refuse)
}

/// The filter of a policy that an NRI plugin asks for; why not, in words.
pub(super) fn of_plugin(policy: &nri::LinuxSeccomp, capabilities: &[String]) -> Result<agent::Seccomp, String> {
    if !policy.listener_path.is_empty() || !policy.listener_metadata.is_empty() {
        return Err("there is no listening agent for system calls".into());
    }
    let profile = Profile::parse(oci_form(policy).to_string().as_bytes())?;
    resolve::resolve(&profile, &Facts { capabilities, kernel: None })
}

/// The policy as a file has it (runtime-spec, config-linux.md#seccomp).
fn oci_form(policy: &nri::LinuxSeccomp) -> serde_json::Value {
    let errno = |value: &protobuf::MessageField<nri::OptionalUInt32>| value.as_ref().map(|number| number.value);
    let syscalls = policy.syscalls.iter().map(|rule| {
        let args = rule.args.iter().map(|argument| {
            serde_json::json!({
                "index": argument.index, "value": argument.value, "valueTwo": argument.value_two, "op": argument.op,
            })
        });
        serde_json::json!({
            "names": rule.names, "action": rule.action, "errnoRet": errno(&rule.errno_ret),
            "args": args.collect::<Vec<_>>(),
        })
    });
    serde_json::json!({
        "defaultAction": policy.default_action, "defaultErrnoRet": errno(&policy.default_errno),
        "architectures": policy.architectures, "flags": policy.flags, "syscalls": syscalls.collect::<Vec<_>>(),
    })
}

/// A privileged container is never confined; the deprecated string counts where the message is absent.
#[allow(deprecated)]
fn choice(context: &cri::LinuxContainerSecurityContext) -> Result<Choice, SeccompError> {
    use cri::security_profile::ProfileType;
    if context.privileged {
        return Ok(Choice::Unconfined);
    }
    if let Some(profile) = &context.seccomp {
        return match ProfileType::try_from(profile.profile_type) {
            Ok(ProfileType::RuntimeDefault) => Ok(Choice::RuntimeDefault),
            Ok(ProfileType::Unconfined) => Ok(Choice::Unconfined),
            Ok(ProfileType::Localhost) => Ok(Choice::Localhost(profile.localhost_ref.clone())),
            Err(_) => Err(SeccompError::UnknownType(profile.profile_type)),
        };
    }
    match context.seccomp_profile_path.as_str() {
        "" | "unconfined" => Ok(Choice::Unconfined),
        "runtime/default" | "docker/default" => Ok(Choice::RuntimeDefault),
        name => match name.strip_prefix("localhost/") {
            Some(path) => Ok(Choice::Localhost(path.to_owned())),
            None => Err(SeccompError::UnknownName(name.to_owned())),
        },
    }
}

async fn read(path: &str) -> Result<Vec<u8>, SeccompError> {
    if !path.starts_with('/') {
        return Err(SeccompError::Relative { path: path.to_owned() });
    }
    let failed = |source| SeccompError::Read { path: path.to_owned(), source: Arc::new(source) };
    let opened = path.to_owned();
    let read = blocking::on_path(Path::new(path), move || {
        let file = File::open(opened)?;
        if !file.metadata()?.is_file() {
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is no regular file"));
        }
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).map(|_| bytes)
    });
    let bytes = read.await.map_err(|hung| failed(std::io::Error::other(hung)))?.map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(SeccompError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}

/// Major and minor version of the kernel that will run the filter.
async fn kernel(live: &Live) -> Result<(u32, u32), SeccompError> {
    let info = live.agent.info(agent::InfoRequest::new()).await;
    let release = info.map_err(|error| SeccompError::Kernel(crate::error_text(&error)))?.kernel_release;
    profile::version(&release).ok_or(SeccompError::Kernel(format!("it answers {release:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(deprecated)]
    fn the_message_goes_before_the_deprecated_string() {
        let of = |kind: i32, path: &str, old: &str| cri::LinuxContainerSecurityContext {
            seccomp: (kind >= 0).then(|| cri::SecurityProfile { profile_type: kind, localhost_ref: path.into() }),
            seccomp_profile_path: old.into(),
            ..Default::default()
        };
        for (context, wanted) in [
            (of(-1, "", ""), Choice::Unconfined),
            (of(-1, "", "docker/default"), Choice::RuntimeDefault),
            (of(-1, "", "localhost//etc/p.json"), Choice::Localhost("/etc/p.json".into())),
            (of(0, "", "unconfined"), Choice::RuntimeDefault),
            (of(1, "", "runtime/default"), Choice::Unconfined),
            (of(2, "/p", ""), Choice::Localhost("/p".into())),
        ] {
            assert_eq!(choice(&context).unwrap(), wanted, "{context:?}");
            let privileged = cri::LinuxContainerSecurityContext { privileged: true, ..context };
            assert_eq!(choice(&privileged).unwrap(), Choice::Unconfined);
        }
        assert!(choice(&of(-1, "", "strange")).unwrap_err().to_string().contains("runtime/default"));
        assert!(choice(&of(9, "", "")).is_err());
    }

    #[tokio::test]
    async fn files_are_read_within_limits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.json");
        std::fs::write(&path, vec![b' '; MAX_FILE as usize + 1]).unwrap();
        for (path, why) in [
            (path.to_str().unwrap(), "more than"),
            ("p.json", "absolute"),
            ("/no/such", "No such file"),
            ("/dev", "regular"),
        ] {
            let text = read(path).await.unwrap_err().to_string();
            assert!(text.contains(path) && text.contains(why), "{text}");
        }
    }

    #[test]
    fn the_default_profile_grows_with_capabilities() {
        let profile = DEFAULT.clone().unwrap();
        let numbers = |capabilities: &[&str]| -> Vec<u32> {
            let capabilities: Vec<String> = capabilities.iter().map(|c| (*c).to_owned()).collect();
            let filter = resolve::resolve(&profile, &Facts { capabilities: &capabilities, kernel: None }).unwrap();
            assert_eq!(filter.architectures.len(), 3);
            let allow = agent::SeccompActionKind::SECCOMP_ACTION_ALLOW;
            let allowed =
                |rule: &&agent::SeccompRule| rule.conditions.is_empty() && rule.action.kind.enum_value() == Ok(allow);
            filter.architectures[0].rules.iter().filter(allowed).flat_map(|rule| rule.numbers.clone()).collect()
        };
        const READ: u32 = 0;
        const REBOOT: u32 = 169;
        const MOUNT: u32 = 165;
        const CLONE3: u32 = 435;
        const KEYCTL: u32 = 250;
        let plain = numbers(&[]);
        assert!(plain.contains(&READ) && ![REBOOT, MOUNT, CLONE3].iter().any(|n| plain.contains(n)));
        let admin = numbers(&["CAP_SYS_ADMIN", "CAP_SYS_BOOT"]);
        assert!([READ, REBOOT, MOUNT, CLONE3].iter().all(|n| admin.contains(n)) && !admin.contains(&KEYCTL));
    }
}
