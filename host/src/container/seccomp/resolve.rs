//! From a profile to the agent's rules: names become numbers, and what depends on the container is decided.

use bulkhead_proto::agent;
use bulkhead_proto::agent::SeccompAbi::{self, SECCOMP_ABI_I386, SECCOMP_ABI_X32, SECCOMP_ABI_X86_64};

use super::profile::{Action, Argument, Demands, Operator, Profile, Syscalls, version};
use super::syscalls;

/// EPERM: what a refused call answers when the profile names no error.
const EPERM: u32 = 1;
/// This machine in the words of `includes.arches`.
const MACHINE: &str = "amd64";
/// Architectures that other machines have, without the prefix.
const FOREIGN: [&str; 20] = [
    "ARM",
    "AARCH64",
    "MIPS",
    "MIPS64",
    "MIPS64N32",
    "MIPSEL",
    "MIPSEL64",
    "MIPSEL64N32",
    "PPC",
    "PPC64",
    "PPC64LE",
    "S390",
    "S390X",
    "PARISC",
    "PARISC64",
    "RISCV64",
    "LOONGARCH64",
    "M68K",
    "SH",
    "SHEB",
];

/// What a profile's conditions ask about.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    /// Of the container: `CAP_...`.
    pub(super) capabilities: &'a [String],
    /// Major and minor; needed where [`Profile::depends_on_kernel`].
    pub(super) kernel: Option<(u32, u32)>,
}

/// Resolves a profile for one container.
pub(super) fn resolve(profile: &Profile, facts: &Facts<'_>) -> Result<agent::Seccomp, String> {
    let mut result = agent::Seccomp {
        default_action: Some(action(profile.default_action, profile.default_errno_ret)).into(),
        ..Default::default()
    };
    for flag in profile.flags() {
        match flag.as_str() {
            "SECCOMP_FILTER_FLAG_LOG" => result.log = true,
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => result.allow_speculation = true,
            // The process has one thread when the filter is installed, so all threads have it.
            "SECCOMP_FILTER_FLAG_TSYNC" => {}
            other => return Err(format!("the flag {other:?} is not supported")),
        }
    }
    let counted: Vec<&Syscalls> = profile.rules().iter().filter(|rule| counts(rule, facts)).collect();
    for abi in abis(profile)? {
        let rules = counted.iter().flat_map(|rule| rules(rule, abi)).collect();
        let newest = syscalls::newest(abi);
        result.architectures.push(agent::SeccompArchitecture { abi: abi.into(), rules, newest, ..Default::default() });
    }
    Ok(result)
}

/// The machine's own ABI always; those of other machines are passed over.
fn abis(profile: &Profile) -> Result<Vec<SeccompAbi>, String> {
    let mut abis = vec![SECCOMP_ABI_X86_64];
    for name in profile.architectures() {
        let abi = match name.strip_prefix("SCMP_ARCH_") {
            Some("X86_64" | "NATIVE") => SECCOMP_ABI_X86_64,
            Some("X32") => SECCOMP_ABI_X32,
            Some("X86") => SECCOMP_ABI_I386,
            Some(other) if FOREIGN.contains(&other) => continue,
            _ => return Err(format!("the architecture {name:?} is unknown")),
        };
        if !abis.contains(&abi) {
            abis.push(abi);
        }
    }
    Ok(abis)
}

/// Whether `includes` and `excludes` let a rule count: all that is included must be so, nothing that is excluded.
fn counts(rule: &Syscalls, facts: &Facts<'_>) -> bool {
    let has = |cap: &String| facts.capabilities.iter().any(|own| own.eq_ignore_ascii_case(cap));
    let here = |demands: &Demands| demands.arches().iter().any(|arch| arch == MACHINE);
    let new_enough = |demands: &Demands| demands.min_kernel.as_deref().map(|text| facts.kernel >= version(text));
    let included = rule.includes.as_ref().is_none_or(|demands| {
        demands.caps().iter().all(has)
            && (demands.arches().is_empty() || here(demands))
            && new_enough(demands) != Some(false)
    });
    let excluded = rule
        .excludes
        .as_ref()
        .is_some_and(|demands| demands.caps().iter().any(has) || here(demands) || new_enough(demands) == Some(true));
    included && !excluded
}

/// The agent's rules for one of the profile's; none where the ABI has none of the calls. Conditions on one argument twice
/// are alternatives, each a rule of its own, as container runtimes have always read them.
fn rules(rule: &Syscalls, abi: SeccompAbi) -> Vec<agent::SeccompRule> {
    let numbers: Vec<u32> = rule.names().filter_map(|name| syscalls::number(name, abi)).collect();
    if numbers.is_empty() {
        return Vec::new();
    }
    let made = |conditions| agent::SeccompRule {
        numbers: numbers.clone(),
        conditions,
        action: Some(action(rule.action, rule.errno_ret)).into(),
        ..Default::default()
    };
    let arguments = rule.arguments();
    let twice =
        arguments.iter().enumerate().any(|(at, one)| arguments[..at].iter().any(|other| other.index == one.index));
    if twice {
        arguments.iter().map(|argument| made(vec![condition(argument)])).collect()
    } else {
        vec![made(arguments.iter().map(condition).collect())]
    }
}

