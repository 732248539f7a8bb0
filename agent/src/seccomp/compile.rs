//! From rules to a program: the ABI first, then a binary search over the numbers, then the arguments.

use std::collections::BTreeMap;

use super::assemble::{Assembler, Label, Test};
use super::rules::{Abi, Action, Architecture, Comparison, Condition, Filter, Rule, X32_BIT};
use super::{Instruction, Program};

/// Most instructions that the kernel takes (`BPF_MAXINSNS`).
const MAX_INSTRUCTIONS: usize = 4096;
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const AUDIT_ARCH_I386: u32 = 0x4000_0003;
/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;
/// The number that a tracer puts in place of a call to be skipped; as a call it does nothing.
const SKIPPED: u32 = u32::MAX;
const ENOSYS: u16 = 38;

/// What is decided for one number: conditional rules in order, then the action where none of them fits.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Decision<'a> {
    conditional: Vec<&'a Rule>,
    otherwise: Action,
}

impl Decision<'_> {
    fn always(action: Action) -> Self {
        Self { conditional: Vec::new(), otherwise: action }
    }
}

/// Numbers from `start` to the next span's are decided alike.
#[derive(Debug)]
struct Span<'a> {
    start: u32,
    decision: Decision<'a>,
}

/// Compiles a filter.
///
/// # Errors
/// When it takes more instructions than the kernel allows.
pub fn compile(filter: &Filter) -> Result<Program, String> {
    let find = |abi| filter.architectures.iter().find(|architecture| architecture.abi == abi);
    let wide = spans_64(filter.default_action, find(Abi::X86_64), find(Abi::X32));
    let narrow = spans_32(filter.default_action, find(Abi::I386));
    let mut code = Assembler::default();
    let (on_64, not_64, on_32, foreign) = (code.label(), code.label(), code.label(), code.label());
    code.load(ARCH);
    code.branch(Test::Equal, AUDIT_ARCH_X86_64, on_64, not_64);
    code.place(not_64);
    code.branch(Test::Equal, AUDIT_ARCH_I386, on_32, foreign);
    for (label, spans) in [(on_64, &wide), (on_32, &narrow)] {
        code.place(label);
        code.load(NUMBER);
        search(&mut code, spans);
    }
    code.place(foreign);
    code.answer(Action::KillProcess.value());
    let instructions: Vec<Instruction> = code.finish();
    if instructions.len() > MAX_INSTRUCTIONS {
        return Err(format!(
            "the seccomp filter takes {} instructions; the kernel allows {MAX_INSTRUCTIONS}: use fewer argument filters",
            instructions.len()
        ));
    }
    Ok(Program { instructions, flags: filter.flags })
}

/// x86_64 and x32 share one number space, cut by a bit.
fn spans_64<'a>(default: Action, x86_64: Option<&'a Architecture>, x32: Option<&'a Architecture>) -> Vec<Span<'a>> {
    let mut spans = of_abi(default, x86_64, 0);
    spans.extend(of_abi(default, x32, X32_BIT));
    joined(spans)
}

fn spans_32(default: Action, i386: Option<&Architecture>) -> Vec<Span<'_>> {
    joined(of_abi(default, i386, 0))
}

