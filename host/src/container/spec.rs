//! The first process of a container, from the CRI's configuration and the image's.

use bulkhead_proto::{agent, cri};

use super::host_access::HostAccess;
use super::{ContainerError, edits, security};
use crate::image::ImageRuntimeConfig;

/// PATH of a container whose image sets none.
const DEFAULT_PATH: &[u8] = b"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Builds the process that the container starts with.
pub(super) fn process(
    config: &cri::ContainerConfig,
    image: &ImageRuntimeConfig,
    hostname: &str,
) -> Result<agent::Process, ContainerError> {
    let context = config.linux.clone().unwrap_or_default().security_context.unwrap_or_default();
    let resources = config.linux.clone().unwrap_or_default().resources.unwrap_or_default();
    let directory = [config.working_dir.as_str(), image.working_dir.as_str(), "/"];
    Ok(agent::Process {
        args: arguments(config, image)?,
        env: environment(config, image, hostname),
        working_directory: directory.into_iter().find(|d| !d.is_empty()).unwrap_or("/").to_owned(),
        user: Some(user(&context, image)?).into(),
        capabilities: Some(security::capabilities(&context)?).into(),
        no_new_privileges: context.no_new_privs,
        terminal: config.tty,
        stdin: config.stdin,
        oom_score_adj: i32::try_from(resources.oom_score_adj).ok().filter(|adj| *adj != 0),
        ..Default::default()
    })
}

/// Command replaces the entrypoint and drops the image's arguments; arguments alone replace the image's.
fn arguments(config: &cri::ContainerConfig, image: &ImageRuntimeConfig) -> Result<Vec<Vec<u8>>, ContainerError> {
    let (head, tail) = if config.command.is_empty() {
        (&image.entrypoint, if config.args.is_empty() { &image.cmd } else { &config.args })
    } else {
        (&config.command, &config.args)
    };
    let all: Vec<Vec<u8>> = head.iter().chain(tail).map(|arg| arg.clone().into_bytes()).collect();
    if all.is_empty() {
        return Err(ContainerError::Invalid(
            "neither the container nor its image names a command; set command or args".into(),
        ));
    }
    Ok(all)
}

/// The image's variables, then the container's; the last of one name wins.
fn environment(config: &cri::ContainerConfig, image: &ImageRuntimeConfig, hostname: &str) -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = vec![DEFAULT_PATH.to_vec(), format!("HOSTNAME={hostname}").into_bytes()];
    if config.tty {
        all.push(b"TERM=xterm".to_vec());
    }
    all.extend(image.env.iter().map(|line| line.clone().into_bytes()));
    all.extend(config.envs.iter().map(|pair| [pair.key.as_bytes(), b"=", &pair.value].concat()));
    let mut result = Vec::with_capacity(all.len());
    all.into_iter().for_each(|line| edits::set_variable(&mut result, line));
    result
}

fn user(
    context: &cri::LinuxContainerSecurityContext,
    image: &ImageRuntimeConfig,
) -> Result<agent::User, ContainerError> {
    if context.run_as_group.is_some() && context.run_as_user.is_none() && context.run_as_username.is_empty() {
        return Err(ContainerError::Invalid("run_as_group is set without run_as_user or run_as_username".into()));
    }
    let groups = context.supplemental_groups.iter().map(|group| {
        u32::try_from(*group)
            .map_err(|_| ContainerError::Invalid(format!("supplemental group {group} is no group number")))
    });
    Ok(agent::User {
        uid: context.run_as_user.map(|value| value.value),
        gid: context.run_as_group.map(|value| value.value),
        username: context.run_as_username.clone(),
        supplemental_groups: groups.collect::<Result<_, _>>()?,
        strict_supplemental_groups: context.supplemental_groups_policy == cri::SupplementalGroupsPolicy::Strict as i32,
        image_user: image.user.clone(),
        ..Default::default()
    })
}

/// How the pod's PID namespaces are shared.
pub(super) fn pid_mode(
    options: Option<&cri::NamespaceOption>,
    host: &HostAccess,
) -> Result<(agent::PidMode, String), ContainerError> {
    let Some(options) = options else { return Ok((agent::PidMode::PID_MODE_CONTAINER, String::new())) };
    match cri::NamespaceMode::try_from(options.pid) {
        Ok(cri::NamespaceMode::Pod) => Ok((agent::PidMode::PID_MODE_POD, String::new())),
        Ok(cri::NamespaceMode::Container) => Ok((agent::PidMode::PID_MODE_CONTAINER, String::new())),
        Ok(cri::NamespaceMode::Target) => Ok((agent::PidMode::PID_MODE_TARGET, options.target_id.clone())),
        Ok(cri::NamespaceMode::Node) => {
            host.ask("namespace_options.pid = NODE", "the host's processes")?;
            Ok((agent::PidMode::PID_MODE_NODE, String::new()))
        }
        Err(_) => Err(ContainerError::Invalid(format!("namespace_options.pid has the unknown value {}", options.pid))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> ImageRuntimeConfig {
        ImageRuntimeConfig {
            entrypoint: vec!["/entry".into()],
            cmd: vec!["a".into()],
            env: vec!["PATH=/img".into(), "X=1".into()],
            ..Default::default()
        }
    }

    fn words(config: &cri::ContainerConfig) -> Vec<String> {
        let args = arguments(config, &image()).unwrap();
        args.into_iter().map(|a| String::from_utf8(a).unwrap()).collect()
    }

    #[test]
    fn commands_and_arguments_combine_as_kubernetes_says() {
        let of = |command: &[&str], args: &[&str]| cri::ContainerConfig {
            command: command.iter().map(|s| (*s).into()).collect(),
            args: args.iter().map(|s| (*s).into()).collect(),
            ..Default::default()
        };
        assert_eq!(words(&of(&[], &[])), ["/entry", "a"]);
        assert_eq!(words(&of(&[], &["b"])), ["/entry", "b"]);
        assert_eq!(words(&of(&["/c"], &[])), ["/c"]);
        assert_eq!(words(&of(&["/c"], &["b"])), ["/c", "b"]);
    }

    #[test]
    fn no_command_anywhere_is_an_error() {
        let text = arguments(&cri::ContainerConfig::default(), &ImageRuntimeConfig::default()).unwrap_err().to_string();
        assert!(text.contains("set command or args"), "{text}");
    }

    #[test]
    fn the_hosts_processes_are_only_for_pods_on_the_host() {
        let options = cri::NamespaceOption { pid: cri::NamespaceMode::Node as i32, ..Default::default() };
        let (mode, _) = pid_mode(Some(&options), &HostAccess::Given(None)).unwrap();
        assert_eq!(mode, agent::PidMode::PID_MODE_NODE);
        let text = pid_mode(Some(&options), &HostAccess::Refused("x can".into())).unwrap_err().to_string();
        assert!(text.contains("namespace_options.pid") && text.ends_with("; x can"), "{text}");
    }

    #[test]
    fn the_containers_variables_win() {
        let config = cri::ContainerConfig {
            envs: vec![cri::KeyValue { key: "X".into(), value: b"2=3".to_vec() }],
            ..Default::default()
        };
        let env = environment(&config, &image(), "web");
        assert_eq!(env, [b"PATH=/img".to_vec(), b"HOSTNAME=web".to_vec(), b"X=2=3".to_vec()]);
    }
}
