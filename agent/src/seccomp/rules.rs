//! A profile's rules as the agent uses them, checked.

use bulkhead_proto::agent;
use protobuf::EnumOrUnknown;

/// Most rules of a filter, over all of its architectures.
const MAX_RULES: usize = 16_384;
/// Most system call numbers in its rules.
const MAX_NUMBERS: usize = 65_536;
/// Arguments of a system call.
const ARGUMENTS: u32 = 6;
/// From this number on it is a call of x32, or none.
pub(super) const X32_BIT: u32 = 0x4000_0000;
/// `MAX_ERRNO` of the kernel, which cuts larger values down.
const MAX_ERRNO: u32 = 4095;

/// What the kernel does with a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Action {
    KillProcess,
    KillThread,
    Trap,
    Errno(u16),
    Trace(u16),
    Log,
    Allow,
}

impl Action {
    /// `SECCOMP_RET_*` and its data.
    #[must_use]
    pub fn value(self) -> u32 {
        match self {
            Self::KillProcess => 0x8000_0000,
            Self::KillThread => 0,
            Self::Trap => 0x0003_0000,
            Self::Errno(number) => 0x0005_0000 | u32::from(number),
            Self::Trace(message) => 0x7ff0_0000 | u32::from(message),
            Self::Log => 0x7ffc_0000,
            Self::Allow => 0x7fff_0000,
        }
    }
}

/// How an argument is compared with a value, both as unsigned 64-bit numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// `argument & mask == value`
    MaskedEqual {
        mask: u64,
    },
}

/// A demand on one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// 0 to 5
    pub argument: u8,
    /// How.
    pub comparison: Comparison,
    /// With what.
    pub value: u64,
}

/// What happens to some system calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Below 2^30.
    pub numbers: Vec<u32>,
    /// All must hold.
    pub conditions: Vec<Condition>,
    /// Then.
    pub action: Action,
}

/// How a program calls the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Abi {
    X86_64,
    X32,
    I386,
}

/// The rules for one ABI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Architecture {
    /// Whose numbers these are.
    pub abi: Abi,
    /// The first that fits decides.
    pub rules: Vec<Rule>,
    /// Above it an ERRNO default is ENOSYS.
    pub newest: u32,
}

/// A whole filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Where no rule fits.
    pub default_action: Action,
    /// One of each ABI at most; calls through the others kill the process.
    pub architectures: Vec<Architecture>,
    /// `SECCOMP_FILTER_FLAG_*`
    pub flags: u32,
}

/// Checks what a caller sent.
///
/// # Errors
/// What is wrong with it.
pub fn checked(seccomp: &agent::Seccomp) -> Result<Filter, String> {
    let rules: usize = seccomp.architectures.iter().map(|a| a.rules.len()).sum();
    let numbers: usize = seccomp.architectures.iter().flat_map(|a| &a.rules).map(|r| r.numbers.len()).sum();
    if rules > MAX_RULES || numbers > MAX_NUMBERS {
        return Err(format!(
            "the seccomp filter has {rules} rules with {numbers} system calls; {MAX_RULES} and {MAX_NUMBERS} are allowed"
        ));
    }
    let mut architectures: Vec<Architecture> = Vec::new();
    for wanted in &seccomp.architectures {
        let architecture = architecture(wanted)?;
        if architectures.iter().any(|other| other.abi == architecture.abi) {
            return Err(format!("the seccomp filter names the ABI {:?} twice", architecture.abi));
        }
        architectures.push(architecture);
    }
    let (log, allow_speculation) = (u32::from(seccomp.log) << 1, u32::from(seccomp.allow_speculation) << 2);
    let default_action = action(seccomp.default_action.as_ref().unwrap_or_default())?;
    Ok(Filter { default_action, architectures, flags: log | allow_speculation })
}

fn architecture(wanted: &agent::SeccompArchitecture) -> Result<Architecture, String> {
    let abi = match known(wanted.abi, "ABI")? {
        agent::SeccompAbi::SECCOMP_ABI_X86_64 => Abi::X86_64,
        agent::SeccompAbi::SECCOMP_ABI_X32 => Abi::X32,
        agent::SeccompAbi::SECCOMP_ABI_I386 => Abi::I386,
    };
    let rules = wanted.rules.iter().map(rule).collect::<Result<_, _>>()?;
    Ok(Architecture { abi, rules, newest: wanted.newest.min(X32_BIT - 1) })
}

fn rule(wanted: &agent::SeccompRule) -> Result<Rule, String> {
    if let Some(number) = wanted.numbers.iter().find(|number| **number >= X32_BIT) {
        return Err(format!("{number} in the seccomp filter is no system call's number"));
    }
    Ok(Rule {
        numbers: wanted.numbers.clone(),
        conditions: wanted.conditions.iter().map(condition).collect::<Result<_, _>>()?,
        action: action(wanted.action.as_ref().unwrap_or_default())?,
    })
}

fn condition(wanted: &agent::SeccompCondition) -> Result<Condition, String> {
    use agent::SeccompComparison as C;
    let argument = Some(wanted.argument).filter(|argument| *argument < ARGUMENTS).and_then(|a| u8::try_from(a).ok());
    let argument =
        argument.ok_or_else(|| format!("a seccomp rule compares argument {}; the last is 5", wanted.argument))?;
    let comparison = match known(wanted.comparison, "comparison")? {
        C::SECCOMP_COMPARISON_EQUAL => Comparison::Equal,
        C::SECCOMP_COMPARISON_NOT_EQUAL => Comparison::NotEqual,
        C::SECCOMP_COMPARISON_LESS => Comparison::Less,
        C::SECCOMP_COMPARISON_LESS_OR_EQUAL => Comparison::LessOrEqual,
        C::SECCOMP_COMPARISON_GREATER => Comparison::Greater,
        C::SECCOMP_COMPARISON_GREATER_OR_EQUAL => Comparison::GreaterOrEqual,
        C::SECCOMP_COMPARISON_MASKED_EQUAL => Comparison::MaskedEqual { mask: wanted.mask },
    };
    Ok(Condition { argument, comparison, value: wanted.value })
}

fn action(wanted: &agent::SeccompAction) -> Result<Action, String> {
    use agent::SeccompActionKind as K;
    let data = |most: u32| match u16::try_from(wanted.data) {
        Ok(data) if wanted.data <= most => Ok(data),
        _ => Err(format!("a seccomp action carries {}; {most} is the most", wanted.data)),
    };
    Ok(match known(wanted.kind, "action")? {
        K::SECCOMP_ACTION_KILL_PROCESS => Action::KillProcess,
        K::SECCOMP_ACTION_KILL_THREAD => Action::KillThread,
        K::SECCOMP_ACTION_TRAP => Action::Trap,
        K::SECCOMP_ACTION_ERRNO => Action::Errno(data(MAX_ERRNO)?),
        K::SECCOMP_ACTION_TRACE => Action::Trace(data(u16::MAX.into())?),
        K::SECCOMP_ACTION_LOG => Action::Log,
        K::SECCOMP_ACTION_ALLOW => Action::Allow,
    })
}

fn known<E: protobuf::Enum>(value: EnumOrUnknown<E>, what: &str) -> Result<E, String> {
    value.enum_value().map_err(|number| format!("the seccomp filter has the unknown {what} {number}"))
}