fn condition(argument: &Argument) -> agent::SeccompCondition {
    use agent::SeccompComparison as C;
    let comparison = match argument.op {
        Operator::Equal => C::SECCOMP_COMPARISON_EQUAL,
        Operator::NotEqual => C::SECCOMP_COMPARISON_NOT_EQUAL,
        Operator::Less => C::SECCOMP_COMPARISON_LESS,
        Operator::LessOrEqual => C::SECCOMP_COMPARISON_LESS_OR_EQUAL,
        Operator::Greater => C::SECCOMP_COMPARISON_GREATER,
        Operator::GreaterOrEqual => C::SECCOMP_COMPARISON_GREATER_OR_EQUAL,
        Operator::MaskedEqual => C::SECCOMP_COMPARISON_MASKED_EQUAL,
    };
    // Of a masked comparison the profile's `value` is the mask.
    let (value, mask) = match argument.op {
        Operator::MaskedEqual => (argument.value_two, argument.value),
        _ => (argument.value, 0),
    };
    agent::SeccompCondition {
        argument: argument.index,
        comparison: comparison.into(),
        value,
        mask,
        ..Default::default()
    }
}

fn action(action: Action, errno: Option<u32>) -> agent::SeccompAction {
    use agent::SeccompActionKind as K;
    let (kind, data) = match action {
        // Refused when the profile was checked; nothing is stricter than this.
        Action::Notify | Action::KillProcess => (K::SECCOMP_ACTION_KILL_PROCESS, 0),
        Action::KillThread => (K::SECCOMP_ACTION_KILL_THREAD, 0),
        Action::Trap => (K::SECCOMP_ACTION_TRAP, 0),
        Action::Errno => (K::SECCOMP_ACTION_ERRNO, errno.unwrap_or(EPERM)),
        Action::Trace => (K::SECCOMP_ACTION_TRACE, errno.unwrap_or(EPERM)),
        Action::Log => (K::SECCOMP_ACTION_LOG, 0),
        Action::Allow => (K::SECCOMP_ACTION_ALLOW, 0),
    };
    agent::SeccompAction { kind: kind.into(), data, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(text: &str, capabilities: &[&str], kernel: (u32, u32)) -> Result<agent::Seccomp, String> {
        let capabilities: Vec<String> = capabilities.iter().map(|c| (*c).to_owned()).collect();
        let facts = Facts { capabilities: &capabilities, kernel: Some(kernel) };
        resolve(&Profile::parse(text.as_bytes()).unwrap(), &facts)
    }

    #[test]
    fn conditions_decide_which_rules_count() {
        let text = r#"{ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            { "names": ["read"], "action": "SCMP_ACT_ALLOW", "includes": { "caps": ["CAP_KILL", "CAP_CHOWN"] } },
            { "names": ["write"], "action": "SCMP_ACT_ALLOW", "excludes": { "caps": ["CAP_KILL"] } },
            { "names": ["open"], "action": "SCMP_ACT_ALLOW", "includes": { "arches": ["arm64", "s390x"] } },
            { "names": ["close"], "action": "SCMP_ACT_ALLOW", "includes": { "arches": ["amd64"], "minKernel": "5.10" } } ] }"#;
        let numbers = |caps: &[&str], kernel| -> Vec<u32> {
            let filter = resolved(text, caps, kernel).unwrap();
            filter.architectures[0].rules.iter().flat_map(|rule| rule.numbers.clone()).collect()
        };
        assert_eq!(numbers(&[], (5, 9)), [1]);
        assert_eq!(numbers(&["CAP_KILL"], (5, 10)), [3]);
        assert_eq!(numbers(&["CAP_KILL", "CAP_CHOWN"], (6, 1)), [0, 3]);
    }

    #[test]
    fn names_become_numbers_of_each_abi() {
        let text = r#"{ "defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 7,
            "architectures": ["SCMP_ARCH_X86", "SCMP_ARCH_AARCH64", "SCMP_ARCH_X86_64"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [ { "names": ["ioctl", "of_a_later_kernel"], "action": "SCMP_ACT_ERRNO", "errnoRet": 25,
                            "args": [ { "index": 1, "value": 255, "valueTwo": 3, "op": "SCMP_CMP_MASKED_EQ" } ] } ] }"#;
        let filter = resolved(text, &[], (6, 1)).unwrap();
        assert!(filter.log && !filter.allow_speculation);
        let seen: Vec<_> =
            filter.architectures.iter().map(|a| (a.abi.enum_value_or_default(), a.rules[0].numbers.clone())).collect();
        assert_eq!(seen, [(SECCOMP_ABI_X86_64, vec![16]), (SECCOMP_ABI_I386, vec![54])]);
        let rule = &filter.architectures[0].rules[0];
        assert_eq!((rule.action.data, rule.conditions[0].value, rule.conditions[0].mask), (25, 3, 255));
    }

    #[test]
    fn one_argument_twice_is_two_rules() {
        let text = r#"{ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [ { "names": ["personality"], "action": "SCMP_ACT_ALLOW",
            "args": [ { "index": 0, "value": 0, "op": "SCMP_CMP_EQ" }, { "index": 0, "value": 8, "op": "SCMP_CMP_EQ" } ] } ] }"#;
        assert_eq!(resolved(text, &[], (6, 1)).unwrap().architectures[0].rules.len(), 2);
    }

    #[test]
    fn unknown_words_are_refused() {
        let with = |more: &str| resolved(&format!(r#"{{ "defaultAction": "SCMP_ACT_ALLOW", {more} }}"#), &[], (6, 1));
        assert!(with(r#""flags": ["SECCOMP_FILTER_FLAG_FLY"]"#).unwrap_err().contains("FLAG_FLY"));
        assert!(with(r#""architectures": ["SCMP_ARCH_PDP11"]"#).unwrap_err().contains("PDP11"));
    }
}
