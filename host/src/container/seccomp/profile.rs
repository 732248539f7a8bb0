//! A profile as files have it: the OCI form (runtime-spec, config-linux.md#seccomp) and Docker's, which adds conditions.

use serde::Deserialize;

/// Most rules of a profile.
const MAX_RULES: usize = 4096;
/// Most names in its rules.
const MAX_NAMES: usize = 16_384;
/// Longest name of a system call.
const MAX_NAME: usize = 64;

/// What happens to a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[allow(missing_docs)]
pub(super) enum Action {
    #[serde(rename = "SCMP_ACT_KILL", alias = "SCMP_ACT_KILL_THREAD")]
    KillThread,
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    #[serde(rename = "SCMP_ACT_TRACE")]
    Trace,
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
    #[serde(rename = "SCMP_ACT_NOTIFY")]
    Notify,
}

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum Operator {
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    #[serde(rename = "SCMP_CMP_LE")]
    LessOrEqual,
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    #[serde(rename = "SCMP_CMP_GE")]
    GreaterOrEqual,
    #[serde(rename = "SCMP_CMP_GT")]
    Greater,
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEqual,
}

/// A whole profile.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Profile {
    pub(super) default_action: Action,
    pub(super) default_errno_ret: Option<u32>,
    architectures: Option<Vec<String>>,
    arch_map: Option<Vec<ArchMap>>,
    syscalls: Option<Vec<Syscalls>>,
    flags: Option<Vec<String>>,
}

/// Docker's way to name architectures.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    sub_architectures: Option<Vec<String>>,
}

/// A rule.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Syscalls {
    names: Option<Vec<String>>,
    /// Docker's first form.
    name: Option<String>,
    pub(super) action: Action,
    pub(super) errno_ret: Option<u32>,
    args: Option<Vec<Argument>>,
    #[serde(default)]
    pub(super) includes: Option<Demands>,
    #[serde(default)]
    pub(super) excludes: Option<Demands>,
}

/// A condition on an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Argument {
    pub(super) index: u32,
    pub(super) value: u64,
    #[serde(default)]
    pub(super) value_two: u64,
    pub(super) op: Operator,
}

/// When a rule counts.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Demands {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    pub(super) min_kernel: Option<String>,
}

fn list<T>(list: &Option<Vec<T>>) -> &[T] {
    list.as_deref().unwrap_or_default()
}

impl Demands {
    pub(super) fn caps(&self) -> &[String] {
        list(&self.caps)
    }

    pub(super) fn arches(&self) -> &[String] {
        list(&self.arches)
    }
}

impl Syscalls {
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        list(&self.names).iter().chain(&self.name).map(String::as_str)
    }

    pub(super) fn arguments(&self) -> &[Argument] {
        list(&self.args)
    }

    fn demands(&self) -> impl Iterator<Item = &Demands> {
        self.includes.iter().chain(&self.excludes)
    }
}

impl Profile {
    /// Reads and checks a profile.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let profile: Self = serde_json::from_slice(bytes).map_err(|e| format!("it is no seccomp profile: {e}"))?;
        profile.check()?;
        Ok(profile)
    }

    pub(super) fn rules(&self) -> &[Syscalls] {
        list(&self.syscalls)
    }

    /// Names of all architectures, Docker's map of them included.
    pub(super) fn architectures(&self) -> impl Iterator<Item = &str> {
        let mapped = list(&self.arch_map).iter();
        let mapped = mapped.flat_map(|map| std::iter::once(&map.architecture).chain(list(&map.sub_architectures)));
        list(&self.architectures).iter().chain(mapped).map(String::as_str)
    }

    pub(super) fn flags(&self) -> &[String] {
        list(&self.flags)
    }

    /// Whether a rule counts on some kernels only.
    pub(super) fn depends_on_kernel(&self) -> bool {
        self.rules().iter().flat_map(Syscalls::demands).any(|demands| demands.min_kernel.is_some())
    }

    fn check(&self) -> Result<(), String> {
        let rules = self.rules();
        let names = rules.iter().map(|rule| rule.names().count()).sum::<usize>();
        if rules.len() > MAX_RULES || names > MAX_NAMES {
            let count = rules.len();
            return Err(format!("{count} rules with {names} names; at most {MAX_RULES} and {MAX_NAMES} are taken"));
        }
        check_action(self.default_action, self.default_errno_ret)?;
        rules.iter().enumerate().try_for_each(|(number, rule)| {
            check_rule(rule).map_err(|why| format!("rule {} of syscalls: {why}", number + 1))
        })
    }
}