/// Adds the number of skipped calls, and unites neighbours that are decided alike.
fn joined(mut spans: Vec<Span<'_>>) -> Vec<Span<'_>> {
    spans.push(Span { start: SKIPPED, decision: Decision::always(Action::Allow) });
    spans.dedup_by(|next, before| next.decision == before.decision);
    spans
}

/// The spans of one ABI from its number 0, which is `base`.
fn of_abi(default: Action, architecture: Option<&Architecture>, base: u32) -> Vec<Span<'_>> {
    let Some(architecture) = architecture else {
        return vec![Span { start: base, decision: Decision::always(Action::KillProcess) }];
    };
    let mut by_number: BTreeMap<u32, Vec<&Rule>> = BTreeMap::new();
    for rule in &architecture.rules {
        for number in &rule.numbers {
            by_number.entry(*number).or_default().push(rule);
        }
    }
    let mut starts: Vec<u32> = by_number.keys().flat_map(|number| [*number, number + 1]).collect();
    starts.extend([0, architecture.newest + 1]);
    starts.sort_unstable();
    starts.dedup();
    let unnamed = |number| match default {
        Action::Errno(_) if number > architecture.newest => Action::Errno(ENOSYS),
        other => other,
    };
    let decide = |number| match by_number.get(&number) {
        Some(rules) => decision(rules, unnamed(number)),
        None => Decision::always(unnamed(number)),
    };
    starts.into_iter().map(|number| Span { start: base + number, decision: decide(number) }).collect()
}

/// The first rule that fits decides, so nothing after one without conditions matters.
fn decision<'a>(rules: &[&'a Rule], default: Action) -> Decision<'a> {
    let last = rules.iter().position(|rule| rule.conditions.is_empty());
    let otherwise = last.map_or(default, |last| rules[last].action);
    let mut conditional = rules[..last.unwrap_or(rules.len())].to_vec();
    while conditional.last().is_some_and(|rule| rule.action == otherwise) {
        conditional.pop();
    }
    Decision { conditional, otherwise }
}

/// A binary search for the span that holds the accumulator.
fn search(code: &mut Assembler, spans: &[Span<'_>]) {
    match spans {
        [] => code.answer(Action::KillProcess.value()),
        [span] => decide(code, &span.decision),
        _ => {
            let (lower, upper) = spans.split_at(spans.len() / 2);
            let (above, below) = (code.label(), code.label());
            code.branch(Test::GreaterOrEqual, upper[0].start, above, below);
            code.place(below);
            search(code, lower);
            code.place(above);
            search(code, upper);
        }
    }
}

fn decide(code: &mut Assembler, decision: &Decision<'_>) {
    for rule in &decision.conditional {
        let next = code.label();
        for condition in &rule.conditions {
            demand(code, condition, next);
        }
        code.answer(rule.action.value());
        code.place(next);
    }
    code.answer(decision.otherwise.value());
}

/// Goes on behind itself when the condition holds, else at `fail`. The accumulator holds 32 bits, so it takes two steps.
fn demand(code: &mut Assembler, condition: &Condition, fail: Label) {
    let low_at = ARGUMENTS + 8 * u32::from(condition.argument);
    let high_at = low_at + 4;
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    let (high, low) = halves(condition.value);
    let (pass, go_on) = (code.label(), code.label());
    // Where to go when the high halves decide already, and what decides then.
    let (test, yes, no) = match condition.comparison {
        Comparison::Equal => (Test::Equal, pass, fail),
        Comparison::NotEqual => (Test::Equal, fail, pass),
        Comparison::Greater => (Test::Greater, pass, fail),
        Comparison::GreaterOrEqual => (Test::GreaterOrEqual, pass, fail),
        Comparison::Less => (Test::GreaterOrEqual, fail, pass),
        Comparison::LessOrEqual => (Test::Greater, fail, pass),
        Comparison::MaskedEqual { mask } => {
            let (mask_high, mask_low) = halves(mask);
            code.load(high_at);
            code.and(mask_high);
            code.branch(Test::Equal, high, go_on, fail);
            code.place(go_on);
            code.load(low_at);
            code.and(mask_low);
            code.branch(Test::Equal, low, pass, fail);
            code.place(pass);
            return;
        }
    };
    code.load(high_at);
    if test == Test::Equal {
        code.branch(Test::Equal, high, go_on, no);
    } else {
        let not_above = code.label();
        code.branch(Test::Greater, high, yes, not_above);
        code.place(not_above);
        code.branch(Test::Equal, high, go_on, no);
    }
    code.place(go_on);
    code.load(low_at);
    code.branch(test, low, yes, no);
    code.place(pass);
}