fn check_rule(rule: &Syscalls) -> Result<(), String> {
    check_action(rule.action, rule.errno_ret)?;
    if rule.names().next().is_none() {
        return Err("it names no system call".into());
    }
    if let Some(name) = rule.names().find(|name| name.is_empty() || name.len() > MAX_NAME) {
        return Err(format!("a name has {} characters; 1 to {MAX_NAME} are taken", name.len()));
    }
    if let Some(argument) = rule.arguments().iter().find(|argument| argument.index > 5) {
        return Err(format!("args has the index {}; a system call has arguments 0 to 5", argument.index));
    }
    if rule.arguments().len() > 6 {
        return Err(format!("{} args; a system call has 6 arguments", rule.arguments().len()));
    }
    match rule.demands().filter_map(|d| d.min_kernel.as_deref()).find(|text| version(text).is_none()) {
        Some(text) => Err(format!("minKernel {text:?} is no version such as \"4.8\"")),
        None => Ok(()),
    }
}

fn check_action(action: Action, errno: Option<u32>) -> Result<(), String> {
    let most = match action {
        Action::Notify => return Err("SCMP_ACT_NOTIFY needs a listening agent, which pods here do not have".into()),
        Action::Errno => 4095,
        Action::Trace => u32::from(u16::MAX),
        _ => return Ok(()),
    };
    match errno {
        Some(number) if number > most => Err(format!("errnoRet {number} is above {most}")),
        _ => Ok(()),
    }
}

/// Major and minor of "6.12.43-cloud" or "4.8".
pub(super) fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.splitn(3, '.');
    let major = parts.next()?.parse().ok()?;
    let minor: String = parts.next()?.chars().take_while(char::is_ascii_digit).collect();
    Some((major, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        Profile::parse(text.as_bytes()).unwrap_err()
    }

    #[test]
    fn both_forms_are_read() {
        let profile = Profile::parse(
            br#"{ "defaultAction": "SCMP_ACT_ERRNO", "archMap": [
                    { "architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"] } ],
                  "syscalls": [
                    { "name": "read", "action": "SCMP_ACT_ALLOW", "args": null, "comment": "", "includes": {} },
                    { "names": ["write", "close"], "action": "SCMP_ACT_LOG",
                      "excludes": { "caps": ["CAP_SYS_ADMIN"], "minKernel": "5.1" } } ] }"#,
        )
        .unwrap();
        assert_eq!(profile.architectures().collect::<Vec<_>>(), ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]);
        assert_eq!(profile.rules().iter().flat_map(Syscalls::names).collect::<Vec<_>>(), ["read", "write", "close"]);
        assert!(profile.depends_on_kernel());
    }

    #[test]
    fn what_cannot_be_kept_is_refused() {
        assert!(refused("{").contains("no seccomp profile"));
        assert!(refused(r#"{"defaultAction": "SCMP_ACT_FLY"}"#).contains("SCMP_ACT_FLY"));
        assert!(refused(r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#).contains("listening agent"));
        assert!(refused(r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 5000}"#).contains("4095"));
        let rule = |text: &str| refused(&format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{text}]}}"#));
        assert!(rule(r#"{"names": [], "action": "SCMP_ACT_KILL"}"#).contains("rule 1 of syscalls"));
        let argument = r#"{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}"#;
        assert!(
            rule(&format!(r#"{{"names": ["read"], "action": "SCMP_ACT_KILL", "args": [{argument}]}}"#))
                .contains("index 6")
        );
        let kernel = r#"{"names": ["read"], "action": "SCMP_ACT_KILL", "includes": {"minKernel": "new"}}"#;
        assert!(rule(kernel).contains("minKernel"));
    }

    #[test]
    fn versions_are_compared_by_major_and_minor() {
        assert_eq!(version("6.12.43+deb13-cloud"), Some((6, 12)));
        assert_eq!(version("6.18-rc1"), Some((6, 18)));
        assert_eq!(version("4.8"), Some((4, 8)));
        assert_eq!(version("four.8"), None);
    }
}
